"""sync_masks, and averages of masked models: SWA, EMA and batch statistics, while masks change."""

from __future__ import annotations

import copy

import pytest
import torch
from copies import pickled
from maskfuse import Mask, protect, sync_masks
from maskfuse.nn import (
    ChannelGate,
    CompactLinear,
    GatedConv2d,
    GatedLinear,
    MaskedConv2d,
    MaskedLinear,
    freeze,
    frozen_mask,
    unfreeze,
)
from maskfuse.nn._compact_masks import set_masks
from maskfuse.schedule import SET, CubicSchedule
from optimizers import same_bits
from schedules import masked_layers, network, step, under_masks
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

KINDS = {
    "swa": {},
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "by hand": {"avg_fn": lambda averaged, now, count: averaged + (now - averaged) / (count + 1)},
}


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_averages_of_masks_that_change(kind, use_buffers):
    """The average is that of the weights as they were, zero under the mask that the model has now."""
    model = nn.Sequential(*network()[:2], nn.BatchNorm2d(6), *network()[2:])
    averaged = AveragedModel(model, use_buffers=use_buffers, **KINDS[kind])
    optimizer = protect(torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1), model)
    schedule = CubicSchedule(model, optimizer, 0.3, end=6, interval=2)
    sums = [p.detach().clone().double() for p in model.parameters()]
    changes = 0
    for count in range(8):
        changed = step(model, optimizer, schedule)
        averaged.update_parameters(model)
        assert sync_masks(averaged, model) == changed
        changes += changed
        for total, p in zip(sums, model.parameters(), strict=True):
            share = 1.0 if count == 0 else 0.1 if kind == "ema" else 1 / (count + 1)
            total.mul_(1 - share).add_(p.detach(), alpha=share)
        for ours, theirs in zip(masked_layers(averaged), masked_layers(model), strict=True):
            assert ours is not theirs and ours.mask is theirs.mask
    assert changes == 3 and not under_masks(averaged.module).any()
    for total, p, layer in zip(sums, averaged.module.parameters(), _owners(model), strict=True):
        want = total if layer is None else torch.where(layer.mask.dense(), total, 0)
        torch.testing.assert_close(p.double(), want, atol=1e-5, rtol=1e-5)
    x = torch.randn(3, 2, 8, 8)
    assert torch.isfinite(averaged(x)).all() and not torch.equal(averaged(x), model(x))


def _owners(model):
    """The masked layer whose weight each parameter is, or None."""
    weights = {id(layer.weight): layer for layer in masked_layers(model)}
    return [weights.get(id(p)) for p in model.parameters()]


def test_without_it_the_masks_are_stale():
    """What the page on averages warns of: grown weights would stay masked in the average, and dropped ones active."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = SET(model, optimizer, 0.3, end=10, interval=1)
    averaged = AveragedModel(model)
    for _ in range(3):
        step(model, optimizer, schedule)
        averaged.update_parameters(model)
    assert any(a.mask != b.mask for a, b in zip(masked_layers(averaged), masked_layers(model), strict=True))
    assert sync_masks(averaged, model) and not sync_masks(averaged, model)
    assert all(a.mask == b.mask for a, b in zip(masked_layers(averaged), masked_layers(model), strict=True))
    assert not under_masks(averaged.module).any()


def test_batch_statistics_are_those_of_the_masked_average():
    torch.manual_seed(0)
    model = nn.Sequential(MaskedConv2d(2, 6, 3, mask=Mask.random((6, 2, 3, 3), 0.5)), nn.BatchNorm2d(6), nn.ReLU())
    averaged = AveragedModel(model)
    data = [torch.randn(4, 2, 8, 8) for _ in range(3)]
    for _ in range(2):
        with torch.no_grad():
            model[0].weight.add_(0.1 * model[0].mask.dense())
        averaged.update_parameters(model)
    model[0].set_mask(model[0].mask & Mask.random((6, 2, 3, 3), 0.5))
    sync_masks(averaged, model)
    update_bn(data, averaged)
    plain = nn.functional.conv2d(torch.cat(data), averaged.module[0].weight, averaged.module[0].bias)
    torch.testing.assert_close(averaged.module[1].running_mean, plain.mean((0, 2, 3)))
    assert averaged.module[1].num_batches_tracked == 3 and not under_masks(averaged.module).any()


def everything():
    torch.manual_seed(0)
    return nn.Sequential(
        MaskedLinear(6, 6, mask=Mask.random((6, 6), 0.5)),
        nn.Linear(6, 6),
        GatedLinear(6, 6, temperature=0.7),
        nn.Unflatten(1, (6, 1, 1)),
        GatedConv2d(6, 6, 1),
        ChannelGate(torch.arange(6) < 3),
        ChannelGate(k=2),
    )


@pytest.mark.parametrize("wrap", [lambda m: m, AveragedModel, lambda m: torch.compile(m, backend="eager")])
def test_all_that_is_neither_parameter_nor_buffer(wrap):
    model, to = everything(), everything()
    freeze(to[4].weight, torch.ones(6, 6, 1, 1, dtype=torch.bool))
    wrapped = wrap(to)
    to = wrapped.module if wrap is AveragedModel else to
    assert frozen_mask(to[4].weight) is not None
    mask, frozen = Mask.random((6, 6), 0.3), Mask.random((6, 6), 0.5)
    model[0].set_mask(mask, retain=True)
    freeze(model[1].weight, frozen)
    model[2].temperature = 0.1
    model[5].set_mask(torch.arange(6) < 2)
    before = [p.detach().clone() for p in to.parameters()]
    assert sync_masks(wrapped, model) and not sync_masks(wrapped, wrap(model))
    assert to[0].mask is mask and to[0]._retain and frozen_mask(to[1].weight) == frozen
    assert frozen_mask(to[4].weight) is None and to[2].temperature == 0.1 and to[4].temperature == 1.0
    assert torch.equal(to[5].mask, torch.arange(6) < 2) and to[5].mask is not model[5].mask
    assert all(same_bits(p, q) for p, q in zip(before, to.parameters(), strict=True))  # retained: no value is lost
    model[0].set_mask(mask)
    unfreeze(model[1].weight)
    assert sync_masks(wrapped, model) and frozen_mask(to[1].weight) is None
    assert not to[0]._retain and not to[0].weight[~mask.dense()].any() and to[0].weight.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.append(nn.Linear(2, 2)), ValueError, r"source must have the same layers.*parameter '7\.bias'"),
        (lambda m: m.__setitem__(0, nn.Linear(6, 6)), ValueError, "only one of the two has a mask of layer '0'"),
        (
            lambda m: m.__setitem__(0, MaskedLinear(6, 7, mask=torch.zeros(7, 6).bool())),
            ValueError,
            r"the mask of layer '0' must fit its owner, but that of source is Mask\(\[7, 6\]",
        ),
        (lambda m: m.__setitem__(6, ChannelGate(torch.ones(2).bool())), ValueError, "the mask of gate '6' must fit"),
    ],
)
def test_other_models_are_refused(change, error, message):
    source, to = everything(), everything()
    source[2].temperature = 0.1
    change(source)
    with pytest.raises(error, match=message):
        sync_masks(to, source)
    assert to[2].temperature == 0.7  # nothing is half done


def compact(layers=2):
    torch.manual_seed(0)
    model = nn.Sequential(*(CompactLinear(6, 6, mask=Mask.random((6, 6), 0.5)) for _ in range(layers)), nn.Linear(6, 2))
    freeze(model[0].values, torch.arange(18) % 2 == 0)
    return model


def test_compact_layers():
    """They were passed over, and an average then was that of other weights than its mask says."""
    model, to = compact(), compact()
    unfreeze(to[0].values)
    values = to[0].weight.detach()
    model[0].set_mask(Mask.random((6, 6), 0.5))
    model[1].set_mask(Mask.random((6, 6), 0.75))
    assert sync_masks(to, model) and not sync_masks(to, model)
    assert to[0].mask == model[0].mask and to[1].values.shape == model[1].values.shape
    assert torch.equal(to[0].weight, values * to[0].mask.dense())
    assert frozen_mask(to[0].values) == frozen_mask(model[0].values) is not None
    model[0].set_mask(Mask.random((6, 6), 0.25))  # frozen in both, by masks of other lengths
    assert sync_masks(to, model) and frozen_mask(to[0].values) == frozen_mask(model[0].values)
    assert len(frozen_mask(to[0].values).dense()) == 9
    averaged = AveragedModel(model)
    for density in (0.5, 0.25, 0.25):
        model[1].set_mask(Mask.random((6, 6), density))
        assert sync_masks(averaged, model)
        averaged.update_parameters(model)
    assert not averaged.module[1].weight[~model[1].mask.dense()].any()
    with pytest.raises(ValueError, match=r"only one of the two has a .* '1"):
        sync_masks(model, nn.Sequential(model[0], model[1].to_masked(), model[2]))


def test_compact_layers_that_share_their_values():
    model, to = compact(), compact()
    for one in (model, to):
        one[1].set_mask(one[0].mask)
        one[1].values = one[0].values
    set_masks([model[0], model[1]], Mask.random((6, 6), 0.25), None)
    assert sync_masks(to, model) and to[0].values is to[1].values
    assert to[0].mask == to[1].mask == model[0].mask and to[0].values.shape == (9,)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"to must be an nn\.Module, got int"):
        sync_masks(3, nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"source must be an nn\.Module, got Mask"):
        sync_masks(nn.Linear(2, 2), Mask.full((2, 2)))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_of_an_average_keep_everything(copied):
    model = everything()
    freeze(model[1].weight, Mask.random((6, 6), 0.5))
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    twin = copied(averaged)
    assert not sync_masks(twin, averaged) and twin.module[0].mask == model[0].mask
    assert frozen_mask(twin.module[1].weight) == frozen_mask(model[1].weight)
