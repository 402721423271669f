"""Files of save_compressed that are truncated, damaged, or made by somebody: ValueError, and nothing is loaded."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from maskfuse import Mask, _compressed_file, load_compressed, save_compressed
from maskfuse.nn import CompactLinear, MaskedConv2d, MaskedLinear
from torch import nn

save_file = pytest.importorskip("safetensors.torch").save_file


def network():
    model = nn.Sequential(MaskedConv2d(2, 4, 3), nn.Flatten(), MaskedLinear(36, 10), CompactLinear(10, 6))
    generator = torch.Generator().manual_seed(0)
    for layer, density in ((model[0], 0.5), (model[2], 0.1), (model[3], 0.3)):
        layer.set_mask(Mask.random(layer.mask.shape, density, generator))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file's path, its bytes, and the model in it."""
    torch.manual_seed(0)
    path, model = tmp_path_factory.mktemp("saved") / "model.safetensors", network()
    save_compressed(model, path)
    return path, path.read_bytes(), model


def check_refused(path, content, model):
    """Loads what is right, or refuses it and leaves a model as it is."""
    path.write_bytes(content)
    other = network()
    for parameter in other.parameters():
        parameter.data.fill_(7)
    before = copy.deepcopy(other.state_dict())
    try:
        load_compressed(path, other)
    except ValueError as error:
        assert str(path) in str(error)
        after, want = other.state_dict(), before
        refused = True
    else:
        after, want = other.state_dict(), model.state_dict()
        refused = False
    assert all(torch.equal(value, after[key]) for key, value in want.items())
    try:
        load_compressed(path)
    except ValueError as error:
        assert refused and str(path) in str(error)
    return refused


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes(saved, tmp_path, data):
    _, content, model = saved
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        # The header, where most can go wrong, as often as the rest.
        end = data.draw(st.sampled_from([9, 8 + int.from_bytes(content[:8], "little"), len(content)]))
        damaged[data.draw(st.integers(0, end - 1))] ^= data.draw(st.integers(1, 255))
    refused = check_refused(tmp_path / "damaged", bytes(damaged), model)
    assert refused or bytes(damaged)[-8:] == content[-8:]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_and_extended(saved, tmp_path, data):
    _, content, model = saved
    if data.draw(st.booleans()):
        damaged = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        damaged = content + data.draw(st.binary(min_size=1, max_size=20))
    assert check_refused(tmp_path / "damaged", damaged, model)


def test_every_byte_behind_the_header(saved, tmp_path):
    """The checksum sees each of them."""
    content = saved[1]
    header = 8 + int.from_bytes(content[:8], "little")
    for at in range(header, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            load_compressed(tmp_path / "damaged")


def test_other_files(tmp_path):
    path = tmp_path / "other"
    for content in (b"", b"\0" * 8, b"\xff" * 100, pickle.dumps({"a": 1}), b"hello world, this is a text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="other: no safetensors file"):
            load_compressed(path)
    torch.save(network().state_dict(), path)
    with pytest.raises(ValueError, match="no safetensors file"):
        load_compressed(path)
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.ones(2)}, path, metadata)
        with pytest.raises(ValueError, match=r"written by maskfuse\.save_compressed, got format"):
            load_compressed(path)
    save_file({"a": torch.ones(2)}, path, {"format": "maskfuse", "version": "2"})
    with pytest.raises(ValueError, match="of version 1, got '2'"):
        load_compressed(path)
    save_file({"a": torch.ones(2)}, path, {"format": "maskfuse", "version": "1"})
    with pytest.raises(ValueError, match="damaged"):
        load_compressed(path)


def remade(path, saved, change):
    """A file whose checksum is right and whose index or tensors are not."""
    tensors, index = _compressed_file.read(saved)
    tensors = {key: t.clone() for key, t in tensors.items()}
    change(tensors, index)
    _compressed_file.write(path, tensors, index)


CHANGES = {
    "other values": lambda t, i: t.update({"2.weight": t["2.weight"][1:].clone()}),
    "more dimensions": lambda t, i: t.update({"2.weight": t["2.weight"][None].clone()}),
    "integers": lambda t, i: t.update({"3.values": t["3.values"].int()}),
    "other coding": lambda t, i: i["masked"]["2."].update(coding="bits"),
    "unknown coding": lambda t, i: i["masked"]["2."].update(coding="zip"),
    "unhashable coding": lambda t, i: i["masked"]["2."].update(coding=[]),
    "other shape": lambda t, i: i["masked"]["2."].update(shape=[36, 11]),
    "negative shape": lambda t, i: i["masked"]["2."].update(shape=[-36, -10]),
    "huge shape": lambda t, i: i["masked"]["2."].update(shape=[2**39, 2**39]),
    "no numbers": lambda t, i: i["masked"]["2."].update(shape=["36", 10]),
    "booleans": lambda t, i: i["masked"]["2."].update(shape=[True, 360]),
    "no shape": lambda t, i: i["masked"]["2."].update(shape=[]),
    "no name": lambda t, i: i["masked"]["2."].pop("name"),
    "other name": lambda t, i: i["masked"]["2."].update(name="bias"),
    "no list": lambda t, i: i.update(keys=3),
    "fewer keys": lambda t, i: i["keys"].pop(),
    "keys twice": lambda t, i: i["keys"].append("2.bias"),
    "no keys": lambda t, i: i.pop("keys"),
    "a list of masks": lambda t, i: i.update(masked=[]),
    "a mask of nothing": lambda t, i: i["masked"].update({"9.": {"name": "weight", "shape": [1], "coding": "bits"}}),
    "shared with nothing": lambda t, i: i["same"].update({"2.bias": "9.bias"}),
    "shared with itself": lambda t, i: i["same"].update({"2.bias": "2.bias"}),
    "half shared": lambda t, i: (t.pop("2.mask_bits"), i["same"].update({"2.mask_bits": "0.mask_bits"})),
    "cut gaps": lambda t, i: t.update({"2.mask_bits": t["2.mask_bits"][:-1].clone()}),
    "missing tensor": lambda t, i: t.pop("2.bias"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_made_by_somebody(saved, tmp_path, what):
    path = tmp_path / "made"
    remade(path, saved[0], CHANGES[what])
    assert check_refused(path, path.read_bytes(), saved[2])


def test_an_index_that_is_no_index(tmp_path):
    path = tmp_path / "made"
    for index in ([], 3, None, "keys", {"keys": []}, {"keys": None, "masked": None, "same": None}):
        _compressed_file.write(path, {"a": torch.ones(2)}, index)
        with pytest.raises(ValueError, match="made: its index is corrupt"):
            load_compressed(path)
    deep = "[" * 100000
    metadata = {"format": "maskfuse", "version": "1", "index": deep}
    metadata["crc32"] = str(_compressed_file._checksum(metadata, {}))
    save_file({}, path, metadata)
    with pytest.raises(ValueError, match="made: its index is corrupt"):
        load_compressed(path)
