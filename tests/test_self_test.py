"""`self_test` and the command line. What it runs: test_self_test_checks.py; what runs by itself: _first_use.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import maskfuse
import pytest
import torch
from maskfuse import Mask
from maskfuse._self_test import checks, compare, run
from maskfuse._self_test.checks import CHECKS, Check
from pretended import chosen, failing, stored
from pretended import pretended as pretended
from test_self_test_checks import CPU
from test_self_test_checks import one_thread as one_thread


def test_self_test_of_the_cpu():
    level = torch.ops.maskfuse.cpu_level()
    result = maskfuse.self_test("cpu")
    assert result.passed and not result.failures
    assert torch.ops.maskfuse.cpu_level() == level
    for name in maskfuse.build_info()["cpu_levels"]:
        found = {outcome.check for outcome in result.outcomes if outcome.device == f"cpu {name}"}
        assert {*CHECKS} - {"masked_copy"} <= found and ("masked_conv2d direct" in found) == (name != "scalar")
    assert all(outcome.milliseconds > 0 and outcome.error is None for outcome in result.outcomes)
    assert f"{len(result.outcomes)} of {len(result.outcomes)} checks passed" in str(result)
    assert json.loads(json.dumps(result.as_dict()))["passed"] is True


def test_a_failing_kernel_is_in_the_result(monkeypatch):
    def wrong(ops, device):
        if torch.ops.maskfuse.cpu_level() == "scalar":
            raise compare.Mismatch("forward: wrong")

    level = torch.ops.maskfuse.set_cpu_level("scalar")
    monkeypatch.setattr(run, "CHECKS", {"made_up": Check("made_up", (), wrong)})
    result = maskfuse.self_test("cpu")
    assert torch.ops.maskfuse.set_cpu_level(level) == "scalar"  # as it was, not the last one tested
    assert not result.passed and [(o.check, o.device, o.error) for o in result.failures] == [
        ("made_up", "cpu scalar", "forward: wrong")
    ]
    text = str(result)
    assert "FAILED  made_up" in text and "made_up on cpu scalar: forward: wrong" in text
    assert ("passed  made_up" in text) == (len(result.outcomes) > 1)


def test_each_preferred_kernel_is_taken_and_let_go(monkeypatch):
    seen = []
    mask = Mask.random((70, 70), 0.5)

    def look(ops, device):
        listed = ops.masked_linear_candidates("weight_grad", 37, mask.bits, 70, mask.plan, torch.float32)
        seen.append(listed.split()[0])

    monkeypatch.setattr(run, "CHECKS", {"masked_linear": Check("masked_linear", (), look)})
    monkeypatch.setattr(run, "_CPU_KERNELS", {"masked_linear": ("tiled", "sampled")})
    look(torch.ops.maskfuse, CPU)
    maskfuse.self_test("cpu")
    look(torch.ops.maskfuse, CPU)
    assert seen[0] == seen[-1] != "sampled"
    assert ("sampled" in seen) == (len(maskfuse.build_info()["cpu_levels"]) > 1)


def test_self_test_of_a_device_settles_its_record(pretended, monkeypatch):
    """What failed before is used again once it passes, and the other way round."""
    monkeypatch.setattr(run, "CHECKS", checks.CHECKS)
    monkeypatch.setattr(run, "_cuda_devices", lambda: [0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Pretended GPU")
    failing(pretended)
    with pytest.warns(UserWarning):
        assert chosen() == "reference"
    pretended.errors.clear()
    result = maskfuse.self_test("cuda:0")
    assert result.passed and [o.device for o in result.outcomes] == ["cuda:0 Pretended GPU"] * 2
    assert chosen() == "cuda" and stored(pretended) == {"masked_linear": None, "other": None}
    failing(pretended)
    assert [o.check for o in maskfuse.self_test("cuda").failures] == ["masked_linear"]
    assert chosen() == "reference" and stored(pretended)["masked_linear"] == "forward: 1 of 9 elements differ"
    failing(pretended, torch.OutOfMemoryError("CUDA out of memory"))
    assert not maskfuse.self_test("cuda").passed
    assert stored(pretended)["masked_linear"] == "forward: 1 of 9 elements differ"


def test_self_test_of_what_is_not_there():
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'xpu'"):
        maskfuse.self_test("xpu")
    with pytest.raises(ValueError, match="device is 'cuda:77', which cannot be tested"):
        maskfuse.self_test("cuda:77")


GPU_PASSES = Path(__file__).resolve().parent.parent / "bench/gpu_passes.py"
needs_repository = pytest.mark.skipif(not GPU_PASSES.exists(), reason="needs the repository around it")


@needs_repository
def test_the_package_record_is_what_the_results_say():
    out = subprocess.run([sys.executable, str(GPU_PASSES), "--check"], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stdout + out.stderr


@needs_repository
def test_passes_of_results(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(GPU_PASSES.parent))
    import gpu_passes

    monkeypatch.setattr(gpu_passes, "unchanged_since", lambda commit: commit == "abc")

    def result(*outcomes, **other):
        lines = [
            {"check": check, "device": device, "passed": passed, "error": None, "milliseconds": 1.0}
            for check, device, passed in outcomes
        ]
        return {"commit": "abc", "self_test": {"version": "1.0", "passed": True, "outcomes": lines}, **other}

    a, b = "cuda:0 A GPU", "cuda:1 A GPU"
    both = result(("mask", a, True), ("masked_linear", a, True), ("mask", "cpu avx2", True))
    entry = {"version": "1.0", "device": "A GPU", "checks": ["mask", "masked_linear"]}

    def passes(**files):
        for file in tmp_path.glob("*.json"):
            file.unlink()
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return gpu_passes.passes(tmp_path)[0]

    assert passes() == [] and passes(a={"rows": []}, b=[]) == []
    assert passes(a=both) == [entry]
    assert passes(a={**both, "commit": "abd"}) == []  # kernels have changed since
    assert passes(a={**both, "self_test": {**both["self_test"], "version": "in place"}}) == []
    # What fails once has not passed, whichever file and device of that model it was.
    assert passes(a=both, b=result(("mask", b, False)))[0]["checks"] == ["masked_linear"]
    assert passes(a=result(("mask", a, True)), b=result(("gated_linear", b, True)))[0]["checks"] == [
        "gated_linear",
        "mask",
    ]


def test_command_line(monkeypatch, capsys):
    from maskfuse.__main__ import main

    passed = run.SelfTest((run.Outcome("mask", "cpu scalar", True, None, 1.5),))
    failed = run.SelfTest((run.Outcome("mask", "cpu scalar", False, "wrong", 1.5),))
    for result, status in ((passed, 0), (failed, 1)):
        monkeypatch.setattr("maskfuse._cli.commands.run_self_test", lambda result=result: result)
        assert main(["self-test"]) == status
        assert capsys.readouterr().out == f"{result}\n"
        assert main(["self-test", "--json"]) == status
        assert json.loads(capsys.readouterr().out) == result.as_dict()
