"""A device that is made up, with checks that count their runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from maskfuse import backends
from maskfuse._self_test import checks, compare, first_use, record
from maskfuse._self_test.checks import Check
from test_self_test_checks import CPU, GPU
from test_self_test_checks import one_thread as one_thread


class Pretended:
    """A device, with one check, which is made up, for the op masked_linear and one, `other`, for gated_linear."""

    def __init__(self):
        self.runs = []
        self.errors = {}
        self.who = record.Identity("1.2", "100 bytes of 5", "Pretended GPU", "580.1")

    def check(self, name):
        def run(ops, device):
            self.runs.append(name)
            backends.choose("masked_linear", GPU)  # which must not come back here
            if name in self.errors:
                raise self.errors[name]

        return Check(name, (), run)

    def restarted(self):
        """As in a new process."""
        first_use._verdicts.clear()
        first_use._outcomes.clear()
        backends._warned.clear()


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    state = Pretended()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(first_use, "_verdicts", {})
    monkeypatch.setattr(first_use, "_outcomes", {})
    monkeypatch.setattr(first_use, "_off", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(first_use, "kernels", lambda index: (torch.ops.maskfuse, CPU))
    monkeypatch.setattr(record, "identity", lambda index: state.who)
    monkeypatch.setattr(record, "_PACKAGE_RECORD", tmp_path / "gpu_passes.json")
    monkeypatch.setattr(
        checks, "CHECKS", {"masked_linear": state.check("masked_linear"), "other": state.check("other")}
    )
    monkeypatch.setattr(checks, "NEEDS", {"gated_linear": ("other",), "gated_conv2d": ()})
    serves = replace(
        backends._backends["cuda"], refuses=lambda device: None if device.type == "cuda" else "serves CUDA tensors only"
    )
    monkeypatch.setitem(backends._backends, "cuda", serves)
    left_out = replace(backends._backends["triton"], refuses=lambda device: "left out of these tests")
    monkeypatch.setitem(backends._backends, "triton", left_out)
    monkeypatch.setattr(backends, "_warned", set())
    return state


def chosen(op="masked_linear", device=GPU):
    return backends.choose(op, device).name


def failing(pretended, error=None):
    pretended.errors["masked_linear"] = error or compare.Mismatch("forward: 1 of 9 elements differ")


def stored(pretended):
    return json.loads(record.path().read_text())["found"][pretended.who.key]


def use(x):
    return x + 1 if backends.choose("masked_linear", GPU).name == "cuda" else x - 1
