"""`Mask`: which weights of a tensor are active, one bit each."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import backends
from .ops.mask import words

_KINDS = ("empty", "full", "channels", "blocks", "n:m", "unstructured")
_FULL = _KINDS.index("full")


class Mask:
    """An immutable binary mask over a weight of shape `[out, in, ...]`, one bit a weight.

    The bits of output `o` are row `o` of `bits`, an int32 tensor `[out, ceil(in * ... / 32)]`: least
    significant bit first, zero past the last column. A one-dimensional mask is a single row.

    Make one with `from_dense`, `threshold`, `topk`, `random`, `n_m`, `blocks`, `channels`, `full` or
    `from_bits`; combine with `&`, `|`, `~`; compare with `==`. A mask pickles, deep-copies (to itself), and
    goes into safetensors as `mask.bits`.
    """

    __slots__ = ("_block_lists", "_facts", "_plan", "bits", "known_full", "shape")

    bits: Tensor
    shape: torch.Size
    known_full: bool  # the plan was asked for, for which the bits were looked at, and every weight is active
    _plan: list[Tensor] | None
    _block_lists: list[Tensor] | None
    _facts: tuple[int, ...] | None

    def __init__(self, bits: Tensor, shape: Sequence[int], plan: list[Tensor] | None = None) -> None:
        if not torch.compiler.is_compiling() and bits.is_inference():  # autograd could not save them
            with torch.inference_mode(False):
                bits = bits.clone()
        set_once = super().__setattr__
        set_once("bits", bits)
        set_once("shape", torch.Size(shape))
        set_once("known_full", False)
        set_once("_plan", plan)
        set_once("_facts", None)
        set_once("_block_lists", None)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Mask is immutable: cannot set {name!r}; make a new mask")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Mask is immutable: cannot delete {name!r}")

    # -- making one ------------------------------------------------------------------------------------

    @staticmethod
    def from_dense(t: Tensor) -> Mask:
        """Mask from a bool tensor of any shape with at least one dimension, on CPU or CUDA.

        Raises:
            TypeError: `t` is not a bool tensor.
            ValueError: `t` is a scalar.
        """
        if not isinstance(t, Tensor) or t.dtype != torch.bool:
            raise TypeError(
                f"t must be a bool tensor, got {describe(t)}; "
                "use t.bool() for 0/1 integers, Mask.threshold(t, value) for weights"
            )
        rows, columns = _rows_columns(t.shape, "t")
        return Mask(packed_bits(t.reshape(rows, columns)), t.shape)

    @staticmethod
    def from_bits(bits: Tensor, shape: Sequence[int]) -> Mask:
        """Mask from packed bits as `Mask.bits` has them, which are copied.

        Raises:
            TypeError: `bits` is not an int32 tensor.
            ValueError: `bits` has another shape than `shape` needs, bits set past the last column, or no values of its
                own: it is sparse or on meta.
        """
        rows, columns = _rows_columns(shape, "shape")
        if not isinstance(bits, Tensor) or bits.dtype != torch.int32:
            raise TypeError(f"bits must be an int32 tensor, got {describe(bits)}")
        if bits.layout is not torch.strided or bits.is_nested or bits.is_meta:
            raise ValueError(f"bits must be a plain tensor with values, got one of {bits.layout} on {bits.device}")
        if tuple(bits.shape) != (rows, words(columns)):
            raise ValueError(
                f"bits must have shape {[rows, words(columns)]} for a mask of shape {list(shape)}, "
                f"got {list(bits.shape)}"
            )
        bits = bits.detach().clone(memory_format=torch.contiguous_format)
        if bool((bits & ~_valid_bits(columns, bits.device)).any()):
            raise ValueError(f"bits has bits set past the last column of a mask of shape {list(shape)}")
        return Mask(bits, shape)

    @staticmethod
    def full(shape: Sequence[int], active: bool = True, device: torch.device | str | None = None) -> Mask:
        """Mask with every weight active, or none."""
        rows, columns = _rows_columns(shape, "shape")
        row = _valid_bits(columns, device or "cpu")
        return Mask((row if active else torch.zeros_like(row)).repeat(rows, 1), shape)

    @staticmethod
    def threshold(t: Tensor, value: float) -> Mask:
        """Active where `|t| > value`. Magnitude pruning at a fixed threshold."""
        _check_real(t, "t")
        t = t.detach()
        return Mask.from_dense((t > value) | (t < -value))  # abs of the smallest integer is itself

    @staticmethod
    def topk(scores: Tensor, density: float) -> Mask:
        """Active at the `round(density * numel)` largest scores; equal scores go to the lower index.

        Scores are taken as they are: pass `weight.abs()` for magnitude pruning.

        Raises:
            ValueError: `density` is outside 0..1, or a score is NaN.
        """
        _check_real(scores, "scores")
        density = float(density)
        _check_density(density)
        flat = _sortable(scores, "scores").reshape(-1)
        return Mask.from_dense(largest(flat, round(density * flat.numel())).reshape(scores.shape))

    @staticmethod
    def random(shape: Sequence[int], density: float, generator: torch.Generator | None = None) -> Mask:
        """Active at `round(density * numel)` positions drawn uniformly, on the generator's device (CPU)."""
        _rows_columns(shape, "shape")
        density = float(density)
        _check_density(density)
        device = generator.device if generator is not None else torch.device("cpu")
        numel = math.prod(shape)
        scores = torch.rand(numel, generator=generator, device=device, dtype=torch.float64)
        return Mask.from_dense(largest(scores, round(density * numel)).reshape(tuple(shape)))

    @staticmethod
    def n_m(scores: Tensor, n: int, m: int) -> Mask:
        """Active at the `n` largest of every `m` consecutive scores along the input dimension (dim 1).

        Raises:
            ValueError: not 0 <= n <= m, the input dimension is no multiple of m, or a score is NaN.
        """
        _check_real(scores, "scores")
        if scores.dim() < 2:
            raise ValueError(f"scores must have shape [out, in, ...], got {list(scores.shape)}")
        if not (m > 0 and 0 <= n <= m):
            raise ValueError(f"n and m must satisfy 0 <= n <= m, m > 0, got n={n}, m={m}")
        if scores.shape[1] % m:
            raise ValueError(f"m={m} must divide the input dimension of scores, {list(scores.shape)}")
        if scores.numel() == 0:
            return Mask.full(scores.shape, device=scores.device)
        grouped = _sortable(scores, "scores").movedim(1, -1).unflatten(-1, (-1, m))
        best = grouped.sort(dim=-1, descending=True, stable=True).indices[..., :n]
        active = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True)
        return Mask.from_dense(active.flatten(-2).movedim(-1, 1))

    @staticmethod
    def blocks(active: Tensor, block: tuple[int, int], shape: Sequence[int] | None = None) -> Mask:
        """Active in whole blocks of `block = (rows, columns)` weights.

        `active` is bool `[ceil(out / rows), ceil(in / columns)]`; blocks at the edge of `shape` are cut. Without
        `shape` no block is cut. For a convolution `in` counts the flattened trailing dimensions.
        """
        if not isinstance(block, (tuple, list)) or len(block) != 2:
            raise TypeError(f"block must be (rows, columns), got {block!r}")
        height, width = block
        if not isinstance(active, Tensor) or active.dtype != torch.bool or active.dim() != 2:
            raise TypeError(f"active must be a bool tensor [block rows, block columns], got {describe(active)}")
        if height < 1 or width < 1:
            raise ValueError(f"block must be positive, got {block}")
        shape = tuple(shape) if shape is not None else (active.shape[0] * height, active.shape[1] * width)
        rows, columns = _rows_columns(shape, "shape")
        needed = [-(-rows // height), -(-columns // width)]
        if list(active.shape) != needed:
            raise ValueError(
                f"active must have shape {needed} for shape {list(shape)} in blocks of {tuple(block)}, "
                f"got {list(active.shape)}"
            )
        dense = active.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
        return Mask.from_dense(dense.reshape(shape))

    @staticmethod
    def channels(shape: Sequence[int], out: Tensor | None = None, inp: Tensor | None = None) -> Mask:
        """Active where both the output channel (dim 0) and the input channel (dim 1) are.

        `out` and `inp` are bool `[channels]` or integer indices of the active channels; None keeps all.

        Raises:
            TypeError: neither bool nor integer.
            ValueError: another length, or a shape without an input dimension.
            IndexError: an index out of range.
        """
        _rows_columns(shape, "shape")
        if len(shape) < 2:
            raise ValueError(f"shape must be [out, in, ...], got {list(shape)}")
        device = next((c.device for c in (out, inp) if isinstance(c, Tensor)), torch.device("cpu"))
        rows = _channel_flags(out, shape[0], "out", device)
        columns = _channel_flags(inp, shape[1], "inp", device)
        dense = (rows[:, None] & columns[None, :]).reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
        return Mask.from_dense(dense.expand(tuple(shape)))

    # -- what it is ------------------------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Number of weights, active or not."""
        return math.prod(self.shape)

    @property
    def active(self) -> int:
        """Number of active weights."""
        return self._found()[1]

    @property
    def density(self) -> float:
        """Active share of the weights, 0..1; 1 for a mask over nothing."""
        return self.active / self.numel if self.numel else 1.0

    @property
    def sparsity(self) -> float:
        """Masked share of the weights, 1 - density."""
        return 1.0 - self.density

    @property
    def structure(self) -> str:
        """What the bits look like: empty, full, channels, blocks, n:m or unstructured.

        Found from the bits: `channels` where every row is empty or equal to one pattern over whole channels;
        `blocks` where the mask is constant on a grid (`block` has its size); `n:m` where exactly n of every m
        in 2, 4, 8, 16, 32 consecutive inputs are active (`n_of_m` has them).
        """
        return _KINDS[self._found()[0]]

    @property
    def known_channels(self) -> bool:
        """Whether the plan was asked for, for which the bits were looked at, and the structure is `channels`."""
        return bool(self._plan) and self._facts is not None and _KINDS[self._facts[0]] == "channels"

    @property
    def block(self) -> tuple[int, int] | None:
        """Size of the largest grid cell on which a `blocks` mask is constant, else None."""
        facts = self._found()
        return (facts[2], facts[3]) if self.structure == "blocks" else None

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(n, m) of an `n:m` mask, else None."""
        facts = self._found()
        return (facts[4], facts[5]) if self.structure == "n:m" else None

    @property
    def nbytes(self) -> int:
        """Bytes that the bits take, and the plan where it has been made."""
        return sum(t.numel() * t.element_size() for t in (self.bits, *(self._plan or [])))

    @property
    def plan(self) -> list[Tensor]:
        """What kernels derive from the bits, as ops take it: on the CPU the index of the mask of a linear layer
        or a convolution, and of its transpose, in which a convolution's taps stay together
        (`csrc/cpu/masked_linear_plan.h`), about two bytes an active weight. On CUDA the lists of blocks that hold
        active weights (`csrc/cuda/mask_lists.h`), a few bytes for each 128 x 64 weights, and for a convolution the bits
        in the order in which its kernels read them; of a size that depends on the shape alone, but for lists that would
        leave out less than three tenths of the blocks, which are empty.

        Made in parallel when it is first asked for, which layers do in `set_mask`, and once for all threads and all
        layers that share the mask. Empty for a mask that needs none (every weight active), of fewer than 4096 weights,
        of other than two or four dimensions or on another device, and in traced code that meets the mask before its
        plan is made.
        """
        plan = self._plan
        if plan is None:
            if torch.compiler.is_compiling():
                return []
            with _planning:
                plan = self._plan  # another thread may have made it meanwhile
                if plan is None:
                    plan = _make_plan(self)
                    found = self._facts if has_plan(self) else None  # a plan looks the structure up
                    object.__setattr__(self, "known_full", found is not None and _KINDS[found[0]] == "full")
                    object.__setattr__(self, "_plan", plan)
        return plan

    @property
    def block_lists(self) -> list[Tensor]:
        """The plan that kernels on a GPU take; of a mask on the CPU, for Triton's interpreter, made by its ops."""
        plan = self.plan
        if self.device.type != "cpu" or not plan:
            return plan
        if self._block_lists is None:
            if torch.compiler.is_compiling():
                return []
            object.__setattr__(self, "_block_lists", _make_block_lists(self, torch.ops.maskfuse_triton))
        assert self._block_lists is not None
        return self._block_lists

    def active_channels(self) -> list[Tensor]:
        """The rows and columns that have an active weight, and the place of each row and column among these.

        Of a mask of whole channels these say all of it; kernels then work on the active ones alone.

        Returns:
            Four int32 tensors on the CPU: rows in rising order, columns in rising order, `[out]` each row's place in
            the first or -1, `[in * ...]` each column's place in the second or -1.
        """
        rows, columns = _rows_columns(self.shape, "shape")
        dense = torch.ops.maskfuse.mask_unpack(self.bits.cpu(), columns)
        flags = [dense.any(1), dense.any(0)] if dense.numel() else [dense.new_zeros(rows), dense.new_zeros(columns)]
        lists = [f.nonzero().squeeze(1).int() for f in flags]
        places = [torch.where(f, f.cumsum(0) - 1, -1).int() for f in flags]
        return [*lists, *places]

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    def dense(self) -> Tensor:
        """The mask as a bool tensor of its shape, on its device."""
        _, columns = _rows_columns(self.shape, "shape")
        ops = bit_ops(self.device)
        if ops is None:
            return torch.ops.maskfuse.mask_unpack(self.bits.cpu(), columns).to(self.device).reshape(self.shape)
        return ops.mask_unpack(self.bits, columns).reshape(self.shape)

    def to(self, device: torch.device | str) -> Mask:
        """The mask on `device`; itself where it is there already."""
        device = torch.device(device)
        bits = self.bits.to(device)
        if bits is self.bits:
            return self
        moved = Mask(bits, self.shape)
        object.__setattr__(moved, "_facts", self._facts)
        object.__setattr__(moved, "known_full", self.known_full)
        return moved

    def _found(self) -> tuple[int, ...]:
        if self._facts is None:
            _, columns = _rows_columns(self.shape, "shape")
            inner = math.prod(self.shape[2:])
            facts = torch.ops.maskfuse.mask_structure(self.bits.cpu(), columns, max(inner, 1))
            # Two threads may both get here; they find the same.
            object.__setattr__(self, "_facts", tuple(facts.tolist()))
        assert self._facts is not None
        return self._facts

    # -- combining -------------------------------------------------------------------------------------

    def _combine(self, other: object, name: str, operation: Callable[[Tensor, Tensor], Tensor]) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        if other.shape != self.shape:
            raise ValueError(
                f"masks combined with {name} must have one shape, got {list(self.shape)} and {list(other.shape)}"
            )
        if other.device != self.device:
            raise ValueError(f"masks combined with {name} must be on one device, got {self.device} and {other.device}")
        return Mask(operation(self.bits, other.bits), self.shape)

    def __and__(self, other: object) -> Mask:
        """Active where both are."""
        return self._combine(other, "&", torch.bitwise_and)

    def __or__(self, other: object) -> Mask:
        """Active where either is."""
        return self._combine(other, "|", torch.bitwise_or)

    def __invert__(self) -> Mask:
        """Active where this one is not."""
        _, columns = _rows_columns(self.shape, "shape")
        return Mask(self.bits ^ _valid_bits(columns, self.device), self.shape)

    def __eq__(self, other: object) -> bool:
        """True for a mask of the same shape with the same bits, wherever it is."""
        if not isinstance(other, Mask):
            return NotImplemented
        return self is other or (self.shape == other.shape and torch.equal(self.bits.cpu(), other.bits.cpu()))

    def __hash__(self) -> int:
        """Equal masks have equal hashes."""
        return hash((self.shape, self.active))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles bits and shape; what is derived from them is found again."""
        return _rebuild, (self.bits, tuple(self.shape))

    def __copy__(self) -> Mask:
        """Itself: it cannot change."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Mask:
        """Itself: it cannot change, so copies of a layer share it."""
        return self

    def __repr__(self) -> str:
        """Shape, active share, structure and device."""
        detail = {"blocks": f" {self.block}", "n:m": f" {self.n_of_m}"}.get(self.structure, "")
        return (
            f"Mask({list(self.shape)}, {self.active} of {self.numel} active ({self.density:.2%}), "
            f"{self.structure}{detail}, {self.device})"
        )


def of_one_call(dense: Tensor) -> Mask:
    """`Mask.from_dense` for a call that makes its mask and drops it: without a plan where making one would wait."""
    mask = Mask.from_dense(dense)
    return Mask(mask.bits, mask.shape, plan=[]) if plan_waits(mask.device) else mask


def plan_waits(device: torch.device) -> bool:
    """Whether making a plan reads the bits back from the device: then it can be no part of a call, which must not wait
    and may be captured in a graph."""
    return device.type == "cuda"


_planning = threading.Lock()


def _unlock_in_child() -> None:
    """A process forked while another thread made a plan has the lock, and nobody who would release it."""
    global _planning
    _planning = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)

# Weights below which a call costs more than anything that a plan could save.
_PLANNED = 4096

# Active share of the weights up to which a product of whole channels runs on the active ones alone.
COMPACT_DENSITY = 0.8

# Share of the blocks of 128 x 64 with an active weight up to which kernels on a GPU visit these alone: what skips the
# others takes 1.3 times as long for each block as the library, which skips none.
LISTED_SHARE = 0.7


def has_plan(mask: Mask) -> bool:
    """Whether masks of this shape have one, so that the structure is looked up for it."""
    return len(mask.shape) in (2, 4) and mask.numel >= _PLANNED


def _make_plan(mask: Mask) -> list[Tensor]:
    if not has_plan(mask) or mask.structure == "full":
        return []
    rows, columns = _rows_columns(mask.shape, "shape")
    if mask.device.type == "cuda":
        ops = bit_ops(mask.device)
        return [] if ops is None else _make_block_lists(mask, ops)
    if mask.device.type != "cpu":
        return []
    # A channel's weights lie together; in a linear layer every weight is on its own, which 0 stands for.
    taps = math.prod(mask.shape[2:]) if len(mask.shape) == 4 else 0
    together = max(1, taps)
    with torch.inference_mode(False):
        transposed = torch.ops.maskfuse.mask_transpose(mask.bits, columns, together)
        plan = [
            torch.ops.maskfuse.mask_plan(mask.bits, columns, taps),
            torch.ops.maskfuse.mask_plan(transposed, rows * together, taps),
        ]
    for t in plan:
        # What torch._dynamo.maybe_mark_dynamic sets, without importing the compiler: a mask of another size of plan
        # does not recompile a model.
        t._dynamo_weak_dynamic_indices = {0}
    return plan if all(t.numel() for t in plan) else []


def _make_block_lists(mask: Mask, ops: Any) -> list[Tensor]:
    """The plan of kernels on a GPU, made by `ops`."""
    _, columns = _rows_columns(mask.shape, "shape")
    with torch.inference_mode(False):
        plan: list[Tensor] = ops.mask_lists(mask.bits, columns, max(1, math.prod(mask.shape[2:])))
        plan[:2] = [lists if _worth_listing(lists) else lists[:0] for lists in plan[:2]]
        if len(mask.shape) == 2 and mask.structure == "channels" and mask.density <= COMPACT_DENSITY:
            plan = [*plan, *(t.to(mask.device) for t in mask.active_channels())]
        return plan


def _worth_listing(lists: Tensor) -> bool:
    """Whether lists `[groups, 1 + blocks]` of active blocks, behind their number, leave out enough of them."""
    return int(lists[:, 0].sum()) <= LISTED_SHARE * lists.shape[0] * (lists.shape[1] - 1)


def has_lists(plan: list[Tensor], direction: str) -> bool:
    """Whether a pass is given a list of the blocks that it visits, by a plan of kernels on a GPU."""
    return bool(plan) and plan[1 if direction == "input_grad" else 0].shape[0] > 0


def bit_ops(device: torch.device) -> Any:
    """What packs and unpacks bits on a device: the compiled ops, or on a GPU where those cannot run or failed their
    self-test the Triton ones; of backends asked for, the first of the two. None where the host has to: the reference
    has no bits of its own."""
    if device.type != "cuda":
        return torch.ops.maskfuse
    for name in backends.requested() or ("cuda", "triton"):
        if name in ("cuda", "triton") and backends.trusted(name, "mask", device):
            return torch.ops.maskfuse if name == "cuda" else torch.ops.maskfuse_triton
    return None


def packed_bits(dense: Tensor) -> Tensor:
    """The bits of a bool tensor `[rows, columns]`, as `Mask.bits` has them, on its device."""
    ops = bit_ops(dense.device)
    if ops is None:
        return torch.ops.maskfuse.mask_pack(dense.cpu()).to(dense.device)
    return ops.mask_pack(dense)


def describe(value: object) -> str:
    """The value as error messages name it: dtype and shape of a tensor, else the type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return type(value).__name__


def _rows_columns(shape: Sequence[int], name: str) -> tuple[int, int]:
    if not isinstance(shape, Sequence):
        raise TypeError(f"{name} must be a sequence of sizes, got {shape!r}")
    if len(shape) == 0:
        raise ValueError(f"{name} must have at least one dimension")
    if any(size < 0 for size in shape):
        raise ValueError(f"{name} must not be negative, got {list(shape)}")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))


def _valid_bits(columns: int, device: torch.device | str) -> Tensor:
    row = torch.full((words(columns),), -1, dtype=torch.int32, device="cpu")
    if columns % 32:
        row[-1] = (1 << columns % 32) - 1
    return row.to(device)


def _check_real(t: object, name: str) -> None:
    if not isinstance(t, Tensor) or t.dtype == torch.bool or t.is_complex():
        raise TypeError(f"{name} must be a tensor of real numbers, got {describe(t)}")


def _check_density(density: float) -> None:
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must be in 0..1, got {density}")


def _sortable(scores: Tensor, name: str) -> Tensor:
    """The scores in a dtype that torch selects and sorts in, exactly; raises ValueError where one is NaN."""
    scores = scores.detach()
    if not scores.is_floating_point():
        return scores if scores.dtype == torch.int64 else scores.to(torch.int64)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if bool(scores.isnan().any()):
        raise ValueError(f"{name} must not contain NaN (shape {list(scores.shape)})")
    return scores


def largest(flat: Tensor, count: int) -> Tensor:
    """Bool tensor of the `count` largest of `flat`, ties by index: a selection, not a sort."""
    if count == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    smallest = torch.kthvalue(flat, flat.numel() - count + 1).values
    active = flat > smallest
    ties = (flat == smallest).nonzero().squeeze(1)[: count - int(active.sum())]
    active[ties] = True
    return active


def _channel_flags(channels: Tensor | None, size: int, name: str, device: torch.device) -> Tensor:
    if channels is None:
        return torch.ones(size, dtype=torch.bool, device=device)
    if not isinstance(channels, Tensor) or channels.is_floating_point() or channels.is_complex():
        raise TypeError(f"{name} must be a bool or integer tensor, got {describe(channels)}")
    if channels.device != device:
        raise ValueError(f"out and inp must be on one device, got {device} and {channels.device}")
    if channels.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {list(channels.shape)}")
    if channels.dtype == torch.bool:
        if channels.shape[0] != size:
            raise ValueError(f"{name} must have length {size}, got {channels.shape[0]}")
        return channels
    if channels.numel() and not (int(channels.min()) >= 0 and int(channels.max()) < size):
        raise IndexError(f"{name} has an index outside 0..{size - 1}")
    flags = torch.zeros(size, dtype=torch.bool, device=channels.device)
    flags[channels.long()] = True
    return flags


def _rebuild(bits: Tensor, shape: Sequence[int]) -> Mask:
    """What a pickle calls; its bits are checked like anybody's, and have to be there, not one for a whole mask."""
    if isinstance(bits, Tensor) and bits.layout is torch.strided and not bits.is_nested and not bits.is_meta:
        needed, found = bits.numel() * bits.element_size(), bits.untyped_storage().nbytes()
        if needed > found:
            raise ValueError(f"bits of shape {list(bits.shape)} take {needed} bytes, and the pickle has {found}")
    return Mask.from_bits(bits, shape)


torch.serialization.add_safe_globals([_rebuild])

__all__ = ["Mask"]
