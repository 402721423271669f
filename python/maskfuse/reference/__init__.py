"""What is right: every op in plain PyTorch, in any floating dtype, differentiated by PyTorch itself.

Nothing is checked: bad input raises what torch raises for it, or gives a result that means nothing.
"""

from .active_weights import collect_active, expand_active
from .channel_gather import channel_gather
from .channel_scatter import channel_scatter
from .channel_select import channel_select
from .gated_conv2d import gated_conv2d
from .gated_linear import gated_linear
from .mask_gradient import mask_gradient
from .masked_conv2d import masked_conv2d
from .masked_linear import masked_linear

__all__ = [
    "channel_gather",
    "channel_scatter",
    "collect_active",
    "expand_active",
    "channel_select",
    "gated_conv2d",
    "gated_linear",
    "mask_gradient",
    "masked_conv2d",
    "masked_linear",
]
