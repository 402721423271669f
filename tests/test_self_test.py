"""The kernels' self-test: when its checks run, and what is remembered of them. The checks: test_self_test_checks.py."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import maskfuse
import maskfuse.mask as mask_module
import pytest
import torch
from maskfuse import Mask, _library, backends
from maskfuse._self_test import checks, compare, first_use, record, run
from maskfuse._self_test.checks import CHECKS, Check
from maskfuse.functional import _backends as functional_backends
from maskfuse.ops.library import pairs
from test_self_test_checks import CPU, GPU, Wrong, drops, needs_simt, simt
from test_self_test_checks import one_thread as one_thread
from torch.fx.experimental.proxy_tensor import make_fx

# -- first use -------------------------------------------------------------------------------------------


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


TRACERS = {
    "compile": lambda use: torch.compile(use, backend="eager", fullgraph=True)(torch.ones(2)),
    "jit": lambda use: torch.jit.trace(use, torch.ones(2), check_trace=False),
    "make_fx": lambda use: make_fx(use)(torch.ones(2)),
    "fake": lambda use: make_fx(use, tracing_mode="fake")(torch.ones(2)),
    "vmap": lambda use: torch.func.vmap(use)(torch.ones(2)),
    "grad": lambda use: torch.func.grad(lambda x: use(x).sum())(torch.ones(2)),
    "export": lambda use: torch.export.export(Calls(use), (torch.ones(2),)),
}


class Calls(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def use(x):
    return x + 1 if backends.choose("masked_linear", GPU).name == "cuda" else x - 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracer", TRACERS)
def test_not_run_while_something_traces(pretended, tracer):
    torch.compiler.reset()
    TRACERS[tracer](use)
    assert not pretended.runs and not first_use._verdicts and not record.path().exists()
    assert torch.equal(use(torch.ones(2)), torch.full((2,), 2.0))
    assert pretended.runs == ["masked_linear"]  # it would have run


def test_not_run_under_capture(pretended, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert chosen() == "cuda"
    assert not pretended.runs and not first_use._verdicts
    chosen()
    assert pretended.runs == ["masked_linear"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_code_takes_what_is_known_and_stays(pretended):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    failing(pretended)
    chosen()
    compiled = torch.compile(use, backend=backend, fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.zeros(2))  # the reference
    chosen("gated_linear")  # one verdict more
    compiled(torch.ones(2))
    assert len(graphs) == 1


def test_code_compiled_before_anything_is_known_stays(pretended):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(use, backend=backend, fullgraph=True)
    compiled(torch.ones(2))
    assert chosen() == "cuda" and pretended.runs == ["masked_linear"]
    compiled(torch.ones(2))
    assert len(graphs) == 1


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


REFUSED = {
    "library": r"_C_cuda was not built",
    "driver": r"the driver is for CUDA 12080, the library needs 13000",
    "capability": r"compute capability 7\.5, the kernels need 8\.0",
}


@pytest.fixture(params=REFUSED)
def refused(request, pretended, monkeypatch):
    """A CUDA torch where our kernels cannot run, and the reason that is given."""
    library = "_C_cuda was not built" if request.param == "library" else None
    versions = {"driver": "12080" if request.param == "driver" else "13000", "runtime": "13000"}
    capability = (7, 5) if request.param == "capability" else (8, 0)
    monkeypatch.setattr(_library, "cuda_reason", library)
    monkeypatch.setattr(functional_backends, "cuda_library_info", lambda: versions)
    monkeypatch.setattr(functional_backends, "_capable", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    real = replace(backends._backends["cuda"], refuses=functional_backends._cuda_refuses)
    monkeypatch.setitem(backends._backends, "cuda", real)
    return REFUSED[request.param]


def test_nothing_is_run_where_the_device_is_refused(pretended, refused, monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", {name: pretended.check(name) for name in ("mask", "masked_linear")})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert mask_module.bit_ops(GPU) is None and mask_module.bit_ops(CPU) is torch.ops.maskfuse
    with pytest.warns(UserWarning, match=refused):
        assert chosen() == "reference"
    assert run._cuda_devices() == []
    with pytest.raises(ValueError, match=f"cannot be tested: {refused}"):
        maskfuse.self_test("cuda")
    assert pretended.runs == [] and not record.path().exists()


@pytest.mark.parametrize("refused", ["driver"], indirect=True)
def test_compiled_code_that_is_the_first_to_ask(pretended, refused, monkeypatch):
    def versions():
        return {**pairs(torch.ops.maskfuse.library_info()), "driver": "12080", "runtime": "13000"}

    monkeypatch.setattr(functional_backends, "cuda_library_info", versions)
    torch.compiler.reset()
    compiled = torch.compile(use, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), torch.zeros(2))  # the reference


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_masks_are_packed_on_the_host_where_the_device_cannot(pretended, monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", {"mask": pretended.check("mask")})
    assert mask_module.bit_ops(GPU) is mask_module.bit_ops(CPU) is torch.ops.maskfuse
    pretended.restarted()
    record.path().unlink()
    pretended.errors["mask"] = compare.Mismatch("mask_pack: 1 of 9 elements differ")
    assert mask_module.bit_ops(GPU) is None and mask_module.bit_ops(CPU) is torch.ops.maskfuse

    dense = torch.rand(70, 90) < 0.5
    bits = Mask.from_dense(dense).bits
    monkeypatch.setattr(mask_module, "bit_ops", lambda device: None)
    mask = Mask.from_dense(dense)
    assert torch.equal(mask.bits, bits) and torch.equal(mask.dense(), dense)


# -- the record ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"format": 1}',
        b'{"format": 1, "found": [1]}',
        b'{"format": 1, "found": {"KEY": 3}}',
        b'{"format": 1, "found": {"KEY": {"masked_linear": 3}}}',
        b'{"format": 2, "found": {"KEY": {"masked_linear": null}}}',
    ],
)
def test_a_corrupt_record_is_ignored_and_replaced(pretended, content):
    record.path().parent.mkdir()
    record.path().write_bytes(content.replace(b"KEY", pretended.who.key.encode()))
    assert chosen() == "cuda" and pretended.runs == ["masked_linear"]
    assert stored(pretended) == {"masked_linear": None}


def test_a_well_formed_record_is_read(pretended):
    """That the corrupt ones above are ignored for what is wrong with them."""
    record.path().parent.mkdir()
    found = {pretended.who.key: {"masked_linear": None}}
    record.path().write_text(json.dumps({"format": 1, "found": found}))
    assert chosen() == "cuda" and not pretended.runs


def test_a_corrupt_package_record_is_ignored(pretended):
    for content in (b"{", b"{}", b"[1]", b'[{"version": "1.2"}]', b"\xff"):
        record._PACKAGE_RECORD.write_bytes(content)
        assert record.passed_in_package(pretended.who) == set()


def unwritable(tmp_path):
    """Where no folder can be made, for root too: below a file."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file")


def test_an_unwritable_directory_is_lived_with(pretended, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", unwritable(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [chosen(), chosen()] == ["cuda", "cuda"]
    assert len(pretended.runs) == 1  # one run each process
    pretended.restarted()
    chosen()
    assert len(pretended.runs) == 2


def test_a_failed_write_leaves_the_old_record_and_no_litter(pretended, monkeypatch):
    chosen()
    before = record.path().read_text()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert not record.remember(pretended.who, {"other": None})
    assert record.path().read_text() == before and os.listdir(record.path().parent) == [record.path().name]


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert record.path() == tmp_path / "cache/maskfuse/self_test.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert record.path() == tmp_path / ".cache/maskfuse/self_test.json"


def test_the_oldest_identities_make_way(pretended):
    def who(number):
        return replace(pretended.who, library=f"library {number}")

    for number in range(record._MOST_KEYS):
        record.remember(who(number), {"mask": None})
    record.remember(who(0), {"other": None})  # the newest again
    record.remember(who(-1), {"mask": None})
    assert record.found(who(0)) == {"mask": None, "other": None}
    assert record.found(who(1)) == {} and record.found(who(2)) == {"mask": None}


def test_concurrent_writers(tmp_path):
    """Readers always find a whole record, and of what is written at the end nothing is missing."""
    code = """if 1:
        import sys
        from maskfuse._self_test import record
        who = record.Identity("1", "library", "device", sys.argv[1])
        for number in range(60):
            assert record.remember(who, {f"check {number}": None})
            record.path().read_text().index('"format"')
            import json; json.loads(record.path().read_text())
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    for writer in writers:
        assert writer.wait(300) == 0, writer.stderr.read()
    file = tmp_path / "maskfuse/self_test.json"
    assert os.listdir(file.parent) == [file.name]
    found = json.loads(file.read_text())["found"]
    assert any("check 59" in outcomes for outcomes in found.values())


def test_identity_of_a_device(monkeypatch, tmp_path):
    library = tmp_path / "_C_cuda.abi3.so"
    library.write_bytes(b"12345")
    monkeypatch.setattr(record._library, "cuda_path", library)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(record, "_driver", lambda: "580.1")
    first = record.identity(3)
    assert first.device == "GPU 3" and first.version == maskfuse.build_info()["version"] and "5 bytes" in first.library
    assert record.identity(3).key == first.key
    library.write_bytes(b"123456")
    assert record.identity(3).key != first.key
    same_size = record.identity(3)
    os.utime(library, ns=(1, 1))
    assert record.identity(3).key != same_size.key  # built again


# -- self_test and the command line ----------------------------------------------------------------------


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
