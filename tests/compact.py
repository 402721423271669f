"""What the tests of compact layers share: pairs of a masked layer and its compact twin, and inputs for them."""

from __future__ import annotations

import torch
from maskfuse import Mask
from maskfuse.nn import MaskedConv2d, MaskedLinear

KINDS = [
    "linear",
    "linear of channels",
    "linear full",
    "linear empty",
    "conv",
    "conv groups",
    "conv reflect",
    "conv same",
]


def made(kind, dtype=torch.float32, bias=True):
    """A masked layer, and an input for it."""
    options = {"dtype": dtype, "bias": bias}
    if kind.startswith("linear"):
        shape = (70, 96)
        mask = {
            "linear": lambda: Mask.random(shape, 0.2),
            "linear of channels": lambda: Mask.channels(shape, out=torch.rand(70) > 0.5, inp=torch.rand(96) > 0.3),
            "linear full": lambda: Mask.full(shape),
            "linear empty": lambda: Mask.full(shape, active=False),
        }[kind]()
        return MaskedLinear(96, 70, mask=mask, **options), torch.randn(5, 96, dtype=dtype)
    if kind == "conv":
        layer = MaskedConv2d(16, 34, 3, padding=1, mask=Mask.random((34, 16, 3, 3), 0.2), **options)
        x = torch.randn(2, 16, 6, 7, dtype=dtype).to(memory_format=torch.channels_last)
        return layer, x
    if kind == "conv groups":
        mask = Mask.random((8, 3, 3, 2), 0.4)
        layer = MaskedConv2d(6, 8, (3, 2), (2, 1), (1, 0), (1, 2), groups=2, mask=mask, **options)
    elif kind == "conv reflect":
        layer = MaskedConv2d(6, 8, 3, padding=2, padding_mode="reflect", mask=Mask.random((8, 6, 3, 3), 0.4), **options)
    else:
        layer = MaskedConv2d(6, 8, 4, padding="same", mask=Mask.random((8, 6, 4, 4), 0.4), **options)
    return layer, torch.randn(2, 6, 7, 8, dtype=dtype)


def random_mask(like, density):
    """Another mask of a layer's shape."""
    return Mask.random(like.mask.shape, density)
