"""Drop-in twins of `torch.nn` layers, gates on activations, and parameters that are trained in part."""

from .bypass import Bypass
from .channel_gate import ChannelGate, GatedChannels
from .compact_conv2d import CompactConv2d
from .compact_linear import CompactLinear
from .compact_sequential import CompactSequential
from .freeze import freeze, frozen_mask, keep_frozen, unfreeze
from .gated_conv2d import GatedConv2d
from .gated_linear import GatedLinear
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear

__all__ = [
    "Bypass",
    "ChannelGate",
    "CompactConv2d",
    "CompactLinear",
    "CompactSequential",
    "GatedChannels",
    "GatedConv2d",
    "GatedLinear",
    "MaskedConv2d",
    "MaskedLinear",
    "freeze",
    "frozen_mask",
    "keep_frozen",
    "unfreeze",
]
