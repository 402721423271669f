"""`python -m maskfuse`: JSON alone on standard output, one line for what a person can mend, and the exit status."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import subprocess
import sys

import maskfuse
import pytest
import torch
from maskfuse import Mask, convert
from maskfuse.__main__ import main
from torch import nn

COMMANDS = ("info", "self-test", "bench", "report", "demo")


@pytest.fixture
def run(capfd, monkeypatch):
    """Runs a command in this process: (exit status, standard output, standard error)."""
    monkeypatch.setattr("maskfuse._bench.run.BUDGET", {True: 0.0, False: 0.0})

    def call(*arguments):
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as exit:
            status = exit.code
        return status, *capfd.readouterr()

    return call


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "maskfuse", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(convert(nn.Sequential(nn.Linear(64, 32)), 0.25).state_dict(), path)
    return path


def test_no_arguments_unknown_commands_and_options(run):
    status, out, err = run()
    assert status == 2 and not out and all(command in err for command in COMMANDS)
    for arguments in (["nonsense"], ["info", "--nonsense"], ["report"], ["bench", "--device", "tpu"]):
        status, out, err = run(*arguments)
        assert status == 2 and not out and "error: " in err and "Traceback" not in err, arguments


def test_help_and_version(run):
    status, out, _ = run("--help")
    assert status == 0 and all(command in out for command in COMMANDS)
    for command in COMMANDS:
        status, out, _ = run(command, "--help")
        assert status == 0 and "--json" in out, command
    assert maskfuse.__version__ == maskfuse.build_info()["version"]
    assert run("--version") == (0, f"maskfuse {maskfuse.__version__}\n", "")


def test_info(run):
    status, out, err = run("info", "--json")
    found = json.loads(out)
    assert status == 0 and not err
    assert {key: found[key] for key in maskfuse.build_info()} == maskfuse.build_info()
    status, out, _ = run("info")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0 and lines["cpu_level"] == found["cpu_level"] and lines["compiler"]
    assert lines["not_used_on.cpu.cuda"] == "serves CUDA tensors only"
    if not found["cuda"]["loaded"]:
        assert lines["cuda.reason"] == found["cuda"]["reason"] and len(lines["cuda.reason"]) > 10


def test_info_says_what_is_not_installed(run, monkeypatch):
    from maskfuse._cli import info

    monkeypatch.setattr(info, "_OPTIONAL", {"no_such_package_here": "something"})
    assert json.loads(run("info", "--json")[1])["not_installed"] == {"no_such_package_here": "needed by something"}


def test_json_of_the_self_test(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # on a GPU it is recorded
    status, out, err = run("self-test", "--json")
    found = json.loads(out)
    assert status == 0 and not err and found["passed"] and len(found["outcomes"]) > 10


def test_json_of_a_report(run, saved):
    status, out, err = run("report", saved, "--json")
    assert status == 0 and not err and json.loads(out)["layers"][0]["kind"] == "MaskedLinear"


def test_bench(run, tmp_path):
    path = tmp_path / "figures.json"
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(2)
    status, out, err = run("bench", "--quick", "--threads", "1", "--json", "--output", path)
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    found = json.loads(out)
    assert status == 0 and not err and json.loads(path.read_text()) == found
    assert after == 2 and torch.equal(torch.random.get_rng_state(), state)
    assert (found["device"], found["threads"], found["dtype"], found["quick"]) == ("cpu", 1, "float32", True)
    assert {row["op"] for row in found["rows"]} == {"masked_linear", "masked_linear, step", "packed", "masked_conv2d"}
    for row in found["rows"]:
        assert min(row["dense ms"], row["w*m ms"], row["maskfuse ms"]) > 0 and 0 < row["density"] <= 0.5
        for name in ("dense", "w*m"):
            low, high = row[f"vs {name}, quartiles"]
            assert 0 < low <= row[f"vs {name}"] <= high


@pytest.fixture
def measured_bench():
    rows = [
        {"op": "masked_linear", "shape": "4x4", "mask": name, "density": 0.5}
        | {f"{contender} ms": 2.0 for contender in ("dense", "w*m", "maskfuse")}
        | {"vs dense": ratio, "vs w*m": 3.0}
        | {f"vs {contender}, quartiles": [0.5, 4.0] for contender in ("dense", "w*m")}
        for name, ratio in (("one", 0.75), ("two", 1.5))
    ]
    about = {"version": "1", "torch": "2", "device": "cpu", "processor": "a processor", "cpu_level": "avx2"}
    return {**about, "threads": 3, "dtype": "float32", "rows": rows}


def test_the_table_of_bench(run, measured_bench, monkeypatch):
    monkeypatch.setattr("maskfuse._bench.run.measure", lambda *arguments: measured_bench)
    status, out, _ = run("bench")
    lines = out.splitlines()
    assert status == 0 and lines[0] == "maskfuse 1, torch 2, a processor, avx2, 3 threads, float32"
    assert lines[4] == "masked_linear, 4x4" and max(map(len, lines[1:])) <= 80
    assert lines[5].split() == ["one", "2.000", "2.000", "2.000", "0.75", "0.50", "to", "4.00", "3.00"]
    assert len(lines[5]) == len(lines[2]) and lines[6].split()[:1] == ["two"]
    assert "than dense in 1 of 2 cases" in out


def test_the_table_of_bench_in_a_terminal(measured_bench, monkeypatch, capsys):
    pytest.importorskip("rich")
    from maskfuse._bench import text

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text.show(measured_bench)
    printed = capsys.readouterr().out
    (slow,) = re.findall(r"\x1b\[33m(.*?)\x1b", printed)  # what is slower than dense is yellow
    assert slow.split()[0] == "one"
    assert re.sub(r"\x1b\[[0-9;]*m", "", printed).split() == text.plain(measured_bench).split()
    monkeypatch.setitem(sys.modules, "rich.console", None)  # as where rich is not installed
    text.show(measured_bench)
    assert capsys.readouterr().out == text.plain(measured_bench) + "\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(text.progress(["a", "b"])) == ["a", "b"]
    assert "measuring 2 of 2" in capsys.readouterr().err


def test_every_case_of_bench_gives_what_dense_gives():
    from maskfuse._bench.cases import cases
    from maskfuse._bench.run import place_of

    place = place_of("cpu")
    found = list(cases(place, quick=False))
    assert len(found) > 2 * len(list(cases(place, quick=True)))
    small = {(case.op, case.shape): case for case in found}.values()  # one of each: they are large
    for case in small:
        calls = case.calls()
        wanted, got = calls["w*m"](), calls["maskfuse"]()
        if case.op.endswith("step"):
            torch.testing.assert_close(got[0], wanted[0], rtol=1e-3, atol=1e-3)  # the weight's is masked
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_misuse_of_bench(run, tmp_path):
    for arguments, wanted, message in (
        (["--threads", "0"], 2, "must be 1 to"),
        (["--threads", "-1"], 2, "must be 1 to"),
        (["--threads", "1000000"], 2, "processors of this machine, got 1000000"),
        (["--threads", "two"], 2, "must be a whole number, got 'two'"),
        (["--output", tmp_path], 1, "is a folder, not a file"),
        (["--output", tmp_path / "missing/figures.json"], 1, "there is no folder"),
    ):
        status, out, err = run("bench", *arguments)
        assert status == wanted and not out and message in err and "Traceback" not in err, (arguments, err)
    if not torch.cuda.is_available():
        status, out, err = run("bench", "--device", "cuda", "--output", tmp_path / "figures.json")
        assert status == 1 and not out and err.startswith("maskfuse bench: --device cuda: torch")
        assert len(err.splitlines()) == 1
        assert not list(tmp_path.iterdir())  # no empty file is left


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_interrupted_command(run, monkeypatch, tmp_path):
    """One line, the status that shells give, and no empty file."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskfuse._bench.run.measure", interrupted)
    assert run("bench", "--output", tmp_path / "figures.json") == (130, "", "maskfuse bench: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_misuse_of_report(run, tmp_path):
    trapped = tmp_path / "trapped"
    for name, content in {
        "trap.pkl": pickle.dumps({"weight": Trap(trapped)}),
        "trap.safetensors": pickle.dumps(Trap(trapped)),
        "empty.pt": b"",
        "text.pt": b"no tensors\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weight": torch.ones(2), "trap": Trap(trapped)}, tmp_path / "trap.pt")
    files = ["trap.pkl", "trap.safetensors", "trap.pt", "empty.pt", "text.pt", "missing.pt", "."]
    for name in files:
        for options in ([], ["--json"]):
            status, out, err = run("report", tmp_path / name, *options)
            assert status == 1 and not out and len(err.splitlines()) == 1, (name, err)
            assert err.startswith("maskfuse report: "), (name, err)
    assert not trapped.exists()  # nothing was run
    found = process("report", tmp_path / "trap.pkl")  # nor does torch remark on the file
    assert found.returncode == 1 and len(found.stderr.splitlines()) == 1, found.stderr


@pytest.fixture
def measured_demo(monkeypatch):
    """A demo whose figures are made up: tests/test_demo.py runs the real one."""
    for package in ("rich", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    demo = importlib.import_module("maskfuse.demo.run")  # the attribute of that name is its function

    first = {"sparsity": 0.0, "accuracy": 0.9, "pruned": None, "difference": None}
    row = {"sparsity": 0.5, "accuracy": 0.8, "pruned": 0.7, "difference": 1e-6, "vs dense": 2.0, "vs multiplied": 3.0}
    row |= {f"{name} {what}": 1024 for name in demo.NAMES for what in ("ms", "kept")}
    about = {"batch": 4, "parameters": 10, "threads": 1, "torch": "2", "cpu_level": "avx2"}
    monkeypatch.setattr(demo, "_measure", lambda advance: {"rows": [first, row], **about})


def test_demo(run, measured_demo, tmp_path):
    status, out, err = run("demo", "--json", "--output", tmp_path / "out")
    assert status == 0 and "Traceback" not in err
    assert json.loads(out) == json.loads((tmp_path / "out/demo.json").read_text())
    (tmp_path / "file").write_text("")
    status, out, err = run("demo", "--output", tmp_path / "file")
    assert status == 1 and not out and err.startswith("maskfuse demo: ") and len(err.splitlines()) == 1


def test_demo_without_its_packages(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "maskfuse.demo", None)  # as an import that fails
    status, out, err = run("demo", "--output", tmp_path)
    assert status == 1 and not out and "pip install 'maskfuse[demo]'" in err and len(err.splitlines()) == 1


def test_bad_environment():
    for name, message in (("MASKFUSE_CPU", "expected scalar"), ("MASKFUSE_BACKEND", "backends are cpu")):
        found = process("info", **{name: "nonsense"})
        assert found.returncode == 1 and not found.stdout, found
        assert f"{name}=nonsense" in found.stderr and message in found.stderr and "Traceback" not in found.stderr


def test_json_alone_from_a_process():
    found = process("info", "--json", MASKFUSE_CPU="scalar")
    assert found.returncode == 0 and json.loads(found.stdout)["cpu_level"] == "scalar" and not found.stderr


def test_importing_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, maskfuse.__main__\n"
        "names = ('rich', 'matplotlib', 'safetensors', 'sklearn', 'triton', 'transformers', 'torch._dynamo')\n"
        "print([name for name in names if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert found.stdout.strip() == "[]", found.stderr


def test_masks_of_bench_are_what_they_are_called():
    from maskfuse._bench.cases import _blocks, _half_of_channels

    assert _half_of_channels((64, 32)).density == 0.25 and _half_of_channels((64, 32)).structure == "channels"
    blocks = _blocks((64, 64), (16, 16))
    assert isinstance(blocks, Mask) and blocks.structure == "blocks"
