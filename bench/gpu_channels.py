"""Rows of channel_gather and channel_scatter: against a copy that moves as many bytes, and against torch's indexing."""

from __future__ import annotations

import torch
from gpu_calls import OURS, Calls, Setting, Work, nbytes
from maskfuse import channel_gather, channel_scatter
from torch import Tensor

IMAGES, TINY_IMAGES = (128, 256, 56, 56), (4, 16, 6, 5)
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def _images(setting: Setting, layout: str, share: int = 1) -> Tensor:
    samples, channels, *size = setting.sizes(IMAGES, TINY_IMAGES)
    t = setting.normal(samples, channels // share, *size, dtype=torch.bfloat16)
    return t.contiguous(memory_format=FORMATS[layout])


def _half(setting: Setting) -> Tensor:
    channels = setting.sizes(IMAGES, TINY_IMAGES)[1]
    return setting.permutation(channels)[: channels // 2]


def _calls(setting: Setting, run: dict, moved: float, expected, about: dict) -> Calls:
    """Adds the copy: it reads half of the bytes, and writes the other half."""
    source = setting.normal(int(moved) // 4, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return Calls(
        run={"copy": lambda: target.copy_(source), **run},
        work=dict.fromkeys(["copy", *run], Work(moved)),
        expected=expected,
        unlike=("copy",),
        exact=True,
        about=about,
    )


def gather(setting: Setting, layout: str) -> Calls:
    setting.needs("channel_gather")
    x, c = _images(setting, layout), _half(setting)
    run = {"index_select": lambda: x.index_select(1, c), OURS: lambda: channel_gather(x, c)}
    return _calls(setting, run, nbytes(x), lambda: x[:, c], {"shape": list(x.shape)})


def scatter(setting: Setting, layout: str) -> Calls:
    setting.needs("channel_scatter")
    y, c = _images(setting, layout, share=2), _half(setting)
    full = (y.shape[0], 2 * y.shape[1], *y.shape[2:])

    def added() -> Tensor:
        zeros = torch.empty(full, dtype=y.dtype, device=y.device, memory_format=FORMATS[layout]).zero_()
        return zeros.index_add_(1, c, y)

    def expected() -> Tensor:
        return y.new_zeros(full).index_copy_(1, c, y)

    run = {"index_add_": added, OURS: lambda: channel_scatter(y, c, full[1])}
    return _calls(setting, run, 3 * nbytes(y), expected, {"shape": list(full)})


def gather_backward(setting: Setting, layout: str) -> Calls:
    """By the ops that derivatives call, so that a graph holds nothing else: ours must sum where an index repeats."""
    setting.needs("channel_scatter")
    y, c = _images(setting, layout, share=2), _half(setting)
    full = [y.shape[0], 2 * y.shape[1], *y.shape[2:]]
    op = torch.ops.maskfuse.channel_scatter
    run = {
        "index_add_": lambda: torch.ops.aten.index_select_backward(y, full, 1, c),
        OURS: lambda: op(y, c, full[1], None, full[0], False),
    }

    def expected() -> Tensor:
        return y.new_zeros(full).index_copy_(1, c, y)

    return _calls(setting, run, 3 * nbytes(y), expected, {"shape": full})


def scatter_backward(setting: Setting, layout: str) -> Calls:
    setting.needs("channel_gather")
    dx, c = _images(setting, layout), _half(setting)
    op = torch.ops.maskfuse.channel_gather
    run = {
        "index_select": lambda: dx.index_select(1, c),
        OURS: lambda: op(dx, c, dx.shape[1], None, dx.shape[0]),
    }
    return _calls(setting, run, nbytes(dx), lambda: dx[:, c], {"shape": list(dx.shape)})
