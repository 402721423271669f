"""When a check runs: before the first use of a kernel, once, and what follows from it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import maskfuse
import pytest
import torch
from maskfuse import Mask
from maskfuse._self_test import checks, first_use, record
from maskfuse._self_test.checks import CHECKS
from pretended import chosen, failing, stored
from pretended import pretended as pretended
from test_self_test_checks import CPU, Wrong, drops, needs_simt, simt
from test_self_test_checks import one_thread as one_thread


def test_runs_once_and_is_remembered(pretended):
    assert [chosen(), chosen()] == ["cuda", "cuda"] and pretended.runs == ["masked_linear"]
    assert chosen("gated_linear") == "cuda" and pretended.runs == ["masked_linear", "other"]
    assert chosen("gated_conv2d") == "cuda" and len(pretended.runs) == 2
    assert stored(pretended) == {"masked_linear": None, "other": None}
    pretended.restarted()
    assert chosen() == chosen("gated_linear") == "cuda" and len(pretended.runs) == 2


def test_the_cpu_runs_no_check(pretended):
    assert chosen(device=CPU) == "cpu" and chosen(device="cpu") == "cpu" and not pretended.runs


@pytest.mark.parametrize("field", ["version", "library", "device", "driver"])
def test_any_other_identity_is_tested_again(pretended, field):
    chosen()
    pretended.restarted()
    pretended.who = replace(pretended.who, **{field: "another"})
    chosen()
    assert len(pretended.runs) == 2


def test_each_device_is_tested(pretended):
    chosen()
    pretended.who = replace(pretended.who, device="Another GPU")
    chosen(device=torch.device("cuda", 1))
    chosen(device=torch.device("cuda", 1))
    assert len(pretended.runs) == 2


def test_a_mismatch_falls_back_and_says_what_to_report(pretended):
    failing(pretended)
    with pytest.warns(UserWarning) as caught:
        assert chosen() == "reference"
    texts = [str(w.message) for w in caught]
    assert len(texts) == 2
    for part in ("masked_linear", "Pretended GPU", "forward: 1 of 9 elements differ", "580.1", '"torch_abi_target"'):
        assert part in texts[0]
    assert "failed its self-test" in texts[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == "reference"
        assert chosen("gated_linear") == "cuda"  # which passed
    explanation = maskfuse.explain(Mask.full((2, 3)), device="cuda:0")
    assert explanation.backend == "reference"
    reason = "failed its self-test (masked_linear: forward: 1 of 9 elements differ)"
    assert explanation.ruled_out["cuda"] == reason and reason in str(explanation)
    with (
        maskfuse.use_backend("cuda"),
        pytest.raises(RuntimeError, match=r"'cuda' cannot run masked_linear on cuda: failed its self-test"),
    ):
        chosen()
    assert pretended.runs == ["masked_linear", "other"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mismatch_is_remembered_and_tried_again_with_another_driver(pretended):
    failing(pretended)
    assert chosen() == "reference" and stored(pretended) == {"masked_linear": "forward: 1 of 9 elements differ"}
    pretended.restarted()
    pretended.errors.clear()
    with pytest.warns(UserWarning, match="failed their self-test"):  # each process says it
        assert chosen() == "reference"
    assert len(pretended.runs) == 1
    pretended.restarted()
    pretended.who = replace(pretended.who, driver="590.2")
    assert chosen() == "cuda" and len(pretended.runs) == 2


def test_what_the_package_knows_is_not_run(pretended):
    def entry(**other):
        return {"version": "1.2", "device": "Pretended GPU", "checks": ["masked_linear"], **other}

    for entries, runs in (
        ([], 1),
        ([entry(version="1.1")], 1),
        ([entry(device="Pretended GPU 2")], 1),
        ([entry(checks=["other"])], 1),
        ([entry(checks=["other"]), entry()], 0),
    ):
        record._PACKAGE_RECORD.write_text(json.dumps(entries))
        record.path().unlink(missing_ok=True)
        pretended.restarted()
        pretended.runs.clear()
        assert chosen() == "cuda" and len(pretended.runs) == runs, entries
    assert not record.path().exists()


def test_off(pretended, monkeypatch):
    failing(pretended)
    monkeypatch.setattr(first_use, "_off", True)
    assert chosen() == "cuda" and not pretended.runs and not record.path().exists()


def test_off_by_the_environment():
    code = "from maskfuse._self_test import first_use; print(first_use._off)"
    for value, expected in (("0", "True"), ("1", "False"), ("", "False")):
        environment = {**os.environ, "MASKFUSE_SELF_TEST": value}
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
        assert out.stdout.strip() == expected, out.stderr


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no memory"), RuntimeError("CUDA out of memory"), checks.DeviceLost("an illegal access")],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_of_a_kernel_is_not_remembered(pretended, error):
    failing(pretended, error)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == "cuda"
    assert not record.path().exists()
    chosen()
    assert len(pretended.runs) == 1
    pretended.restarted()
    chosen()
    assert len(pretended.runs) == 2


def test_threads_share_one_run(pretended):
    started = threading.Barrier(6)

    def work():
        started.wait()
        chosen()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert pretended.runs == ["masked_linear"]


@needs_simt
@pytest.mark.filterwarnings("ignore:maskfuse. masked_linear on cuda runs as plain PyTorch")
@pytest.mark.parametrize("right", [True, False])
def test_the_checks_themselves_decide(pretended, monkeypatch, right):
    """The real table, on the device's kernels run on the host."""
    ops = simt() if right else Wrong(simt(), "soft_masked_linear", drops)
    monkeypatch.setattr(checks, "CHECKS", CHECKS)
    monkeypatch.setattr(checks, "NEEDS", {"masked_linear": ("mask", "soft_masked_linear")})
    monkeypatch.setattr(first_use, "kernels", lambda index: (ops, CPU))
    with contextlib.nullcontext() if right else pytest.warns(UserWarning, match="CUDA kernels of soft_masked_linear"):
        assert chosen() == ("cuda" if right else "reference")
    assert stored(pretended)["mask"] is None and (stored(pretended)["soft_masked_linear"] is None) == right
