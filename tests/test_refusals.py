"""What is refused on the way to an op, a file or a whole model, and what the message says of it."""

from __future__ import annotations

import importlib
import re

import maskfuse
import pytest
import torch
from maskfuse import Mask
from maskfuse._compact.check import differs
from maskfuse.nn import MaskedLinear
from torch import nn

library = importlib.import_module("maskfuse._library")


def refuses(error, message, call, *arguments, **keywords):
    with pytest.raises(error, match=re.escape(message)):
        call(*arguments, **keywords)


def test_masks_of_two_devices():
    message = "masks combined with & must be on one device, got cpu and meta"
    refuses(ValueError, message, Mask.__and__, Mask.full((2, 3)), Mask.full((2, 3), device="meta"))


@pytest.mark.parametrize(
    ("inp", "message"),
    [
        (torch.ones(3, dtype=torch.bool, device="meta"), "out and inp must be on one device, got cpu and meta"),
        (torch.ones(1, 3, dtype=torch.bool), "inp must have one dimension, got shape [1, 3]"),
    ],
)
def test_channels_of_a_mask(inp, message):
    refuses(ValueError, message, Mask.channels, (2, 3), out=torch.ones(2, dtype=torch.bool), inp=inp)


def test_scores_of_another_shape():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(4, 2, 3, 3)
    message = "scores must have the shape of weight, [4, 2, 3, 3], got [4, 2, 1, 1]"
    refuses(ValueError, message, maskfuse.gated_conv2d, x, weight, torch.randn(4, 2, 1, 1))


def test_no_backend_named():
    refuses(TypeError, "needs the name of a backend", maskfuse.use_backend().__enter__)


def test_a_library_that_cannot_be_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert library._load("_C") == "_C was not built"
    assert library._load("_C_cuda") == "_C_cuda was not built (see MASKFUSE_CUDA in setup.py)"
    (tmp_path / "_C.abi3.so").write_bytes(b"no library")
    assert library._load("_C").startswith("_C.abi3.so could not be loaded: ")


def test_what_the_file_format_cannot_write(monkeypatch, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")

    def save_file(*_):
        raise RuntimeError("no such dtype")

    monkeypatch.setattr(safetensors, "save_file", save_file)
    layer, path = MaskedLinear(4, 4, mask=Mask.random((4, 4), 0.5)), tmp_path / "model.safetensors"
    refuses(ValueError, f"{path} cannot be written: RuntimeError: no such dtype", maskfuse.save_compressed, layer, path)
    assert not list(tmp_path.iterdir())


def test_a_file_whose_other_layers_do_not_fit(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    maskfuse.save_compressed(nn.Sequential(MaskedLinear(4, 4), nn.Linear(4, 3)), path)
    other = nn.Sequential(MaskedLinear(4, 4), nn.Linear(4, 2))
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*1.weight"):
        maskfuse.load_compressed(path, other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_fold_of_a_computed_weight():
    layer = MaskedLinear(4, 4)
    computed = layer.weight.detach() * 2
    del layer._parameters["weight"]
    layer.weight = computed
    message = "weight of layer '0' must be a parameter, not computed from others"
    refuses(TypeError, message, maskfuse.fold, nn.Sequential(layer))


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        ([torch.ones(2)], "1 tensors instead of 2"),
        ([torch.ones(3), torch.zeros(2, dtype=torch.int64)], "shape [3] instead of [2]"),
        ([torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.int64)], "1 apart, where the largest value is 1 and"),
        ([torch.ones(2), torch.ones(2, dtype=torch.int64)], None),  # an index may change with the last bit of values
    ],
)
def test_results_of_a_cut_model_that_differ(got, reason):
    said = differs(got, [torch.ones(2), torch.zeros(2, dtype=torch.int64)], None)
    assert said is None if reason is None else said.startswith(reason)
