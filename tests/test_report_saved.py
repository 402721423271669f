"""`python -m maskfuse report FILE`: of state dicts, and clear answers to everything else."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import maskfuse
import pytest
import torch
from maskfuse import Mask, convert, report
from maskfuse.__main__ import main
from maskfuse.nn import GatedLinear, MaskedLinear
from torch import nn


def small():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 64), nn.Linear(64, 64))
    model.append(nn.Linear(64, 64))
    model[5].weight = model[4].weight
    return convert(model, {"0": 0.25, "3": 0.1, "[45]": Mask.random((64, 64), 0.5)})


def saved(tmp_path, content, name="model.pt"):
    path = tmp_path / name
    torch.save(content, path)
    return path


def run(capsys, *arguments):
    status = main(["report", *map(str, arguments)])
    return status, capsys.readouterr()


def test_rows_and_sums_are_the_models(tmp_path, capsys):
    model = small()
    status, printed = run(capsys, saved(tmp_path, model.state_dict()), "--json", "--batch", 7)
    assert status == 0 and not printed.err
    found, want = json.loads(printed.out), report(model, batch=7).as_dict()
    for row, of_model in zip(found["layers"], want["layers"], strict=True):
        for key in ("name", "kind", "shape", "structure", "dtype", "active", "density", "shares", "bytes", "kernel"):
            assert row[key] == of_model[key], key
    buffers = sum(b.numel() for b in model.buffers())
    assert found["totals"]["parameters"] == want["totals"]["parameters"] + buffers
    for key in ("masked_weights", "masked_active", "density"):
        assert found["totals"][key] == want["totals"][key]
    beside = [totals["bytes"] - totals["dense_bytes"] for totals in (found["totals"], want["totals"])]
    assert beside[0] == beside[1] + model[5].mask.nbytes  # a file does not say that layers have one mask together


def compact():
    model = small()
    return nn.Sequential(*(m.to_compact() if hasattr(m, "to_compact") else m for m in model))


@pytest.mark.parametrize("make", [small, compact])
def test_compressed_files(make, tmp_path, capsys):
    pytest.importorskip("safetensors")
    model, path = make(), tmp_path / "model.safetensors"
    maskfuse.save_compressed(model, path)
    status, printed = run(capsys, path, "--json")
    assert status == 0, printed.err
    found, want = json.loads(printed.out), report(model).as_dict()
    for row, of_model in zip(found["layers"], want["layers"], strict=True):
        for key in ("name", "kind", "shape", "structure", "dtype", "active", "density", "shares", "bytes", "kernel"):
            assert row[key] == of_model[key], key
    for key in ("masked_weights", "masked_active", "density"):
        assert found["totals"][key] == want["totals"][key]
    path.write_bytes(path.read_bytes()[:-3] + b"odd")
    status, printed = run(capsys, path)
    assert status == 1 and "damaged" in printed.err


def test_compact_layers_of_a_state_dict_are_named(tmp_path, capsys):
    status, printed = run(capsys, saved(tmp_path, compact().state_dict()))
    assert status == 0 and "not listed: compact layers" in printed.out and ": '0', '3', '4', '5'" in printed.out


def test_text(tmp_path, capsys):
    status, printed = run(capsys, saved(tmp_path, small().state_dict()))
    lines = printed.out.splitlines()
    assert status == 0 and lines[0] == "model.pt" and lines[1].startswith("layer")
    assert lines[3].split()[:3] == ["0", "MaskedConv2d", "8x4x3x3"] and "weight of 4" in printed.out


@pytest.mark.parametrize("wrap", [lambda state: {"epoch": 3, "model": state}, lambda state: {"a": {"b": state}}])
def test_a_state_dict_within_others_is_found(wrap, tmp_path, capsys):
    content = {"optimizer": {"step": torch.ones(3)}} | wrap(small().state_dict())
    status, printed = run(capsys, saved(tmp_path, content), "--json")
    assert status == 0 and [row["name"] for row in json.loads(printed.out)["layers"]] == ["0", "3", "4", "5"]


def test_gated_layers_and_a_single_layer(tmp_path, capsys):
    gated = GatedLinear(8, 4, kind="hard_concrete", temperature=0.3)
    with torch.no_grad():
        gated.scores[0] = -1
    status, printed = run(capsys, saved(tmp_path, nn.Sequential(gated).state_dict()), "--json")
    (row,) = json.loads(printed.out)["layers"]
    assert status == 0 and (row["kind"], row["structure"], row["active"]) == ("GatedLinear", "gates", 24)
    assert json.loads(printed.out)["totals"]["parameters"] == 36
    status, printed = run(capsys, saved(tmp_path, MaskedLinear(8, 4).state_dict()), "--json")
    (row,) = json.loads(printed.out)["layers"]
    assert status == 0 and row["name"] == "" and row["structure"] == "full"


def test_names_are_escaped(tmp_path, capsys):
    """A file's names are whoever's wrote it: they neither break a line nor steer a terminal."""
    state = {f"one\n\x1b[31m\u202e{key}": value for key, value in MaskedLinear(8, 4).state_dict(prefix="é.").items()}
    path = saved(tmp_path, state)
    status, printed = run(capsys, path)
    assert status == 0 and r"one\n\x1b[31m\u202eé " in printed.out and not {"\x1b", "\u202e"} & set(printed.out)
    del state["one\n\x1b[31m\u202eé.weight"]
    state["one\n\x1b[31m\u202eé.values"] = torch.ones(3)
    status, printed = run(capsys, saved(tmp_path, state))  # named in a note
    assert status == 0 and r"one\n\x1b[31m\u202eé" in printed.out and not {"\x1b", "\u202e"} & set(printed.out)
    state = {"a\nb.mask_bits": torch.zeros(1), "a\nb.weight": torch.zeros(1, 1)}
    status, printed = run(capsys, saved(tmp_path, state))  # in a message
    assert status == 1 and r"a\nb.mask_bits" in printed.err and len(printed.err.splitlines()) == 1


def test_one_row_is_one_row(tmp_path, capsys):
    path = saved(tmp_path, small().state_dict())
    assert "linear layers, 1 row, on the CPU" in run(capsys, path)[1].out
    assert "linear layers, 2 rows, on the CPU" in run(capsys, path, "--batch", 2)[1].out


def test_no_masks(tmp_path, capsys):
    status, printed = run(capsys, saved(tmp_path, nn.Linear(3, 3).state_dict()))
    assert status == 0 and "no layer is masked" in printed.out
    status, printed = run(capsys, saved(tmp_path, nn.Linear(3, 3).state_dict()), "--plot", tmp_path / "masks.png")
    assert status == 1 and "nothing to plot" in printed.err and not (tmp_path / "masks.png").exists()


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "masks.png"
    status, _ = run(capsys, saved(tmp_path, small().state_dict()), "--plot", picture)
    assert status == 0 and picture.read_bytes().startswith(b"\x89PNG")
    status, printed = run(capsys, saved(tmp_path, small().state_dict()), "--plot", tmp_path / "missing" / "masks.png")
    assert status == 1 and printed.err.startswith("maskfuse report: ") and "missing" in printed.err


def test_safetensors(tmp_path, capsys):
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = convert(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)), 0.25).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    status, printed = run(capsys, tmp_path / "model.safetensors", "--json")
    assert status == 0 and [row["active"] for row in json.loads(printed.out)["layers"]] == [1024, 128]
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    status, printed = run(capsys, tmp_path / "bad.safetensors")
    assert status == 1 and "is no safetensors file" in printed.err


def test_sparse_tensors(tmp_path, capsys):
    status, printed = run(capsys, saved(tmp_path, {"a.weight": torch.eye(3).to_sparse(), **small().state_dict()}))
    assert status == 0 and "MaskedConv2d" in printed.out


def test_weights_of_other_dimensions(tmp_path, capsys):
    state = {"weight": torch.ones(3, 3, 4), "mask_bits": torch.ones(3, 1, dtype=torch.int32)}
    status, printed = run(capsys, saved(tmp_path, state))
    assert status == 0 and "3x3x4" in printed.out, printed.err


class Trap:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return open, ("trapped", "w")


def test_files_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage.pt").write_bytes(b"\x89 this is no archive")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    whole = saved(tmp_path, small().state_dict()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    saved(tmp_path, small(), "module.pt")
    saved(tmp_path, {"0.weight": Trap()}, "trap.pt")
    saved(tmp_path, [1, 2], "list.pt")
    broken = small().state_dict()
    broken["0.mask_bits"] = broken["0.mask_bits"][:3]
    saved(tmp_path, broken, "broken.pt")
    itself = {"epoch": 3}
    itself["before"] = itself
    saved(tmp_path, itself, "itself.pt")
    saved(tmp_path, {"weight": torch.ones(3, 3), "mask_bits": torch.ones(3, 1).int().to("meta")}, "meta.pt")
    for name, message in {
        "none.pt": "there is no file none.pt",
        ".": "is a folder",
        "garbage.pt": "garbage.pt is no file of torch.save",
        "empty.pt": "empty.pt is no file of torch.save",
        "cut.pt": "cut.pt is no file of torch.save",
        "pickle.pt": "pickle.pt",
        "module.pt": "holds more than tensors (torch.nn.modules.container.Sequential), as a pickled module does",
        "trap.pt": "holds more than tensors",
        "list.pt": "holds no state dict",
        "itself.pt": "holds no state dict",
        "meta.pt": "mask_bits: must have values",
        "broken.pt": "0.mask_bits: bits must have shape [8, 2] for a mask of shape [8, 4, 3, 3], got [3, 2]",
    }.items():
        status, printed = run(capsys, name)
        assert status == 1 and not printed.out, name
        assert printed.err.startswith("maskfuse report: ") and message in printed.err, (name, printed.err)
        assert len(printed.err.splitlines()) == 1, name
    assert not (tmp_path / "trapped").exists()  # nothing was run


def test_arguments(capsys, tmp_path):
    for arguments in ([], [str(tmp_path), "--batch", "-1"], [str(tmp_path), "--batch", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(["report", *arguments])
    assert "must not be negative" in capsys.readouterr().err


def test_from_the_command_line(tmp_path):
    path = saved(tmp_path, small().state_dict())
    process = subprocess.run(
        [sys.executable, "-m", "maskfuse", "report", str(path)], capture_output=True, text=True, timeout=100
    )
    assert process.returncode == 0 and "MaskedLinear" in process.stdout, process.stderr


def test_importing_maskfuse_imports_no_package_that_report_uses():
    code = "import sys, maskfuse; print([n for n in ('rich', 'matplotlib', 'safetensors') if n in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert process.stdout.strip() == "[]", process.stderr
    assert maskfuse.report is report
