"""The ops as Triton kernels, for GPUs that the compiled CUDA library does not serve: `torch.ops.maskfuse_triton`.

Importing this package imports triton, so nothing here is imported before the backend is used. Each op has the name and
the schema of its twin in `torch.ops.maskfuse`, and takes the same plan as on CUDA.
"""

from . import (
    channel_gather,
    channel_scatter,
    channel_select,
    gated_linear,
    gathered_conv2d,
    mask,
    masked_conv2d,
    masked_linear,
    masked_linear_decode,
    soft_masked_linear,
)
from ._launch import INTERPRETED, NAMESPACE
from .mask import try_launch

from . import products  # isort: skip  behind the ops, which it makes differentiable

__all__ = [
    "INTERPRETED",
    "NAMESPACE",
    "channel_gather",
    "channel_scatter",
    "channel_select",
    "gated_linear",
    "gathered_conv2d",
    "mask",
    "masked_conv2d",
    "masked_linear",
    "masked_linear_decode",
    "products",
    "soft_masked_linear",
    "try_launch",
]
