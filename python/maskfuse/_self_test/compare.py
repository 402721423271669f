"""What the checks share: operands of their own random numbers, packed masks, and comparisons that say what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._accuracy import sum_bound

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF = (torch.bfloat16, torch.float16)


def dtypes(ops: Any) -> tuple[torch.dtype, ...]:
    """Those that the kernels are checked in: all, or where each is compiled first, which takes seconds, one of each
    kind."""
    return (torch.float32, torch.bfloat16) if ops.name.endswith("triton") else DTYPES


class Mismatch(AssertionError):
    """A kernel's result is not the reference's."""


def has_kernel(ops: Any, name: str, device: torch.device) -> bool:
    """Whether the op is implemented for tensors on the device. `ops` is `torch.ops.maskfuse` or what stands for it."""
    keys = ["CUDA" if device.type == "cuda" else "CPU"]
    if ops.name != "maskfuse" or device.type == "cuda":
        keys.append("CompositeExplicitAutograd")  # for every device
    try:
        return any(torch._C._dispatch_has_kernel_for_dispatch_key(f"{ops.name}::{name}", key) for key in keys)
    except RuntimeError:  # there is no such op
        return False


@contextmanager
def library_used(ops: Any, device: torch.device, when: str) -> Iterator[None]:
    """Leaves products to torch's library "never", where it is "faster", or "always", where kernels have the choice."""
    if not has_kernel(ops, "use_masked_library", device):
        yield
        return
    before = ops.use_masked_library(when)
    try:
        yield
    finally:
        ops.use_masked_library(before)


class Sums(NamedTuple):
    """What a product should give: sums in float64, and the same sums over absolute values, to which errors belong."""

    exact: Tensor
    magnitude: Tensor

    def times(self, factor: Tensor) -> Sums:
        """Every sum times its own factor."""
        return Sums(self.exact * factor, self.magnitude * factor.double().abs())


class Operands:
    """Operands of a check, from a generator of its own and always the same: the user's random state stays as it is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator("cpu").manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Normal numbers rounded to `dtype`, on the CPU."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float32, device="cpu").to(dtype)

    def whole(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Whole numbers from -8 to 8, whose sums are exact in every dtype, on the CPU."""
        return torch.randint(-8, 9, shape, generator=self.generator, dtype=torch.int64, device="cpu").to(dtype)

    def flags(self, *shape: int) -> Tensor:
        """A bool tensor of which about half is true, on the CPU."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float32, device="cpu") < 0.5

    def order(self, count: int) -> Tensor:
        """The numbers below `count`, shuffled: int64, on the CPU."""
        return torch.randperm(count, generator=self.generator, dtype=torch.int64, device="cpu")

    def there(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors on the device."""
        return [t.to(self.device) for t in tensors]

    def poison(self, *shape: int, dtype: torch.dtype) -> None:
        """Makes it likely that a result of this shape in which no kernel writes an element has a NaN there: fills and
        frees the memory that the allocator hands out next."""
        torch.full(shape, math.nan, dtype=dtype, device=self.device)


def packed(dense: Tensor) -> Tensor:
    """The bits of a bool tensor `[rows, columns]` as `Mask.bits` has them, by plain PyTorch."""
    rows, columns = dense.shape
    words = -(-columns // 32)
    whole = torch.zeros((rows, words * 32), dtype=torch.int64, device=dense.device)
    whole[:, :columns] = dense
    place = torch.arange(32, dtype=torch.int64, device=dense.device)
    value = (whole.reshape(rows, words, 32) << place).sum(2)
    return torch.where(value >= 1 << 31, value - (1 << 32), value).to(torch.int32)


def plans(ops: Any, bits: Tensor, columns: int, taps: int) -> list[list[Tensor]]:
    """No plan, and the one that kernels on the bits' device take: lists of blocks, or the CPU's indices."""
    if has_kernel(ops, "mask_lists", bits.device):
        return [[], ops.mask_lists(bits, columns, max(1, taps))]
    together = max(1, taps)
    across = ops.mask_transpose(bits, columns, together)
    plan = [ops.mask_plan(bits, columns, taps), ops.mask_plan(across, bits.shape[0] * together, taps)]
    return [[], plan] if all(t.numel() for t in plan) else [[]]


def same_kind(what: str, got: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Raises Mismatch unless a result has this shape and dtype."""
    if got.shape != shape or got.dtype != dtype:
        raise Mismatch(f"{what}: the result is {got.dtype} {list(got.shape)}, not {dtype} {list(shape)}")


def equal(what: str, got: Tensor, want: Tensor) -> None:
    """Raises Mismatch unless two tensors are the same in every element, zeros in their sign too."""
    same_kind(what, got, want.shape, want.dtype)
    got = got.cpu()
    wrong = got != want
    if want.is_floating_point():
        wrong |= got.signbit() != want.signbit()
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise Mismatch(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements differ, the first at {list(at)}: "
            f"{got[at].item()}, not {want[at].item()}"
        )


def close(what: str, got: Tensor, sums: Sums, dtype: torch.dtype, terms: int, rounded: bool = False) -> None:
    """Raises Mismatch unless sums of `terms` products are within their bounds (`sum_bound`) of the exact ones."""
    what = f"{what} in {str(dtype).removeprefix('torch.')}"
    want = sums.exact
    same_kind(what, got, want.shape, dtype)
    got = got.cpu().double()
    excess = (got - want).abs() / sum_bound(want, sums.magnitude, dtype, terms, rounded)
    wrong = ~(excess <= 1.0)  # NaN is wrong
    if bool(wrong.any()):
        flat = int(excess.nan_to_num(math.inf).argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape)]
        raise Mismatch(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are out of bounds, the worst at {at}: "
            f"{got.flatten()[flat].item():.9g}, not {want.flatten()[flat].item():.9g} "
            f"({excess.flatten()[flat].item():.3g} times its bound)"
        )


def zero(what: str, got: Tensor, masked: Tensor) -> None:
    """Raises Mismatch unless a gradient is exactly +0.0 where `masked` is true."""
    found = got.cpu()[masked]
    if bool((found != 0).any()) or bool(found.signbit().any()):
        raise Mismatch(f"{what}: a masked weight has a gradient that is not +0.0")


# Operands of many tiles are made of few rows, over and over. The number of rows has no divisor in common with a tile's
# side, so that every tile meets them elsewhere; the result repeats with them, and the reference computes it once.
LEFT_PERIOD, RIGHT_PERIOD = 61, 67


def repeating(period: int, length: int, device: torch.device) -> Tensor:
    """int64 `[length]`: 0, 1, ... period - 1, 0, ..., on the device."""
    return torch.arange(length, device=device) % period


def close_periodic(what: str, got: Tensor, sums: Sums, dtype: torch.dtype, terms: int) -> None:
    """`close` for a result `[m, n]` that repeats the sums `[p, q]` in both directions; compared where it lies.

    In float32, and a part of it at a time, for what is copied is to be small: for the half types.
    """
    m, n = got.shape
    rows, columns = sums.exact.shape
    step = 4 * rows
    across = repeating(columns, n, got.device)
    bound = sum_bound(*sums, dtype, terms)
    part, limit = (t.float().to(got.device).repeat(4, 1)[:, across] for t in (sums.exact, bound * 1.01))
    wrong = torch.zeros((), dtype=torch.int64, device=got.device)
    for first in range(0, m, step):
        here = got[first : first + step]
        error = (here.float() - part[: here.shape[0]]).abs()
        wrong += (~(error <= limit[: here.shape[0]])).sum()
    if int(wrong) > 0:
        raise Mismatch(
            f"{what} in {str(dtype).removeprefix('torch.')}: {int(wrong)} of {m * n} elements are out of bounds"
        )


def _multiprocessors(device: torch.device) -> int:
    # Tests run the device's kernels on the host, which counts six (csrc/torch/cuda_library.h).
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 6


def _capability(ops: Any, device: torch.device) -> int:
    """Ten times the compute capability."""
    if device.type != "cuda":
        return int(ops.capability()) if hasattr(ops, "capability") else 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def side_of_large(device: torch.device) -> int:
    """Rows and columns of a result that has a tile of 128 x 128 for each multiprocessor, the last ones partial."""
    return 128 * (math.isqrt(_multiprocessors(device) - 1) + 1) - 27


def sides_of_hopper(ops: Any, device: torch.device) -> list[int]:
    """Rows and columns of results that Hopper's kernel computes, with each of its tiles, the last ones partial."""
    about = _multiprocessors(device), _capability(ops, device)
    sides: dict[str, int] = {}
    for tiles in range(1, 2 * math.isqrt(about[0]) + 1) if about[1] == 90 else ():
        side = 128 * tiles - 24
        kernel = ops.masked_linear_choice("forward", side, side, 64, torch.bfloat16, False, False, *about)
        if kernel.startswith("product_sm90"):
            sides.setdefault(kernel, side)
    return list(sides.values())
