"""Dispatcher ops: fake implementations, autograd, vmap, and what makes each callable from Python.

Importing this package loads the compiled libraries and registers everything.
"""

from .. import _library as _library
from . import mask as mask
from .active_weights import collect_active, expand_active
from .autograd import is_recorded, plain
from .channel_gather import channel_gather, channel_scatter
from .channel_select import channel_select, channel_select_input_grad
from .compact_conv2d import compact_conv2d
from .compact_linear import compact_linear
from .gated_linear import gated_linear
from .gathered_conv2d import gathered_conv2d, gathered_conv2d_input_grad, gathered_conv2d_weight_grad
from .library import LIBRARY_GEMM, library_info
from .mask_gradient import mask_gradient, masked
from .masked_conv2d import (
    masked_conv2d,
    masked_conv2d_input_grad,
    masked_conv2d_unrecorded,
    masked_conv2d_weight_grad,
)
from .masked_linear import (
    masked_linear,
    masked_linear_input_grad,
    masked_linear_unrecorded,
    masked_linear_weight_grad,
)
from .soft_masked_linear import soft_masked_linear, soft_masked_linear_input_grad, soft_masked_linear_weight_grad

__all__ = [
    "LIBRARY_GEMM",
    "channel_gather",
    "channel_scatter",
    "channel_select",
    "channel_select_input_grad",
    "collect_active",
    "compact_conv2d",
    "compact_linear",
    "expand_active",
    "gated_linear",
    "is_recorded",
    "library_info",
    "gathered_conv2d",
    "gathered_conv2d_input_grad",
    "gathered_conv2d_weight_grad",
    "mask_gradient",
    "masked",
    "masked_conv2d",
    "masked_conv2d_input_grad",
    "masked_conv2d_unrecorded",
    "masked_conv2d_weight_grad",
    "masked_linear",
    "masked_linear_input_grad",
    "masked_linear_unrecorded",
    "masked_linear_weight_grad",
    "plain",
    "soft_masked_linear",
    "soft_masked_linear_input_grad",
    "soft_masked_linear_weight_grad",
]
