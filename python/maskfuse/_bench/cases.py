"""What is measured: a masked layer, and what plain PyTorch would be called for instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional.masked_conv2d import masked_conv2d
from ..functional.masked_linear import masked_linear
from ..mask import Mask
from ..nn import MaskedLinear

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """`calls()` makes the contenders "dense", "w*m" and "maskfuse", which take turns."""

    op: str
    shape: str
    mask: str
    density: float
    calls: Callable[[], Calls]


@dataclass(frozen=True)
class Place:
    """Where operands are made."""

    device: torch.device
    dtype: torch.dtype

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, device=self.device).to(self.dtype).requires_grad_(grad)

    def mask(self, mask: Mask) -> Mask:
        """A mask, moved there."""
        return mask.to(self.device)


def _random_masks(shape: tuple[int, ...], densities: tuple[float, ...]) -> dict[str, Mask]:
    return {f"random {1 - density:.0%}": Mask.random(shape, density) for density in densities}


def _half_of_channels(shape: tuple[int, ...]) -> Mask:
    out, inp = (torch.randperm(size)[: size // 2] for size in shape[:2])
    return Mask.channels(shape, out, inp)


def _blocks(shape: tuple[int, int], block: tuple[int, int]) -> Mask:
    grid = (shape[0] // block[0], shape[1] // block[1])
    return Mask.blocks(Mask.random(grid, 0.1).dense(), block)


def _linear_calls(place: Place, mask: Mask, batch: int, backward: bool) -> Calls:
    out, inp = mask.shape
    here, x, w = place.mask(mask), place.random(batch, inp, grad=backward), place.random(out, inp, grad=backward)
    dense, grad = here.dense().to(place.dtype), place.random(batch, out)

    def run(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(forward(), (x, w), grad)) if backward else forward

    return {
        "dense": run(lambda: F.linear(x, w)),
        "w*m": run(lambda: F.linear(x, w * dense)),
        "maskfuse": run(lambda: masked_linear(x, w, here)),
    }


def _packed_calls(place: Place, mask: Mask, batch: int) -> Calls:
    out, inp = mask.shape
    layer = MaskedLinear(inp, out, bias=False, device=place.device, dtype=place.dtype, mask=place.mask(mask)).eval()
    weight, dense = layer.weight.detach().clone(), layer.mask.dense().to(place.dtype)
    layer.pack()
    x = place.random(batch, inp)
    return {
        "dense": lambda: F.linear(x, weight),
        "w*m": lambda: F.linear(x, weight * dense),
        "maskfuse": lambda: layer(x),
    }


def _conv_calls(place: Place, mask: Mask, batch: int, size: int) -> Calls:
    out, inp, kernel, _ = mask.shape
    here, x, w = place.mask(mask), place.random(batch, inp, size, size), place.random(out, inp, kernel, kernel)
    dense, padding = here.dense().to(place.dtype), kernel // 2
    return {
        "dense": lambda: F.conv2d(x, w, padding=padding),
        "w*m": lambda: F.conv2d(x, w * dense, padding=padding),
        "maskfuse": lambda: masked_conv2d(x, w, here, padding=padding),
    }


def cases(place: Place, quick: bool) -> Iterator[Case]:
    """All of them, or the few of `quick`."""
    large = place.device.type == "cuda"
    densities = (0.5, 0.1) if quick else (0.5, 0.2, 0.1, 0.05)
    shapes = [(4096, 4096, 4096)] if large else [(1024, 1024, 128)] if quick else [(1024, 1024, 128), (4096, 1024, 512)]
    block = (128, 64) if large else (16, 16)
    for out, inp, batch in shapes:
        masks = _random_masks((out, inp), densities) | {"half of channels": _half_of_channels((out, inp))}
        if not quick:
            masks[f"blocks {block[0]}x{block[1]} 90%"] = _blocks((out, inp), block)
        for op, backward in (("masked_linear", False), ("masked_linear, step", True)):
            for name, mask in masks.items():
                yield Case(
                    op,
                    f"{out}x{inp}, batch {batch}",
                    name,
                    mask.density,
                    lambda m=mask, b=batch, back=backward: _linear_calls(place, m, b, back),  # type: ignore[misc]
                )
        for name, mask in _random_masks((out, inp), densities).items():
            yield Case(
                "packed",
                f"{out}x{inp}, batch 1",
                name,
                mask.density,
                lambda m=mask: _packed_calls(place, m, 1),  # type: ignore[misc]
            )
    channels, size, images = (256, 28, 32) if large else (128, 14, 4)
    conv = (channels, channels, 3, 3)
    for name, mask in (_random_masks(conv, densities) | {"half of channels": _half_of_channels(conv)}).items():
        yield Case(
            "masked_conv2d",
            f"3x3, {channels} channels, {size}x{size}, batch {images}",
            name,
            mask.density,
            lambda m=mask: _conv_calls(place, m, images, size),  # type: ignore[misc]
        )
