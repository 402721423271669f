"""Whether a model that was cut returns what the masked one does, and where they part if not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._example_inputs import arguments
from .calls import Calls
from .decide import Decision
from .trace import Named, tensors_of

# Rounding errors of a network are larger than those of one sum: of float32, 1e-4 of the largest output.
_ROUNDINGS = {torch.float64: 2.0**17, torch.float32: 2.0**10}


def inputs_like(example: Any, count: int) -> list[Any]:
    """The example, and others with normal random numbers in its floating tensors, of the same mean and deviation, but
    with a deviation of 1 where the example has none."""
    generator = torch.Generator().manual_seed(0)

    def other(t: Any) -> Any:
        if not isinstance(t, Tensor) or not t.is_floating_point() or t.numel() < 2:
            return t
        values = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        deviation, mean = t.double().std().item() or 1.0, t.double().mean().item()
        return torch.empty_like(t).copy_(values * deviation + mean)

    return [example, *(tree_map(other, example) for _ in range(count))]


def run(model: nn.Module, example: Any) -> Any:
    """What the model returns, of copies of the inputs. Each run draws the same random numbers, and puts them back."""
    inputs = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, example)
    devices = {t.device for t in tensors_of(inputs) if t.is_cuda} | {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.no_grad():
        args, kwargs = arguments(inputs)
        return model(*args, **kwargs)


def differs(got: Any, want: Any, tolerance: float | None) -> str | None:
    """How far two results are apart where that is more than rounding; None where it is not."""
    ours, theirs = list(tensors_of(got)), list(tensors_of(want))
    if len(ours) != len(theirs):
        return f"{len(ours)} tensors instead of {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return f"shape {list(a.shape)} instead of {list(b.shape)}"
        if not b.is_floating_point():
            continue  # an index of a largest value may change with the last bit of the values
        a, b = a.detach().double(), b.detach().double()
        allowed = tolerance
        if allowed is None:
            dtype = next(t.dtype for t in theirs if t.is_floating_point())
            allowed = torch.finfo(dtype).eps * _ROUNDINGS.get(dtype, 8.0)
        finite = b[b.isfinite()]
        largest = float(finite.abs().max()) if len(finite) else 0.0
        if not torch.allclose(a, b, rtol=0.0, atol=allowed * largest, equal_nan=True):
            worst = float((a - b).nan_to_num(torch.inf).abs().max())
            return f"{worst:.3g} apart, where the largest value is {largest:.3g} and {allowed * largest:.3g} is allowed"
    return None


def where_they_part(
    masked: nn.Module, cut: nn.Module, example: Any, named: Named, decision: Decision, tolerance: float | None
) -> str:
    """The first layer that returns something else than the masked one, on the channels that stay."""
    want: dict[str, list[Tensor]] = {}
    got: dict[str, list[Tensor]] = {}
    with Calls(masked, _keeper(want)):
        run(masked, example)
    with Calls(cut, _keeper(got)) as calls:
        try:
            run(cut, example)
        except Exception as error:
            return f"in {calls.where()}, which raises {type(error).__name__}: {error}"
    for name in got:  # in the order in which they returned
        for ours, theirs, dims in zip(got[name], want.get(name, []), named.get(name, []), strict=False):
            for d, dim in enumerate(dims):
                theirs = theirs.index_select(d, (~decision.of(dim, theirs.shape[d])).nonzero()[:, 0].to(theirs.device))
            reason = differs(ours, theirs, tolerance)
            if reason is not None:
                return f"in layer {name!r} ({type(cut.get_submodule(name)).__name__}): {reason}"
    return "outside of its layers"


def _keeper(kept: dict[str, list[Tensor]]) -> Any:
    def returned(name: str, module: nn.Module, output: Any) -> None:
        kept.setdefault(name, [t.detach().clone() for t in tensors_of(output)])

    return returned
