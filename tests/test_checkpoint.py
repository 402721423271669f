"""save_compressed and load_compressed: what comes back, what it takes, into which models, and what is refused."""

from __future__ import annotations

import os
import sys

import maskfuse
import pytest
import torch
from compact import random_mask
from conftest import DTYPES
from maskfuse import Mask, load_compressed, save_compressed
from maskfuse._mask_coding import decode, encode
from maskfuse.nn import CompactConv2d, CompactLinear, GatedLinear, MaskedConv2d, MaskedLinear
from torch import nn

pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def network(linear=MaskedLinear, conv=MaskedConv2d, width=40):
    return nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), linear(72, width), nn.Linear(width, 5))


def masked(model, density=0.3):
    for layer in (model[0], model[3]):
        layer.set_mask(random_mask(layer, density))
    return model


def same_states(a, b):
    assert list(a) == list(b)
    for key, value in a.items():
        assert value.dtype == b[key].dtype and (value.is_meta or torch.equal(value, b[key])), key


@pytest.mark.parametrize("kinds", [(MaskedLinear, MaskedConv2d), (CompactLinear, CompactConv2d)])
@pytest.mark.parametrize("as_given", [lambda m: m, lambda m: m.state_dict()], ids=["module", "state"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(path, kinds, as_given, dtype):
    model = masked(network(*kinds)).to(dtype)
    model[1].num_batches_tracked += 7
    save_compressed(as_given(model), path)
    same_states(load_compressed(path), model.state_dict())
    twin = network(*kinds).to(dtype)
    assert load_compressed(path, twin) is twin
    same_states(twin.state_dict(), model.state_dict())
    assert twin[0].mask == model[0].mask and os.listdir(path.parent) == [path.name]
    for value in load_compressed(path).values():
        value.zero_()  # they are the caller's
    same_states(load_compressed(path), model.state_dict())


@pytest.mark.parametrize("saved", [(MaskedLinear, MaskedConv2d), (CompactLinear, CompactConv2d)])
@pytest.mark.parametrize(
    "loaded", [(MaskedLinear, MaskedConv2d), (CompactLinear, CompactConv2d), (nn.Linear, nn.Conv2d)]
)
@pytest.mark.parametrize("as_given", [lambda m: m, lambda m: m.state_dict()], ids=["module", "state"])
def test_into_other_layers(path, saved, loaded, as_given):
    model, other = masked(network(*saved)), network(*loaded)
    save_compressed(as_given(model), path)
    load_compressed(path, other)
    same_states(maskfuse.dense_state_dict(model), maskfuse.dense_state_dict(other))
    if loaded[0] is not nn.Linear:
        assert other[0].mask == model[0].mask and other[3].mask == model[3].mask


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 0.125), (torch.float64, 0.115), (torch.bfloat16, 0.145), (torch.float16, 0.145)]
)
@pytest.mark.parametrize("kind", ["random", "channels", "blocks", "n:m", "conv"])
def test_size_at_90_percent(path, dtype, most, kind):
    """At most 0.15 of the dense bytes."""
    shape = (512, 512)
    mask = {
        "random": lambda: Mask.random(shape, 0.1),
        "channels": lambda: Mask.channels(shape, out=torch.arange(51)),
        "blocks": lambda: Mask.blocks(torch.rand(64, 64) < 0.1, (8, 8)),
        "n:m": lambda: Mask.n_m(torch.rand(shape), 1, 8) & Mask.random(shape, 0.8),
        "conv": lambda: Mask.random((128, 128, 3, 3), 0.1),
    }[kind]()
    layer = (MaskedConv2d(128, 128, 3, bias=False) if kind == "conv" else MaskedLinear(512, 512, bias=False)).to(dtype)
    layer.set_mask(mask)
    save_compressed(layer, path)
    share = path.stat().st_size / (layer.weight.numel() * layer.weight.element_size())
    assert share <= min(most, 0.15) + 1.1 * max(0, mask.density - 0.1), share


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (1, 32), (0, 4), (4, 0), (40, 6, 3, 3), (200, 33)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.24, 0.3, 0.6, 1.0])
def test_codings(shape, density):
    mask = Mask.random(shape, density)
    coding, data = encode(mask)
    assert data.dim() == 1 and decode(coding, data, shape) == mask
    assert data.numel() * data.element_size() <= 4 * -(-mask.numel // 32) + 4
    assert coding == "bits" or density < 0.6 or mask.numel < 40


def test_coding_by_hand():
    """Gaps of 2, 0, 15, and 280 to behind the last weight."""
    flags = torch.zeros(1, 300, dtype=torch.bool)
    flags[0, [2, 3, 19]] = True
    coding, data = encode(Mask.from_dense(flags))
    assert coding == "gaps" and data.tolist() == [2 | 0 << 4, 15 | 0 << 4, *[255] * 9, 10 | 15 << 4]
    for bad, message in (
        (data[:0], "end with"),
        (data[:-1], "gaps must be of 300 weights|end with"),
        (torch.cat([data, data]), "300 weights"),
        (data.int(), "torch.uint8"),
        (data[None], "one dimension"),
    ):
        with pytest.raises(ValueError, match=message):
            decode("gaps", bad, (1, 300))
    with pytest.raises(ValueError, match="coding must be"):
        decode("zip", data, (1, 300))
    for shape in ((1, 301), (1, 299), (2, 300)):
        with pytest.raises(ValueError, match="weights"):
            decode("gaps", data, shape)
    with pytest.raises(ValueError, match="words"):
        decode("bits", torch.zeros(3, dtype=torch.int32), (1, 23))
    with pytest.raises(ValueError, match="past the last"):
        decode("bits", torch.full((1,), -1, dtype=torch.int32), (1, 23))


def test_retained_values_load_as_zero(path):
    layer = MaskedLinear(40, 30)
    layer.set_mask(Mask.random((30, 40), 0.5), retain=True)
    with torch.no_grad():
        layer.weight[~layer.mask.dense()] = torch.nan
    save_compressed(layer, path)
    other = load_compressed(path, MaskedLinear(40, 30))
    assert torch.equal(other.weight, torch.where(layer.mask.dense(), layer.weight, 0)) and not other._retain


def test_shared_tensors(path):
    """Tied weights are written once and come back tied, in a state as in a model."""
    model = nn.ModuleDict({"a": MaskedLinear(64, 64), "b": MaskedLinear(64, 64), "c": nn.Linear(64, 64, bias=False)})
    model["e"] = nn.Embedding(64, 64)
    model["a"].set_mask(Mask.random((64, 64), 0.5))
    model["b"].weight = model["a"].weight
    model["b"].set_mask(model["a"].mask)
    model["c"].weight = model["a"].weight
    model["d"] = nn.Linear(64, 64)
    model["e"].weight = model["d"].weight
    save_compressed(model, path)
    state = load_compressed(path)
    same_states(state, model.state_dict())
    for one, other in (("a.weight", "b.weight"), ("a.weight", "c.weight"), ("d.weight", "e.weight")):
        assert state[one].data_ptr() == state[other].data_ptr()
    assert path.stat().st_size < 64 * 64 * 4 * 2
    twin = nn.ModuleDict({"a": CompactLinear(64, 64), "b": MaskedLinear(64, 64), "c": nn.Linear(64, 64, bias=False)})
    twin["e"], twin["d"] = nn.Embedding(64, 64), nn.Linear(64, 64)
    load_compressed(path, twin)
    for name in "abc":
        assert torch.equal(twin[name].weight, model["a"].weight)
    # Where something else is masked, or lost, they are written apart.
    model["b"].set_mask(Mask.full((64, 64)))
    save_compressed(model, path)
    same_states(load_compressed(path), model.state_dict())
    model["a"].set_mask(Mask.random((64, 64), 0.2), retain=True)
    save_compressed(model, path)
    state = load_compressed(path)
    assert torch.equal(state["c.weight"], model["c"].weight)
    assert torch.equal(state["a.weight"], model["a"].to_dense().weight)


def test_overlapping_and_other_entries(path):
    base = torch.arange(12.0)
    state = {
        "whole": base,
        "part": base[2:7],
        "turned": base.reshape(3, 4).T,
        "again": base,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "mask_bits": torch.arange(4, dtype=torch.int32),  # of no layer
        "half": torch.randn(3).half(),
    }
    save_compressed(state, path)
    loaded = load_compressed(path)
    same_states(loaded, state)
    assert loaded["whole"].data_ptr() == loaded["again"].data_ptr() != loaded["part"].data_ptr()
    gated = nn.Sequential(GatedLinear(8, 4))
    save_compressed(gated, path)
    other = load_compressed(path, nn.Sequential(GatedLinear(8, 4)))
    same_states(other.state_dict(), gated.state_dict())
    save_compressed({}, path)
    assert load_compressed(path) == {}


class WithExtraState(nn.Module):
    def get_extra_state(self):
        return {"a": 1}


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (3, TypeError, "nn.Module or a state_dict, got int"),
        (WithExtraState(), TypeError, "'_extra_state' must be a tensor, got dict"),
        (MaskedLinear(4, 4, device="meta"), ValueError, "'weight' .* on meta"),
        ({"w": torch.ones(2, 2).to_sparse()}, ValueError, "'w' .* layout torch.sparse_coo"),
        (
            {"weight": torch.ones(4, 4), "mask_bits": torch.ones(3, 1, dtype=torch.int32)},
            ValueError,
            r"'mask_bits'.*\[4, 1\]",
        ),
        ({"a.weight": torch.ones(4, 4), "a.mask_bits": torch.ones(4, 1)}, ValueError, "'a.mask_bits'.*int32"),
        ({"values": torch.ones(3), "mask_bits": torch.ones(4, 1, dtype=torch.int32)}, ValueError, r"'values'.*\[4\]"),
    ],
)
def test_bad_sources(path, source, error, message):
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        save_compressed(source, path)
    assert path.read_bytes() == b"before" and os.listdir(path.parent) == [path.name]


def test_readers_of_the_old_file_keep_it(path):
    """It is replaced, not written over."""
    save_compressed(nn.Linear(2, 2), path)
    before = path.read_bytes()
    with open(path, "rb") as file:
        save_compressed(nn.Linear(3, 3), path)
        assert file.read() == before != path.read_bytes()


def test_failed_writes_leave_what_was_there(path, monkeypatch):
    import safetensors.torch

    save_compressed(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def breaks(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", breaks)
    with pytest.raises(OSError, match="disk full"):
        save_compressed(nn.Linear(2, 2), path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_compressed(nn.Linear(2, 2), path / "below" / "file")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(MaskedLinear, MaskedConv2d, 41), r"'3.mask_bits' must be of shape \[41, 72\].*got \[40, 72\]"),
        (lambda: network(CompactLinear, CompactConv2d, 41), r"'3.mask_bits' must be of shape \[41, 72\]"),
        (lambda: network(nn.Linear, nn.Conv2d, 41), r"'3.mask_bits' must be of shape \[41, 72\]"),
        (lambda: network().append(nn.Linear(5, 5)), "lacks '5.bias', '5.weight'"),
        (lambda: network().to("meta"), "'0.weight' of the model must have its values here, and is on meta"),
        (lambda: network()[:4], "the model lacks '4.bias', '4.weight'"),
        (lambda: network()[:4].append(nn.Linear(40, 6)), r"'4.weight' must be float32 tensor \[6, 40\]"),
        (lambda: network()[:4].append(GatedLinear(40, 5)), "lacks '4.scores'"),
    ],
)
def test_models_that_do_not_fit_stay_as_they_are(path, other, message):
    save_compressed(masked(network()), path)
    model = other()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
        load_compressed(path, model)
    same_states(model.state_dict(), before)


def test_bad_arguments(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_compressed(path)
    with pytest.raises(FileNotFoundError):
        load_compressed(path.parent)
    save_compressed(nn.Linear(2, 2), path)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module or None, got dict"):
        load_compressed(path, {})


def test_without_safetensors(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: save_compressed(nn.Linear(2, 2), path), lambda: load_compressed(path)):
        with pytest.raises(ImportError, match=r"safetensors: pip install maskfuse\[checkpoint\]"):
            call()
