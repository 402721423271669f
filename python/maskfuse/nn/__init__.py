"""Drop-in twins of `torch.nn` layers, and gates on activations."""

from .channel_gate import ChannelGate, GatedChannels
from .compact_sequential import CompactSequential
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear

__all__ = ["ChannelGate", "CompactSequential", "GatedChannels", "MaskedConv2d", "MaskedLinear"]
