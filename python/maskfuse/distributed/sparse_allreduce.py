"""A communication hook of `DistributedDataParallel` that sends the gradients of active weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _processes
from .._checks import check_module
from .._processes import Group
from ..mask import Mask
from ..nn._masked import MaskedLayer
from ..nn._trained import trained_parts
from ..nn._with_mask import LayerWithMask
from ..nn.freeze import frozen_mask
from ..syncing import unwrapped
from .masks import check_same_masks, digest


class SparseAllReduce:
    """What `sparse_allreduce_hook` knows: whose masks they are, where active entries lie, and how much was sent.

    In each bucket of gradients the active entries of masked and frozen parameters, and all entries of the others, are
    copied together, averaged over the processes and copied back; masked entries are exactly +0.0. Active entries get
    what `torch.distributed.algorithms.ddp_comm_hooks.default_hooks.allreduce_hook` gives, bitwise with two processes;
    with more of them backends add in an order that depends on an entry's place. A bucket without masks is reduced in
    place. What is sent is in the gradients' dtype, so traffic is the active share of all parameters; it holds no
    indices, since all processes know the masks.

    That the masks are the same in all processes is checked when this is made, and in a backward pass before gradients
    are sent: in each one where these are on the CPU, or with `check_every_step`, by 16 bytes; else when a mask has
    changed, since what is compared has to be waited for. DDP has to be made anew after an error. Without the check a
    mask that one process alone changes leaves the processes waiting for one another until the backend's timeout. Places
    are looked up in the first backward pass, and again when a mask changes or the buckets do: 8 bytes for each active
    entry of a masked parameter, and a buffer of what is sent for each bucket on its way.

    A weight that another layer than masked ones has as well is sent in full, or, where it is frozen, as that says.
    Sparse gradients are sent as they are.

    Args:
        model: the model that is trained, in `DistributedDataParallel` or not.
        process_group: that gradients are averaged in, the same as DDP's; None for the default one.
        check_every_step: compare masks in each backward pass; None: where gradients are on the CPU.

    Attributes:
        bytes_sent: bytes given to all-reduces so far by this process, the comparisons of masks among them.
        bytes_dense: bytes that it would have been given without masks.

    Raises:
        TypeError: `model` is no module.
        RuntimeError: masks differ between processes. From a backward pass: the same.
        ValueError: from a backward pass: a mask has another shape than its weight, or the weight of a masked layer is
            computed by a parametrization.
    """

    def __init__(self, model: nn.Module, process_group: Group = None, check_every_step: bool | None = None) -> None:
        check_module(model)
        self.model = unwrapped(model)
        self.process_group = process_group
        self.check_every_step = check_every_step
        self.bytes_sent = 0
        self.bytes_dense = 0
        self._masks: dict[int, Mask] = {}  # by id of the parameter
        self._buckets: dict[int, _Bucket] = {}
        self._known = _mask_objects(self.model)  # what the digest is of; kept, so that no new one has an old one's id
        check_same_masks(self.model, self.process_group)
        self._digest = digest(self.model)

    def _compare(self, device: torch.device) -> None:
        """Raises in all processes where digests differ, and what they are of too; each process has to call it."""
        both = torch.tensor([self._digest, -self._digest], device=device)
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=self.process_group)
        self.bytes_sent += _nbytes(both)
        largest, smallest = both.tolist()
        if largest != -smallest:
            check_same_masks(self.model, self.process_group)
            self._digest = digest(self.model)  # of other times, between which something else has changed

    def _look_up(self, device: torch.device) -> None:
        """What masks there are now: once in a backward pass, of which the first bucket is the first one."""
        now = _mask_objects(self.model)
        changed = len(now) != len(self._known) or any(map(_is_not, now, self._known))
        if changed:
            self._known, self._digest = now, digest(self.model)
        every = device.type == "cpu" if self.check_every_step is None else self.check_every_step
        if changed or every:
            self._compare(device)
        elsewhere = {
            id(parameter)
            for module in self.model.modules()
            if not isinstance(module, MaskedLayer)
            for parameter in module._parameters.values()
        }
        self._masks = {}
        for one in trained_parts(self.model.parameters(), [self.model]):
            mask = frozen_mask(one.parameter) if id(one.parameter) in elsewhere else one.mask
            if mask is not None and mask.active < mask.numel:
                self._masks[id(one.parameter)] = mask

    def _places(self, bucket: Any) -> _Bucket:
        parameters = bucket.parameters()
        masks = [self._masks.get(id(parameter)) for parameter in parameters]
        known = self._buckets.get(bucket.index())
        if known is None or not known.holds(parameters, masks):
            known = self._buckets[bucket.index()] = _Bucket.of(bucket, parameters, masks)
        return known


def sparse_allreduce_hook(state: SparseAllReduce, bucket: Any) -> torch.futures.Future[Tensor]:
    """Averages a bucket of gradients over the processes; what `DistributedDataParallel.register_comm_hook` takes::

        state = SparseAllReduce(model)
        ddp_model.register_comm_hook(state, sparse_allreduce_hook)

    Args:
        state: of the same model and process group.
        bucket: `torch.distributed.GradBucket`, whose buffer is flat, `[entries]`, of the gradients' dtype.

    Returns:
        A future of the bucket's buffer.

    Raises:
        RuntimeError: masks differ between processes.
        ValueError: a mask has another shape than its weight, or the weight of a masked layer is computed by a
            parametrization.
    """
    if bucket.index() == 0:
        state._look_up(bucket.buffer().device)
    flat = bucket.buffer()
    places = None if flat.layout is not torch.strided else state._places(bucket)
    if places is None or places.all_of_it:
        packed = flat
    else:
        packed = torch.cat([flat.index_select(0, places.chosen), *(flat[span] for span in places.spans)])
    # Before they are added, as torch's own hook does: sums of half types could overflow.
    packed.div_(_processes.count(state.process_group))
    state.bytes_sent += _nbytes(packed)
    state.bytes_dense += _nbytes(flat)
    if packed.numel() == 0:  # nothing of this bucket is active, in any process
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[] if flat.is_cpu else [flat.device])
        done.set_result(flat.zero_())
        return done
    reduced = torch.distributed.all_reduce(packed, group=state.process_group, async_op=True).get_future()

    def unpacked(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        result = future.value()[0]
        if places is None or places.all_of_it:
            return result
        chosen, *spans = result.split(places.sizes)
        flat.zero_().index_copy_(0, places.chosen, chosen)
        for span, values in zip(places.spans, spans, strict=True):
            flat[span].copy_(values)
        return flat

    return reduced.then(unpacked)


# DDP compares annotations as objects, not as the text that they are here, and takes a hook that has none.
sparse_allreduce_hook.__annotations__ = {}


def register_sparse_allreduce(
    model: nn.parallel.DistributedDataParallel, check_every_step: bool | None = None
) -> SparseAllReduce:
    """Has `DistributedDataParallel` send the gradients of active weights alone; returns the hook's state.

    Args:
        model: in `DistributedDataParallel`.
        check_every_step: as in `SparseAllReduce`.

    Raises:
        TypeError: `model` is not in `DistributedDataParallel`.
        RuntimeError: masks differ between processes, or DDP has a communication hook already.
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError(f"model must be a DistributedDataParallel, got {type(model).__name__}")
    state = SparseAllReduce(model, model.process_group, check_every_step)
    model.register_comm_hook(state, sparse_allreduce_hook)
    return state


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Where active entries lie in the buffer of one bucket."""

    parameters: list[Tensor]
    masks: list[Mask | None]
    chosen: Tensor  # int64: of masked parameters, in rising order
    spans: list[slice]  # of the others, neighbours together
    sizes: list[int]  # of `chosen` and of each span

    @property
    def all_of_it(self) -> bool:
        """Whether there are no masks here."""
        return all(mask is None for mask in self.masks)

    def holds(self, parameters: list[Tensor], masks: list[Mask | None]) -> bool:
        """Whether this is still true of the bucket: DDP puts parameters into other ones after the first backward."""
        now, before = [*parameters, *masks], [*self.parameters, *self.masks]
        return len(now) == len(before) and not any(map(_is_not, now, before))

    @staticmethod
    def of(bucket: Any, parameters: list[Tensor], masks: list[Mask | None]) -> _Bucket:
        """Looks the places up.

        In the buffer a gradient has its parameter's strides, where these leave no gaps, and not those of the view that
        the bucket gives, which tells where it begins.
        """
        flat = bucket.buffer()
        active = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
        spans: list[slice] = []
        starts = [view.storage_offset() - flat.storage_offset() for view in bucket.gradients()]
        for start, parameter, mask in sorted(zip(starts, parameters, masks, strict=True), key=lambda part: part[0]):
            if mask is not None:
                there = active[start : start + parameter.numel()].view(parameter.shape)
                if torch.empty_like(parameter, device="meta").stride() == parameter.stride():
                    there = active.as_strided(parameter.shape, parameter.stride(), start)
                there.copy_(mask.to(flat.device).dense())
            elif spans and spans[-1].stop == start:
                spans[-1] = slice(spans[-1].start, start + parameter.numel())
            else:
                spans.append(slice(start, start + parameter.numel()))
        chosen = active.nonzero().squeeze(1)
        sizes = [chosen.numel(), *(span.stop - span.start for span in spans)]
        return _Bucket(parameters, masks, chosen, spans, sizes)


def _mask_objects(model: nn.Module) -> list[object]:
    """Every mask there is, as objects: a mask that changes is another one."""
    layers = [module.mask for module in model.modules() if isinstance(module, LayerWithMask)]
    return [*layers, *(frozen_mask(parameter) for parameter in model.parameters())]


def _is_not(one: object, other: object) -> bool:
    return one is not other


def _nbytes(t: Tensor) -> int:
    if t.layout is torch.strided:
        return t.numel() * t.element_size()
    return sum(_nbytes(part) for part in (t._indices(), t._values()))


__all__ = ["SparseAllReduce", "register_sparse_allreduce", "sparse_allreduce_hook"]
