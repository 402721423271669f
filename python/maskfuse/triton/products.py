"""The Triton ops with their derivatives, which are those of the compiled ones: what functions call."""

from __future__ import annotations

from ..ops.active_weights import products as _active_products
from ..ops.channel_gather import products as _gather_products
from ..ops.channel_select import products as _select_products
from ..ops.compact_conv2d import products as _compact_conv2d_products
from ..ops.compact_linear import products as _compact_linear_products
from ..ops.gated_linear import product as _gated_product
from ..ops.gathered_conv2d import products as _gathered_products
from ..ops.masked_conv2d import products as _conv2d_products
from ..ops.masked_linear import products as _linear_products
from ..ops.soft_masked_linear import products as _soft_products
from ._launch import NAMESPACE

_soft = _soft_products(NAMESPACE)

masked_linear, masked_linear_input_grad, masked_linear_weight_grad = _linear_products(NAMESPACE)
soft_masked_linear, soft_masked_linear_input_grad, soft_masked_linear_weight_grad = _soft
gated_linear = _gated_product(NAMESPACE, _soft)
masked_conv2d, masked_conv2d_input_grad, masked_conv2d_weight_grad = _conv2d_products(NAMESPACE)
gathered_conv2d, gathered_conv2d_input_grad, gathered_conv2d_weight_grad = _gathered_products(NAMESPACE)
channel_gather, channel_scatter = _gather_products(NAMESPACE)
channel_select, channel_select_input_grad = _select_products(NAMESPACE)
expand_active, collect_active = _active_products(NAMESPACE)
compact_linear, compact_linear_input_grad, compact_linear_values_grad = _compact_linear_products(NAMESPACE)
compact_conv2d, compact_conv2d_input_grad, compact_conv2d_values_grad = _compact_conv2d_products(NAMESPACE)
