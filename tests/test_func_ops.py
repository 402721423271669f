"""torch.func over every op and every operand: what the same transform gives of the definition in `reference`.

Numerical checks of single derivatives are in the ops' own files; here transforms meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from maskfuse import Mask, functional, reference
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

GEOMETRY = ((1, 2), (1, 0), (2, 1), 2)  # stride, padding, dilation, groups
LINEAR = Mask.from_dense(torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5)
CONV = Mask.from_dense(torch.rand(4, 3, 2, 3, generator=torch.Generator().manual_seed(2)) < 0.5)
CHANNELS = torch.tensor([True, False, True, True, False, True])
INDEX = torch.tensor([4, 0, 3])
SAMPLES = torch.tensor([[1, 3], [0, 5]])
PICKED = torch.tensor([[True, False, True, True, False, False], [False, False, True, False, False, True]])


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


class Case(NamedTuple):
    """One call: `make(module)` gives the function of its differentiable operands, of these shapes."""

    make: Callable
    shapes: tuple[tuple[int, ...], ...]


X, W, B = (2, 6), (4, 6), (4,)
IMAGE, KERNEL = (2, 6, 5, 4), (4, 3, 2, 3)


CASES = {
    "masked_linear": Case(lambda m: lambda x, w, b: m.masked_linear(x, w, LINEAR, b), (X, W, B)),
    "masked_linear, bool": Case(lambda m: lambda x, w: m.masked_linear(x, w, LINEAR.dense()), (X, W)),
    "masked_linear, real": Case(lambda m: lambda x, w, s, b: m.masked_linear(x, w, s, b), (X, W, W, B)),
    "masked_linear, channels": Case(
        lambda m: lambda x, w, b: m.masked_linear(x, w, LINEAR, b, channels=CHANNELS), (X, W, B)
    ),
    "masked_linear, one row": Case(lambda m: lambda x, w, b: m.masked_linear(x, w, LINEAR, b), (X[1:], W, B)),
    "masked_conv2d": Case(lambda m: lambda x, w, b: m.masked_conv2d(x, w, CONV, b, *GEOMETRY), (IMAGE, KERNEL, B)),
    "masked_conv2d, real": Case(
        lambda m: lambda x, w, s, b: m.masked_conv2d(x, w, s, b, *GEOMETRY), (IMAGE, KERNEL, KERNEL, B)
    ),
    "masked_conv2d, channels": Case(
        lambda m: lambda x, w: m.masked_conv2d(x, w, CONV, None, *GEOMETRY, channels=PICKED), (IMAGE, KERNEL)
    ),
    "gated_linear": Case(lambda m: lambda x, w, s, b: m.gated_linear(x, w, s, b), (X, W, W, B)),
    "gated_conv2d": Case(
        lambda m: lambda x, w, s, b: m.gated_conv2d(x, w, s, b, *GEOMETRY), (IMAGE, KERNEL, KERNEL, B)
    ),
    "compact_linear": Case(
        lambda m: (
            (lambda x, v, b: m.compact_linear(x, v, LINEAR, b))
            if m is functional
            else (lambda x, v, b: m.masked_linear(x, m.expand_active(v, LINEAR), LINEAR, b))
        ),
        (X, (LINEAR.active,), B),
    ),
    "compact_conv2d": Case(
        lambda m: (
            (lambda x, v, b: m.compact_conv2d(x, v, CONV, b, *GEOMETRY))
            if m is functional
            else (lambda x, v, b: m.masked_conv2d(x, m.expand_active(v, CONV), CONV, b, *GEOMETRY))
        ),
        (IMAGE, (CONV.active,), B),
    ),
    "expand_active": Case(lambda m: lambda v: m.expand_active(v, LINEAR), ((LINEAR.active,),)),
    "collect_active": Case(
        lambda m: lambda w: m.collect_active(w, LINEAR) if m is functional else w.flatten()[LINEAR.dense().flatten()],
        (W,),
    ),
    "channel_gather": Case(lambda m: lambda x: m.channel_gather(x, INDEX), (IMAGE,)),
    "channel_gather, samples": Case(lambda m: lambda x: m.channel_gather(x, SAMPLES), (IMAGE,)),
    "channel_gather, a slice": Case(
        lambda m: lambda x: m.channel_gather(x, slice(1, 5, 2)) if m is functional else x[:, 1:5:2], (IMAGE,)
    ),
    "channel_scatter": Case(lambda m: lambda x: m.channel_scatter(x, INDEX, 6), ((2, 3, 5),)),
    "channel_select": Case(
        lambda m: lambda x: m.channel_select(x, PICKED, 3)[0] if m is functional else m.channel_select(x, PICKED, 3),
        (IMAGE,),
    ),
    "mask_gradient": Case(lambda m: lambda x: m.mask_gradient(x, LINEAR), (W,)),
    "mask_gradient, real": Case(lambda m: lambda x: m.mask_gradient(x, LINEAR.dense().double() / 2), (W,)),
}
SMALL = {name: case for name, case in CASES.items() if IMAGE not in case.shapes}


def compared(name):
    """Our function, its definition, and operands."""
    case = CASES[name]
    return case.make(functional), case.make(reference), [random(*shape) for shape in case.shapes]


def loss_of(function):
    return lambda *operands: function(*operands).pow(3).sum()


def check(transformed, ours, theirs, what):
    """One transform of both functions."""
    torch.testing.assert_close(transformed(ours), transformed(theirs), msg=lambda text: f"{what}: {text}")


def at(operands, i, value):
    return [*operands[:i], value, *operands[i + 1 :]]


@pytest.mark.parametrize("name", CASES)
def test_reverse_and_forward(name):
    ours, theirs, operands = compared(name)
    everything = tuple(range(len(operands)))
    tangents = tuple(torch.randn_like(t) for t in operands)
    cotangent = torch.randn_like(theirs(*operands))
    transforms = {
        "grad": lambda f: grad(loss_of(f), everything)(*operands),
        "vjp": lambda f: vjp(f, *operands)[1](cotangent),
        "jvp": lambda f: jvp(f, tuple(operands), tangents),
        "jvp of grad": lambda f: jvp(grad(loss_of(f), everything), tuple(operands), tangents)[1],
        "grad of jvp": lambda f: grad(lambda *a: loss_of(lambda *b: jvp(f, b, tangents)[1])(*a), everything)(*operands),
    }
    for what, transform in transforms.items():
        check(transform, ours, theirs, what)
    for i, tangent in enumerate(tangents):  # the others are constants then
        one = lambda f, i=i: lambda t: f(*at(operands, i, t))  # noqa: E731
        check(lambda f: jvp(one(f), (operands[i],), (tangent,))[1], ours, theirs, f"jvp {i}")  # noqa: B023
        check(lambda f: grad(loss_of(one(f)))(operands[i]), ours, theirs, f"grad {i}")  # noqa: B023


@pytest.mark.parametrize("name", SMALL)
def test_jacobians(name):
    ours, theirs, operands = compared(name)
    everything = tuple(range(len(operands)))
    check(lambda f: jacrev(f, everything)(*operands), ours, theirs, "jacrev")
    check(lambda f: jacfwd(f, everything)(*operands), ours, theirs, "jacfwd")
    check(lambda f: hessian(loss_of(f), everything)(*operands), ours, theirs, "hessian")


@pytest.mark.parametrize("name", CASES)
def test_vmap(name):
    """Over each operand alone, along its last dimension too; over all; over one in another; under derivatives."""
    ours, theirs, operands = compared(name)
    many = [torch.stack([t, 2 * t, -t]) for t in operands]
    for i, batch in enumerate(many):
        dims = tuple(0 if i == j else None for j in range(len(operands)))
        check(lambda f: vmap(f, dims)(*at(operands, i, batch)), ours, theirs, f"operand {i}")  # noqa: B023
        check(
            lambda f: vmap(f, tuple(d and -1 if d is None else -1 for d in dims), out_dims=-1)(  # noqa: B023
                *at(operands, i, batch.movedim(0, -1))  # noqa: B023
            ),
            ours,
            theirs,
            f"last dimension of operand {i}",
        )
        check(lambda f: vmap(grad(loss_of(f), i), dims)(*at(operands, i, batch)), ours, theirs, f"grad {i}")  # noqa: B023
    check(lambda f: vmap(f)(*many), ours, theirs, "all operands")
    check(lambda f: vmap(grad(loss_of(f), tuple(range(len(many)))))(*many), ours, theirs, "grad of all operands")
    check(lambda f: vmap(lambda *a: jvp(f, a, a)[1])(*many), ours, theirs, "jvp of all operands")
    check(lambda f: vjp(vmap(f), *many)[1](vmap(theirs)(*many)), ours, theirs, "vjp around vmap")
    check(lambda f: jvp(vmap(f), tuple(many), tuple(many))[1], ours, theirs, "jvp around vmap")
    if len(operands) > 1:
        rest = (None,) * (len(operands) - 2)
        nested = lambda f: vmap(vmap(f, (0, None, *rest)), (None, 0, *rest))(*many[:2], *operands[2:])  # noqa: E731
        check(nested, ours, theirs, "nested")
    twice = [torch.stack([t, t.flip(0)]) for t in many]
    check(lambda f: vmap(vmap(f))(*twice), ours, theirs, "nested over all")


OF_TORCH = {"channel_gather, a slice", "gated_conv2d", "masked_conv2d, real"}  # torch's own ops alone


@pytest.mark.parametrize("name", CASES)
def test_forward_over_forward_is_right_or_refused(name):
    """In a Function, torch would take the inner tangents for constants: zeros, silently."""
    ours, theirs, operands = compared(name)
    together = tuple(operands)

    def twice(f):
        return jvp(lambda *a: jvp(loss_of(f), a, together)[1], together, together)[1]

    if name in OF_TORCH:
        check(twice, ours, theirs, "jvp of jvp")
        return
    with pytest.raises(NotImplementedError, match="reverse mode"):
        twice(ours)
    with pytest.raises(NotImplementedError, match="reverse mode"):
        jacfwd(jacfwd(loss_of(ours)))(*operands)
    check(lambda f: jvp(loss_of(f), together, together), ours, theirs, "jvp")  # nothing is left behind


MASKS = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(3)) < 0.5


@pytest.mark.parametrize("kind", ["bool", "real"])
def test_vmap_over_masks(kind):
    """An ensemble whose members have masks of their own, given as tensors."""
    x, w = random(*X), random(3, *W)
    masks = MASKS if kind == "bool" else MASKS * 0.5
    masks = masks.double() if kind == "real" else masks
    for dims in ((None, 0, 0), (None, None, 0)):
        weights = w if dims[1] == 0 else w[0]
        check(lambda m: vmap(m.masked_linear, dims)(x, weights, masks), functional, reference, kind)  # noqa: B023
        check(
            lambda m: vmap(grad(loss_of(m.masked_linear), 1), dims)(x, weights, masks),  # noqa: B023
            functional,
            reference,
            f"grad, {kind}",
        )
