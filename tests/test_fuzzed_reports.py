"""`python -m maskfuse report FILE` of files that somebody damaged or made: a report or one line, no code, no crash."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import pytest
import torch
from drawn import check_examples
from hypothesis import strategies as st
from maskfuse import convert
from maskfuse.__main__ import main
from torch import nn


def reported(capsys, path, expected=(0, 1)):
    """The exit status, and what was printed; an error is one line."""
    status = main(["report", str(path)])
    printed = capsys.readouterr()
    assert status in expected
    assert bool(printed.err) == bool(status) and printed.err.count("\n") == status, printed.err
    return status, printed.out, printed.err


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(40, 30), nn.Conv2d(2, 3, 3)), 0.3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "step": 3}, file)
    return file.getvalue()


def with_pickle(content, change):
    """The archive with another pickle, and checksums that are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return file.getvalue()


def check_file(draw, content, path, capsys):
    def change(data):
        data = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
        return bytes(data[: draw(st.sampled_from([len(data), draw(st.integers(0, len(data)))]))])

    path.write_bytes(with_pickle(content, change) if draw(st.booleans()) else change(content))
    reported(capsys, path)


def test_changed_bytes(content, tmp_path, capsys):
    check_examples(check_file, content=content, path=tmp_path / "model.pt", capsys=capsys)


class Runs:
    """A pickle that makes a folder when it is loaded by somebody who trusts it."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_code_runs(tmp_path, capsys):
    made = tmp_path / "made"
    for state in (Runs(made), {"0.weight": torch.ones(2, 2), "0.mask_bits": Runs(made)}):
        for save in (torch.save, lambda s, p: p.write_bytes(pickle.dumps(s))):
            save(state, tmp_path / "model.pt")
            reported(capsys, tmp_path / "model.pt", expected=(1,))
            assert not made.exists()
    pickle.loads(pickle.dumps(Runs(made)))
    assert made.exists()  # so would it be


def masked(**entries):
    return {"0.weight": torch.ones(4, 3), "0.mask_bits": torch.ones(4, 1, dtype=torch.int32)} | {
        f"0.{name}": t for name, t in entries.items()
    }


ONE = torch.ones(1, dtype=torch.int32)
MADE = {
    "one value for a terabyte": masked(
        weight=ONE.float().expand(1 << 20, 1 << 21), mask_bits=ONE.expand(1 << 20, 65536)
    ),
    "sparse bits": masked(mask_bits=ONE.expand(4, 1).to_sparse()),
    "bits on meta": masked(mask_bits=ONE.expand(4, 1).to("meta")),
    "bits of another shape": masked(mask_bits=ONE.expand(5, 1).clone()),
    "bits past the end": masked(mask_bits=torch.full((4, 1), -1, dtype=torch.int32)),
    "scalar weight": masked(weight=torch.tensor(1.0)),
    "one score for a terabyte": {
        "0.weight": torch.ones(1).expand(1 << 20, 1 << 20),
        "0.scores": torch.ones(1).expand(1 << 20, 1 << 20),
        "0.temperature": torch.ones(()),
    },
    "complex scores": {
        "0.weight": torch.ones(2, 2),
        "0.scores": torch.ones(2, 2, dtype=torch.complex64),
        "0.temperature": torch.ones(()),
    },
}


@pytest.mark.parametrize("what", MADE)
def test_made_by_somebody(what, tmp_path, capsys):
    torch.save(MADE[what], tmp_path / "model.pt")
    status, _, message = reported(capsys, tmp_path / "model.pt", expected=(1,))
    assert status == 1 and "0." in message


def test_states_within_states(tmp_path, capsys):
    """Each is looked at once: two references a level are a million paths at twenty levels."""
    state = {"0.weight": torch.ones(4, 3), "0.mask_bits": ONE.expand(4, 1).clone()}
    for _ in range(60):
        state = {"one": state, "other": state}
    torch.save(state, tmp_path / "model.pt")
    _, out, _ = reported(capsys, tmp_path / "model.pt", expected=(0,))
    assert "4x3" in out


def test_states_deep_within_states(tmp_path, capsys):
    """Deeper than Python calls: a pickle needs no call a level."""
    opened, closed = b"}X\x01\0\0\0x", b"s"  # EMPTY_DICT, "x" ... SETITEM
    path = tmp_path / "model.pt"
    torch.save({}, path)
    deep = b"\x80\x02" + 20000 * opened + b"}" + 20000 * closed + b"."
    path.write_bytes(with_pickle(path.read_bytes(), lambda data: deep))
    _, _, message = reported(capsys, path, expected=(1,))
    assert "no state dict" in message
