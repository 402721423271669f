"""The ops as functions: checks, choice of backend, call."""

from .active_weights import collect_active, expand_active
from .channel_gather import channel_gather
from .channel_scatter import channel_scatter
from .channel_select import channel_select
from .compact_conv2d import compact_conv2d
from .compact_linear import compact_linear
from .gated_conv2d import gated_conv2d
from .gated_linear import gated_linear
from .mask_gradient import mask_gradient
from .masked_conv2d import masked_conv2d
from .masked_linear import masked_linear

__all__ = [
    "channel_gather",
    "channel_scatter",
    "channel_select",
    "collect_active",
    "compact_conv2d",
    "compact_linear",
    "expand_active",
    "gated_conv2d",
    "gated_linear",
    "mask_gradient",
    "masked_conv2d",
    "masked_linear",
]
