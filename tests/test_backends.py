"""Choice of backend, what it says of itself, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings

import maskfuse
import pytest
import torch
from conftest import INTERPRETED
from maskfuse import Mask, backends, masked_linear


@pytest.fixture
def fake():
    """A backend that records its calls and refuses the CPU unless told otherwise."""
    calls = []
    state = {"reason": "made up for a test"}

    def op(*args):
        calls.append(args)
        return maskfuse.reference.masked_linear(*args)

    backends.register(backends.Backend("fake", {"masked_linear": op}, lambda device: state["reason"]))
    yield calls, state
    backends._backends.pop("fake")


def operands():
    return torch.randn(3, 8), torch.randn(5, 8), Mask.random((5, 8), 0.5)


def test_order_and_restriction(fake):
    calls, state = fake
    assert backends.names() == ["cpu", "cuda", "triton", "fake", "reference"]
    masked_linear(*operands())
    assert not calls
    with (
        maskfuse.use_backend("fake"),
        pytest.raises(RuntimeError, match=r"'fake' cannot run masked_linear on cpu: made up"),
    ):
        masked_linear(*operands())
    state["reason"] = None
    with maskfuse.use_backend("fake"):
        masked_linear(*operands())
        with maskfuse.use_backend("reference"):
            masked_linear(*operands())
        assert len(calls) == 1
    masked_linear(*operands())
    assert len(calls) == 1


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match=r"one of cpu, cuda, triton, reference; got 'gpu'"),
        maskfuse.use_backend("gpu"),
    ):
        pass


def test_choice_belongs_to_the_thread():
    seen = []
    with maskfuse.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.choose("masked_linear", "cpu").name))
        thread.start()
        thread.join()
        seen.append(backends.choose("masked_linear", "cpu").name)
    assert seen == ["cpu", "reference"]


def test_environment():
    code = "import maskfuse as m, torch; print(m.explain(m.Mask.full((2, 2))).backend)"
    for name, expected in (("reference", "reference"), ("", "cpu")):
        out = run("-c", code, MASKFUSE_BACKEND=name)
        assert out.stdout.strip() == expected, out.stderr
    assert "one of cpu, cuda, triton, reference; got 'tpu'" in run("-c", code, MASKFUSE_BACKEND="tpu").stderr
    level = run("-c", "import torch, maskfuse as m; print(m.build_info()['cpu_level'])", MASKFUSE_CPU="scalar")
    assert level.stdout.strip() == "scalar"
    for call in ("m.build_info()", "m.channel_gather(torch.ones(4096, 64), torch.arange(9))"):
        failed = run("-c", f"import torch, maskfuse as m; {call}", MASKFUSE_CPU="mmx")
        assert "expected scalar, avx2 or avx512" in failed.stderr, call


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


def test_falling_to_the_reference_is_said_once():
    backends._warned.clear()
    with pytest.warns(UserWarning, match=r"on xpu runs as plain PyTorch.*cpu: serves tensors on the CPU only"):
        assert backends.choose("masked_linear", "xpu").name == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.choose("masked_linear", "xpu").name == "reference"
    backends._warned.clear()


def test_explain():
    mask = Mask.random((5, 8), 0.5)
    triton = {"triton": "not asked for" if INTERPRETED else dict(backends.verdicts("masked_linear", "cpu"))["triton"]}
    with maskfuse.use_backend("reference"):
        explanation = maskfuse.explain(mask)
        assert explanation.backend == "reference" and explanation.ruled_out == {
            "cpu": "not asked for",
            "cuda": "serves CUDA tensors only",
            **triton,
        }
    for bad, error in ((torch.nn.ReLU(), TypeError), (Mask.full((3,)), ValueError)):
        with pytest.raises(error, match="layer_or_mask"):
            maskfuse.explain(bad)
    with pytest.raises(TypeError, match=r"dtype must be float32.*int32"):
        maskfuse.explain(mask, dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert maskfuse.explain(mask, device="xpu").backend == "reference"  # nothing ran: nothing to warn of
    with pytest.raises(ValueError, match="batch"):
        maskfuse.explain(mask, batch=-1)


def test_build_info():
    info = maskfuse.build_info()
    assert json.loads(json.dumps(info)) == info
    assert info["torch_abi_target"] == "2.11" and info["cpu_levels"][0] == "scalar"
    assert info["cuda"]["loaded"] == (info["cuda"]["reason"] is None)


def test_command_line():
    out = run("-m", "maskfuse", "info", "--json")
    assert json.loads(out.stdout)["torch"] == torch.__version__, out.stderr
    assert "cpu_level" in run("-m", "maskfuse", "info").stdout
    assert run("-m", "maskfuse", "nonsense").returncode == 2
    assert "demo" in run("-m", "maskfuse", "--help").stdout
