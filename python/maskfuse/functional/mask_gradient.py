"""`mask_gradient`: a tensor as it is, and its gradient masked."""

from __future__ import annotations

from torch import Tensor

from .. import ops
from ..mask import Mask
from . import _check


def mask_gradient(input: Tensor, mask: Mask | Tensor) -> Tensor:
    """The input itself; backward multiplies its gradient by the mask, which freezes a part of it.

    Under a binary mask the gradient is exactly +0.0 where the mask is 0, also where the gradient that comes in is NaN
    or infinite. In forward mode the tangent is masked the same way. `nn.freeze` does this to a parameter for good.

    Plain PyTorch on every device, as a compiler fuses it; no backend has a kernel of its own and `use_backend` changes
    nothing. The output shares the input's memory in eager mode, so nothing is copied, and torch refuses to change it in
    place; under `torch.func` and in forward mode it is a copy. For backward a `Mask` is kept as its bits, a
    tensor as it is.

    Args:
        input: any shape, any strides, float32, float64, bfloat16 or float16. Autocast does not cast it.
        mask: the input's shape and device; expand one of fewer dimensions. `Mask`, bool or 0/1 integers: binary.
            Floating, of the input's dtype: real-valued, a constant that gets no gradient. Of a tensor on CUDA only
            integers are looked at, which waits for the device.

    Returns:
        The input's shape, dtype and values, bit for bit.

    Raises:
        TypeError: a dtype that is not named above.
        ValueError: shapes or devices that differ, or integers other than 0 and 1.
    """
    _check.floating(input, "input")
    return ops.mask_gradient(input, _check.mask_of(mask, input, make=lambda dense: dense, name="input"))
