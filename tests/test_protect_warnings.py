"""Optimizers that move weights under a mask, unprotected, and what protect refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from maskfuse import is_protected, protect
from maskfuse.nn import MaskedLinear, freeze
from optimizers import trained
from protected import layer as layer
from protected import mask as mask
from protected import optimizer as optimizer
from protected import under
from torch import nn, optim


@pytest.mark.parametrize("frozen", [False, True])
def test_an_unprotected_optimizer_is_warned_of(layer, mask, frozen):
    """Once, at the step that begins to move masked weights, and from where it was called."""
    optimizer = optim.Adam(layer.parameters(), 0.05)
    trained(layer, optimizer)
    if frozen:
        freeze(layer.weight, mask)
    else:
        layer.set_mask(mask)
    before = layer.weight.detach()[~mask.dense()]
    with pytest.warns(UserWarning, match=r"Adam has momentum \('exp_avg'\).*\[7, 9\].*maskfuse.protect") as caught:
        trained(layer, optimizer)
    assert len(caught) == 1 and caught[0].filename == trained.__code__.co_filename
    assert not (layer.weight[~mask.dense()] == before).any()


@pytest.mark.parametrize(
    ("name", "options", "stale"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, False),
        ("SGD", {}, True),
        ("Rprop", {}, True),
        ("Adagrad", {}, True),
    ],
)
def test_optimizers_that_move_nothing_are_not(layer, mask, name, options, stale):
    optimizer = getattr(optim, name)(layer.parameters(), 0.01, **options)
    if stale:
        trained(layer, optimizer)
    layer.set_mask(mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(layer, optimizer)
    assert not under(layer).any()


def test_nor_are_those_of_other_models(layer, optimizer, mask):
    layer.set_mask(mask)
    stranger, dropped = nn.Linear(9, 7), MaskedLinear(9, 7, mask=mask)
    others = optim.Adam([*stranger.parameters(), *dropped.parameters()])
    del dropped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(stranger, others)
        trained(layer, protect(optimizer, layer))


def test_decay_of_retained_values_is_warned_of(layer, mask):
    layer.set_mask(mask, retain=True)
    with pytest.warns(UserWarning, match=r"AdamW has a weight decay of 0\.01, and moves weights under a mask"):
        trained(layer, optim.AdamW(layer.parameters(), 0.05))
    twin = MaskedLinear(9, 7)
    old = optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    trained(twin, old)
    twin.load_state_dict(layer.state_dict())
    with pytest.warns(UserWarning, match=r"SGD has momentum \('momentum_buffer'\)"):
        trained(twin, old)


def test_errors(layer, mask):
    optimizer = optim.SGD(layer.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got MaskedLinear"):
        protect(layer, layer)
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got list"):
        protect(optimizer, [layer])
    with pytest.raises(ValueError, match=r"optimizer \(SGD of 2 parameters\) has no parameter of model \(Linear\)"):
        protect(optimizer, nn.Linear(2, 2))
    assert not is_protected(optimizer, layer) and not optimizer._optimizer_step_pre_hooks


def test_masks_that_do_not_fit(layer, mask):
    model = nn.Sequential(layer)
    layer.set_mask(mask)
    layer.weight = nn.Parameter(torch.randn(7, 8))
    optimizer = protect(optim.SGD(model.parameters(), 0.1), model)
    with pytest.raises(
        ValueError, match=r"mask of layer '0' \(MaskedLinear\).*weight, \[7, 8\], got \[7, 9\]; set_mask"
    ):
        optimizer.step()
    frozen = freeze(nn.Parameter(torch.randn(7, 9)), mask)
    frozen.data = torch.randn(7, 8)
    optimizer = protect(optim.SGD([frozen], 0.1), nn.ParameterList([frozen]))
    with pytest.raises(ValueError, match=r"frozen parameter must have its shape, \[7, 8\], got \[7, 9\]; freeze"):
        optimizer.step()


def test_weights_that_are_computed(mask):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    layer = MaskedLinear(9, 7, mask=mask)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    optimizer = protect(optim.SGD(layer.parameters(), 0.1), layer)
    with pytest.raises(ValueError, match=r"mask of layer '' .*computed from other parameters.*nn.freeze"):
        optimizer.step()
