"""MaskedLinear as an nn.Linear: construction, masks, state, copies, devices, averaging, training."""

from __future__ import annotations

import copy
import sys

import maskfuse
import pytest
import torch
from copies import pickled, through_a_file
from maskfuse import Mask
from maskfuse.nn import MaskedLinear, freeze, frozen_mask
from torch import nn
from torch.optim.swa_utils import AveragedModel

OUT, IN = 6, 40


@pytest.fixture
def mask():
    return Mask.random((OUT, IN), 0.5)


def under(layer):
    """The weights under the mask."""
    return layer.weight.detach()[~layer.mask.dense()]


def test_is_a_linear_layer():
    torch.manual_seed(1)
    layer = MaskedLinear(IN, OUT)
    torch.manual_seed(1)
    plain = nn.Linear(IN, OUT)
    assert isinstance(layer, nn.Linear)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"] and not list(layer.buffers())
    assert torch.equal(layer.weight, plain.weight) and layer.mask.structure == "full"
    x = torch.randn(3, IN)
    torch.testing.assert_close(layer(x), plain(x))
    assert MaskedLinear(IN, OUT, bias=False).bias is None


def test_set_mask_writes_zero_under_the_mask(mask):
    layer = MaskedLinear(IN, OUT)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    mask = mask & Mask.from_dense(
        torch.ones(OUT, IN, dtype=torch.bool).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(False))
    )
    layer.set_mask(mask)
    assert not under(layer).any()
    assert torch.equal(layer.weight[mask.dense()], before[mask.dense()])
    layer.reset_parameters()
    assert not under(layer).any() and layer.weight.any()
    layer.set_mask(mask, retain=True)
    layer.reset_parameters()
    assert under(layer).any()  # new values, kept as the old ones were


def test_retain_keeps_values_that_contribute_nothing(mask):
    layer = MaskedLinear(IN, OUT)
    before = layer.weight.detach().clone()
    layer.set_mask(mask, retain=True)
    assert torch.equal(layer.weight, before)
    x = torch.randn(3, IN)
    y = layer(x)
    layer.set_mask(mask)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("as_given", [lambda m: m, lambda m: m.dense(), lambda m: m.dense().int()])
def test_masks_of_every_kind(mask, as_given):
    assert MaskedLinear(IN, OUT, mask=as_given(mask)).mask == mask


def test_bad_masks_change_nothing(mask):
    layer = MaskedLinear(IN, OUT, mask=mask)
    weight = layer.weight.detach().clone()
    for bad, error, message in (
        (torch.rand(OUT, IN), TypeError, "binary"),
        (torch.ones(IN, OUT, dtype=torch.bool), ValueError, r"\[out, in\].*\[in, out\]"),
        (torch.full((OUT, IN), 2), ValueError, "0 or 1"),
        (Mask.full((OUT, IN + 1)), ValueError, r"\[6, 40\], got \[6, 41\]"),
        ("half", TypeError, "str"),
    ):
        with pytest.raises(error, match=message):
            layer.set_mask(bad)
        assert layer.mask == mask and torch.equal(layer.weight, weight)


def test_from_dense_and_back(mask):
    plain = nn.Linear(IN, OUT, dtype=torch.float64).eval()
    plain.bias.requires_grad_(False)
    weight = plain.weight.detach().clone()
    state = torch.get_rng_state()
    layer = MaskedLinear.from_dense(plain, mask)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert torch.equal(plain.weight, weight)  # the plain layer is untouched
    assert layer.weight.dtype == torch.float64 and not layer.training and not layer.bias.requires_grad
    x = torch.randn(3, IN, dtype=torch.float64)
    folded = layer.to_dense()
    assert type(folded) is nn.Linear and not folded.training and not folded.bias.requires_grad
    torch.testing.assert_close(folded(x), layer(x))
    assert torch.equal(folded.weight, torch.where(mask.dense(), weight, 0))
    retained = MaskedLinear.from_dense(plain)
    retained.set_mask(mask, retain=True)
    assert torch.equal(retained.to_dense().weight, folded.weight)
    again = MaskedLinear.from_dense(retained)
    assert again.mask == mask and torch.equal(again.weight, weight)
    with pytest.raises(TypeError, match="Conv2d"):
        MaskedLinear.from_dense(nn.Conv2d(1, 1, 1))


def test_repr(mask):
    assert repr(MaskedLinear(IN, OUT, mask=mask)) == (
        "MaskedLinear(in_features=40, out_features=6, bias=True, density=0.5, structure=unstructured)"
    )


def test_state_dict_round_trip(mask):
    layer = MaskedLinear(IN, OUT, mask=mask)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "mask_bits"]
    twin = MaskedLinear(IN, OUT)
    assert not any(twin.load_state_dict(state))
    assert twin.mask == mask and torch.equal(twin.weight, layer.weight)
    state["mask_bits"].zero_()
    assert twin.mask == mask  # the loaded mask is its own
    model = nn.Sequential(nn.Linear(4, IN), MaskedLinear(IN, OUT, mask=mask))
    assert "1.mask_bits" in model.state_dict()
    other = nn.Sequential(nn.Linear(4, IN), MaskedLinear(IN, OUT))
    other.load_state_dict(model.state_dict())
    assert other[1].mask == mask


def test_plain_state_loads_and_keeps_the_mask(mask):
    plain = nn.Linear(IN, OUT)
    for assign in (False, True):
        layer = MaskedLinear(IN, OUT, mask=mask)
        state = plain.state_dict()
        keys = layer.load_state_dict(state, assign=assign)
        assert not keys.missing_keys and not keys.unexpected_keys
        assert layer.mask == mask and not under(layer).any()
        assert torch.equal(layer.weight[mask.dense()], plain.weight[mask.dense()])
        assert (
            torch.equal(state["weight"], plain.weight) and plain.weight[~mask.dense()].any()
        )  # the caller's is not ours
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(plain.weight, layer.weight)
    retained = MaskedLinear(IN, OUT)
    retained.set_mask(mask, retain=True)
    retained.load_state_dict(nn.Linear(IN, OUT).state_dict())
    assert under(retained).any()


@pytest.mark.parametrize("assign", [False, True])
def test_retained_values_come_back(mask, assign):
    layer = MaskedLinear(IN, OUT)
    layer.set_mask(mask, retain=True)
    state = layer.state_dict()
    twin = MaskedLinear(IN, OUT)
    twin.load_state_dict(state, assign=assign)
    assert under(twin).any() and torch.equal(twin.weight, layer.weight)
    twin.load_state_dict(nn.Linear(IN, OUT).state_dict())
    assert under(twin).any()  # it retains now, as the layer did that was saved


def test_assigned_parameters_are_shared_where_nothing_needs_zeroing(mask):
    state = MaskedLinear(IN, OUT, mask=mask).state_dict()
    twin = MaskedLinear(IN, OUT)
    twin.load_state_dict(state, assign=True)
    assert twin.weight.data_ptr() == state["weight"].data_ptr()


def test_meta_state(mask):
    state = {key: value.to("meta") for key, value in MaskedLinear(IN, OUT, mask=mask).state_dict().items()}
    layer = MaskedLinear(IN, OUT, mask=mask)
    layer.load_state_dict(state, assign=True)
    assert layer.weight.is_meta and layer.mask == mask


def test_checkpoint_helpers_find_every_entry(mask):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = nn.Sequential(MaskedLinear(IN, OUT, mask=mask))
    state = get_model_state_dict(model)
    assert list(state) == ["0.weight", "0.bias", "0.mask_bits"]
    twin = nn.Sequential(MaskedLinear(IN, OUT))
    set_model_state_dict(twin, state)
    assert twin[0].mask == mask and torch.equal(twin[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (torch.zeros(OUT, 2), "int32"),
        (torch.zeros(OUT, 3, dtype=torch.int32), r"\[6, 2\]"),
        (torch.full((OUT, 2), -1, dtype=torch.int32), "past the last column"),
    ],
)
def test_corrupt_masks_are_refused(mask, bits, message):
    layer = MaskedLinear(IN, OUT, mask=mask)
    before = layer.weight.detach().clone()
    state = {**nn.Linear(IN, OUT).state_dict(), "mask_bits": bits}
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert layer.mask == mask and torch.equal(layer.weight, before)  # nothing is half loaded
    with pytest.raises(RuntimeError, match="Unexpected"):
        layer.load_state_dict({**layer.state_dict(), "other": bits})


def test_copies_share_the_mask(mask):
    layer = MaskedLinear(IN, OUT, mask=mask)
    twin = copy.deepcopy(layer)
    assert twin.mask is layer.mask and twin.weight is not layer.weight
    twin.set_mask(~mask)
    assert layer.mask == mask and not torch.equal(layer.weight, twin.weight)
    again = pickled(layer)
    assert again.mask == mask and torch.equal(again.weight, layer.weight)
    assert through_a_file(layer).mask == mask


def test_files_load_as_weights_only(mask):
    """State with masks, masks themselves, and frozen parameters: nothing else has to be trusted."""
    model = nn.Sequential(MaskedLinear(IN, OUT, mask=mask), nn.Linear(OUT, 4))
    freeze(model[1].weight, Mask.random((4, OUT), 0.5))
    state = {"model": model.state_dict(), "masks": [mask], "frozen": model[1].weight}
    saved = through_a_file(state, weights_only=True)
    twin = nn.Sequential(MaskedLinear(IN, OUT), nn.Linear(OUT, 4))
    twin.load_state_dict(saved["model"])
    assert twin[0].mask == saved["masks"][0] == mask and torch.equal(twin[0].weight, model[0].weight)
    assert frozen_mask(saved["frozen"]) == frozen_mask(model[1].weight)


def test_dtype_leaves_the_mask_alone(mask):
    layer = MaskedLinear(IN, OUT, mask=mask)
    for convert in (layer.half, layer.bfloat16, layer.double, layer.float):
        assert convert() is layer and layer.mask == mask
        x = torch.randn(3, IN, dtype=layer.weight.dtype)
        assert layer(x).dtype == x.dtype


def test_meta(mask):
    layer = MaskedLinear(IN, OUT, device="meta", mask=mask)
    assert layer.weight.is_meta and layer.mask == mask
    assert layer(torch.empty(3, IN, device="meta")).shape == (3, OUT)
    layer.to_empty(device="cpu")
    assert layer.mask == mask and layer.mask.device.type == "cpu"
    layer.reset_parameters()
    assert not under(layer).any()
    with torch.device("meta"):
        assert MaskedLinear(IN, OUT).mask == Mask.full((OUT, IN))
    loaded = MaskedLinear(IN, OUT, device="meta")
    loaded.load_state_dict(layer.state_dict(), assign=True)
    assert loaded.mask == mask and torch.equal(loaded.weight, layer.weight)


def test_averaging_leaves_the_mask_alone(mask):
    model = nn.Sequential(MaskedLinear(IN, OUT, mask=mask), nn.BatchNorm1d(OUT))
    average = AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(torch.randn(8, IN)).pow(2).sum().backward()
        optimizer.step()
        average.update_parameters(model)
    assert average.module[0].mask == mask and not under(average.module[0]).any()
    assert average.module[0].weight.any()


def test_masked_weights_get_no_gradient_and_stay(mask):
    layer = MaskedLinear(IN, OUT, mask=mask)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, IN)).pow(2).sum().backward()
        assert not layer.weight.grad[~mask.dense()].any()
        optimizer.step()
    assert not under(layer).any() and layer.weight.any()


def test_shared_weights_and_hooks(mask):
    layer = MaskedLinear(IN, OUT, mask=mask)
    tied = MaskedLinear(IN, OUT, mask=mask)
    tied.weight = layer.weight
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    x = torch.randn(2, IN)
    (layer(x) + tied(x)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.where(mask.dense(), 2 * x.sum(0).expand(OUT, IN), 0))
    assert seen == [(2, OUT)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_usual_call_takes_the_short_way(packed, recorded, monkeypatch):
    """Straight to the op, with no backend asked for: the checks before it take longer than a small product."""
    layer = MaskedLinear(64, 64, mask=Mask.random((64, 64), 0.1)).eval()
    if packed:
        layer.pack()
    x = torch.randn(3, 64)
    with maskfuse.use_backend("cpu"):
        want = layer(x)
    module = sys.modules[MaskedLinear.__module__]
    monkeypatch.setattr(module, "checked_masked_linear", lambda *args: pytest.fail("the long way"))
    with torch.set_grad_enabled(recorded):
        assert torch.equal(layer(x), want) and layer(x).requires_grad is recorded
    monkeypatch.setattr(module, "checked_masked_linear", lambda *args: "the long way")
    with maskfuse.use_backend("reference"):
        assert layer(x) == "the long way"
    assert layer(torch.randn(3, 5)) == layer(x.double()) == "the long way"  # which says what is wrong
    layer.bias = torch.nn.Parameter(torch.empty(64, device="meta"))
    assert layer(x) == "the long way"
