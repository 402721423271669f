"""Activations `[samples, channels, ...]` as the channel kernels see them: what lies behind the channels as pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._memory_format import memory_format_of

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Numbers that kernels add, by what is added: half types in float32, integers in their own type, which wraps.
_UNSIGNED = {torch.uint8: torch.int8, torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class Activation(NamedTuple):
    """A tensor whose trailing dimensions are pixels at equal steps; strides are in elements."""

    tensor: Tensor
    samples: int
    channels: int
    pixels: int
    sample_stride: int
    channel_stride: int
    pixel_stride: int

    @property
    def strides(self) -> tuple[int, int, int]:
        """Of samples, channels and pixels."""
        return self.sample_stride, self.channel_stride, self.pixel_stride


def _pixel_stride(t: Tensor) -> int | None:
    """The distance between pixels, or None where the trailing dimensions are not one of equal steps."""
    stride, following = 1, None
    for d in range(t.dim() - 1, 1, -1):
        if t.shape[d] == 1:
            continue
        if following is None:
            stride = t.stride(d)
        elif t.stride(d) != following:
            return None
        following = t.stride(d) * t.shape[d]
    return stride


def activation(op: str, t: Tensor) -> Activation:
    """The tensor itself where kernels can read it in place, else a dense copy.

    Raises:
        RuntimeError: it has fewer than two dimensions.
    """
    if t.dim() < 2:
        raise RuntimeError(f"{op}: input must have shape [samples, channels, ...], got {list(t.shape)}")
    memory_format = memory_format_of(t)
    stride = _pixel_stride(t)
    if stride is None or (memory_format == torch.contiguous_format and stride != 1):
        t = t.contiguous(memory_format=memory_format)
        stride = _pixel_stride(t) or 1  # of no pixels there is no stride
    pixels = 1
    for size in t.shape[2:]:
        pixels = pixels * size
    return Activation(t, t.shape[0], t.shape[1], pixels, t.stride(0), t.stride(1), stride)


def result_like(of: Activation, samples: int, channels: int) -> Activation:
    """An uninitialised activation of another size, in the memory format and dtype of `of`."""
    t = of.tensor
    shape = (samples, channels, *t.shape[2:])
    memory_format = memory_format_of(t)
    result = torch.empty(shape, dtype=t.dtype, device=t.device, memory_format=memory_format)
    inner = (of.pixels, 1) if memory_format == torch.contiguous_format else (1, channels)
    return Activation(result, samples, channels, of.pixels, channels * of.pixels, *inner)


def words_of(t: Tensor) -> Tensor:
    """The same memory as integers of the elements' size, for kernels that copy. Not of complex128."""
    return t.view(_WORDS[t.dtype.itemsize])


def numbers_of(t: Tensor) -> Tensor:
    """The same memory as a dtype that kernels add: signed integers for others, whose sums have the same bits."""
    return t.view(_UNSIGNED[t.dtype]) if t.dtype in _UNSIGNED else t


def by_parts(run: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """What `run` makes of a complex tensor's real and imaginary parts, as one tensor in the memory format of `t`."""
    real, imag = run(t.real), run(t.imag)
    whole = torch.empty(real.shape, dtype=t.dtype, device=t.device, memory_format=memory_format_of(t))
    whole.real.copy_(real)
    whole.imag.copy_(imag)
    return whole


def tile_of_pixels(of: Activation, size: int = 1024) -> tuple[int, int]:
    """Channels and pixels of a program's tile: along what lies together, and no longer than that needs."""
    if of.pixel_stride != 1 or of.pixels == 1:  # channels lie together
        return 64, size // 64
    for pixels in (16, 64, 256):
        if of.pixels <= pixels:
            return size // pixels, pixels
    return 1, size
