"""Kernels and layers for networks in which weights or channels are switched off by a mask."""

from . import distributed, functional, nn, optim, reference, schedule
from ._report.model import report
from ._self_test.record import version as _version
from ._self_test.run import self_test
from .backends import use_backend
from .checkpoint import dense_state_dict, load_compressed, save_compressed
from .compact import compact
from .convert import Policy, convert
from .explain import explain
from .fold import fold
from .functional.channel_gather import channel_gather
from .functional.channel_scatter import channel_scatter
from .functional.channel_select import channel_select
from .functional.gated_conv2d import gated_conv2d
from .functional.gated_linear import gated_linear
from .functional.mask_gradient import mask_gradient
from .functional.masked_conv2d import masked_conv2d
from .functional.masked_linear import masked_linear
from .info import build_info
from .mask import Mask
from .optim.protect import is_protected, protect
from .packing import pack, unpack
from .syncing import sync_masks

__version__ = _version()

__all__ = [
    "Mask",
    "Policy",
    "build_info",
    "channel_gather",
    "channel_scatter",
    "channel_select",
    "compact",
    "convert",
    "dense_state_dict",
    "distributed",
    "explain",
    "fold",
    "functional",
    "gated_conv2d",
    "gated_linear",
    "is_protected",
    "load_compressed",
    "mask_gradient",
    "masked_conv2d",
    "masked_linear",
    "nn",
    "optim",
    "pack",
    "protect",
    "reference",
    "report",
    "save_compressed",
    "schedule",
    "self_test",
    "sync_masks",
    "unpack",
    "use_backend",
]
