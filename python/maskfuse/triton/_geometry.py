"""The geometry of a convolution, and what fits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..ops.masked_conv2d import output_size

Ints = Sequence[int]


class Geometry(NamedTuple):
    """Of a convolution: of height and width each, and into how many groups its channels are cut."""

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1

    def flat(self) -> tuple[int, ...]:
        """As kernels take it."""
        return (*self.stride, *self.padding, *self.dilation)


def check_images(op: str, x: Tensor, weight_shape: Ints, geometry: Geometry, backward: Ints | None = None) -> list[int]:
    """Height and width of the convolution's result of images x; with `backward`, those of its input, x must fit.

    Raises:
        RuntimeError: shapes or a geometry that do not fit.
    """
    groups = geometry.groups
    if len(weight_shape) != 4 or groups < 1 or weight_shape[0] % groups:
        raise RuntimeError(
            f"{op}: weight must have shape [out, in / groups, height, width] and groups divide out, got"
            f" {list(weight_shape)} and {groups} groups"
        )
    if any(len(pair) != 2 for pair in geometry[:3]):
        raise RuntimeError(f"{op}: stride, padding and dilation must be two integers each, got {geometry}")
    out, inp, *kernel = weight_shape
    if (
        any(s < 1 for s in geometry.stride)
        or any(p < 0 for p in geometry.padding)
        or any(d < 1 for d in geometry.dilation)
    ):
        raise RuntimeError(f"{op}: stride and dilation must be positive and padding not negative, got {geometry}")
    input_size = list(x.shape[2:]) if backward is None else list(backward)
    size = output_size(input_size, kernel, geometry.stride, geometry.padding, geometry.dilation)
    channels = inp * groups if backward is None else out
    if x.dim() != 4 or x.shape[1] != channels or (backward is not None and list(x.shape[2:]) != size):
        raise RuntimeError(
            f"{op}: {'input' if backward is None else 'grad'} {list(x.shape)} does not fit weight {list(weight_shape)}"
            f" in {groups} groups"
        )
    if any(s < 0 for s in size) or any(t < 1 for t in kernel):
        raise RuntimeError(f"{op}: a kernel of {kernel} must not be empty or exceed the padded input, {input_size}")
    return size
