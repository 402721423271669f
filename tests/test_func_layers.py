"""torch.func over the layers: functional calls, ensembles of stacked layers, per-sample and second derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
from maskfuse import Mask, fold
from maskfuse.nn import Bypass, ChannelGate, GatedConv2d, GatedLinear, MaskedConv2d, MaskedLinear
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

LINEAR = Mask.from_dense(torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5)
CONV = Mask.from_dense(torch.rand(4, 6, 2, 3, generator=torch.Generator().manual_seed(2)) < 0.5)
ROWS, IMAGES = (3, 6), (2, 6, 5, 4)
F64 = {"dtype": torch.float64}

LAYERS = {
    "masked linear": (lambda: MaskedLinear(6, 4, mask=LINEAR, **F64), ROWS),
    "masked conv": (lambda: MaskedConv2d(6, 4, (2, 3), padding=1, mask=CONV, **F64), IMAGES),
    "circular conv": (lambda: MaskedConv2d(6, 4, (2, 3), padding=1, padding_mode="circular", mask=CONV, **F64), IMAGES),
    "compact linear": (lambda: MaskedLinear(6, 4, mask=LINEAR, **F64).to_compact(), ROWS),
    "compact conv": (lambda: MaskedConv2d(6, 4, (2, 3), mask=CONV, **F64).to_compact(), IMAGES),
    "gated linear": (lambda: GatedLinear(6, 4, **F64), ROWS),
    "hard-concrete": (lambda: GatedLinear(6, 4, kind="hard_concrete", **F64), ROWS),
    "gated conv": (lambda: GatedConv2d(6, 4, (2, 3), **F64), IMAGES),
    "network": (
        lambda: nn.Sequential(MaskedLinear(6, 6, mask=Mask.full((6, 6)), **F64), nn.Tanh(), MaskedLinear(6, 4, **F64)),
        ROWS,
    ),
    "gate": (lambda: nn.Sequential(MaskedLinear(6, 4, mask=LINEAR, **F64), ChannelGate(k=2)), ROWS),
    "bypass": (lambda: nn.Sequential(Bypass(nn.Linear(6, 6, **F64)), MaskedLinear(6, 4, mask=LINEAR, **F64)), ROWS),
}


def made(name):
    """A layer in eval mode with values of its own, and an input."""
    make, shape = LAYERS[name]
    layer = make().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer, torch.randn(shape, dtype=torch.float64)


def parameters_of(layer):
    return {name: p.detach() for name, p in layer.named_parameters()}


def loss(layer, x):
    return lambda parameters: functional_call(layer, parameters, (x,)).pow(2).sum()


def by_autograd(layer, x):
    layer.zero_grad()
    layer(x).pow(2).sum().backward()
    return {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_autograd(name):
    layer, x = made(name)
    parameters = parameters_of(layer)
    want = by_autograd(layer, x)
    torch.testing.assert_close(grad(loss(layer, x))(parameters), want)
    tangents = {key: torch.randn_like(p) for key, p in parameters.items()}
    along = sum((want[key] * tangents[key]).sum() for key in parameters)
    torch.testing.assert_close(jvp(loss(layer, x), (parameters,), (tangents,))[1], along)
    torch.testing.assert_close(
        jacrev(lambda x: functional_call(layer, parameters, (x,)))(x), torch.autograd.functional.jacobian(layer, x)
    )
    # Forward over reverse, which the masked weights have no part in, against reverse over reverse.
    values = {key: p for key, p in parameters.items() if key.endswith(("weight", "values"))}
    assert values
    rest = {key: p for key, p in parameters.items() if key not in values}
    second = hessian(lambda v: loss(layer, x)({**v, **rest}))(values)
    again = jacrev(jacrev(lambda v: loss(layer, x)({**v, **rest})))(values)
    torch.testing.assert_close(second, again)


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name):
    layer, x = made(name)
    per_sample = vmap(grad(lambda p, x: loss(layer, x[None])(p)), (None, 0))(parameters_of(layer), x)
    for i, sample in enumerate(x):
        want = by_autograd(layer, sample[None])
        torch.testing.assert_close({key: g[i] for key, g in per_sample.items()}, want)


@pytest.mark.parametrize("meta", [False, True], ids=["", "meta base"])
@pytest.mark.parametrize("name", LAYERS)
def test_ensembles(name, meta):
    """Layers of one mask and different weights, as one call: torch's recipe, whose base may have no values."""
    layers = [made(name)[0] for _ in range(3)]
    x = made(name)[1]
    stacked, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0])
    base = base.to("meta") if meta else base
    together = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), (0, 0, None))
    torch.testing.assert_close(together(stacked, buffers, x), torch.stack([layer(x) for layer in layers]))
    own = torch.stack([x, 2 * x, -x])  # an input each, and gradients
    got = vmap(grad(lambda p, b, x: functional_call(base, (p, b), (x,)).pow(2).sum()))(stacked, buffers, own)
    for i, layer in enumerate(layers):
        torch.testing.assert_close({key: g[i] for key, g in got.items()}, by_autograd(layer, own[i]))


def test_ensembles_of_several_masks_have_a_plain_base():
    """A base's mask is no buffer, so it would be that of all; a folded base has none, and weights are zero already."""
    layers = [MaskedLinear(6, 4, mask=Mask.random((4, 6), 0.5), **F64) for _ in range(3)]
    assert layers[0].mask != layers[1].mask
    x = torch.randn(ROWS, dtype=torch.float64)
    base = fold(copy.deepcopy(layers[0]))
    got = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(*stack_module_state(layers))
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]))


STRAIGHT_THROUGH = {
    "gated linear": (lambda: GatedLinear(6, 4, kind="straight_through", **F64), ROWS),
    "gated conv": (lambda: GatedConv2d(6, 4, (2, 3), kind="straight_through", **F64), IMAGES),
    "gate": (lambda: nn.Sequential(nn.Conv2d(6, 4, 1, **F64), ChannelGate(k=2, straight_through=True)), IMAGES),
    "bypass": (
        lambda: Bypass(nn.Conv2d(6, 6, 1, **F64), gate=nn.Sequential(nn.Flatten(), nn.Linear(120, 1, **F64))),
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
def test_forward_mode_of_straight_through_gates_is_right_or_refused(name):
    make, shape = STRAIGHT_THROUGH[name]
    layer, x = make().train(), torch.randn(shape, dtype=torch.float64)
    parameters = parameters_of(layer)
    tangents = {key: torch.randn_like(p) for key, p in parameters.items()}
    if name.startswith("gated"):
        want = by_autograd(layer, x)
        along = sum((want[key] * tangents[key]).sum() for key in parameters)
        torch.testing.assert_close(jvp(loss(layer, x), (parameters,), (tangents,))[1], along)
    else:
        with pytest.raises(NotImplementedError, match="implement the jvp function"):
            jvp(loss(layer, x), (parameters,), (tangents,))
