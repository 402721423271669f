"""`report`: what is masked in a model, what it takes, which kernels run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_module
from .._sharded import is_sharded
from ..explain import Explanation, checked_batch, explain
from ..mask import Mask
from ..nn import Bypass, ChannelGate, CompactLinear, CompactSequential
from ..nn._compact import CompactLayer
from ..nn._gated import GatedLayer
from ..nn._masked import MaskedLayer, weight_of
from ..nn._packed import PackedLayer
from ..nn._with_mask import LayerWithMask
from ..nn.freeze import frozen_mask
from .calls import calls_of
from .report import Report
from .rows import Bytes, Call, LayerReport, Mention, dtype_name, nbytes, plan_bytes, shares, structure_of, totals
from .text import rows_of

_LISTED = (nn.Linear, nn.Conv2d, CompactLayer)  # and their masked and gated twins
_LINEAR = (nn.Linear, CompactLinear)
_MENTIONED = (Bypass, ChannelGate, CompactSequential)


def report(model: nn.Module, example_inputs: Any = None, *, batch: int | None = None, plain: bool = False) -> Report:
    """What is masked in a model: each layer's shape, structure, density and bytes, and which kernel runs it.

    Masked, compact and gated layers are listed, and plain ones whose weight is frozen in part (`nn.freeze`); each once,
    whatever names it has. Gates above a half count as active. Bytes are those of parameters, of masks and what kernels
    derive from them, and of packed weights; the sums count what is shared once, and as dense the weights that compact
    layers do not keep. Kernels are what `explain` says of a forward pass without `channels`; convolutions need
    `example_inputs` for it, as they depend on the size of images.

    Nothing of the model changes. Structures are found from bits, once a mask.

    Args:
        model: any module, on any device.
        example_inputs: what to call the model with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. It runs once, in eval mode, without gradients: kernels are those of each layer's first call, and
            floating-point operations are counted over all of its calls.
        batch: rows of linear layers' inputs (all leading dimensions together), where there are no example inputs; 1.
        plain: lists plain `nn.Linear` and `nn.Conv2d` layers too.

    Returns:
        A `Report`: `print` it, or let rich do it; `as_dict()`, `to_json()`; `plot(path)` with matplotlib.

    Raises:
        TypeError: `model` is no module, or `batch` no integer.
        ValueError: `batch` is negative, or given beside `example_inputs`. And whatever the model raises for its inputs.
    """
    check_module(model)
    if batch is not None and example_inputs is not None:
        raise ValueError(f"batch must not be given beside example_inputs, whose sizes are used; got {batch}")
    if batch is not None:
        batch = checked_batch(batch)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _LISTED + _MENTIONED):
            names.setdefault(module, []).append(name)
    layers = [module for module in names if isinstance(module, _LISTED)]
    with_calls = example_inputs is not None
    calls = calls_of(model, layers, example_inputs) if with_calls else {}
    first: dict[int, str] = {}  # the layer that a weight was met in
    rows = []
    for layer in layers:
        known = [Call(batch=1 if batch is None else batch)] if isinstance(layer, _LINEAR) and not with_calls else []
        rows.append(_row(layer, names[layer], calls.get(layer, known), first))
    # A parameter that a module computes others from counts as what it is.
    parameters = list(model.parameters())
    scores = sum(layer.scores.numel() for layer in layers if isinstance(layer, GatedLayer))
    sums = totals(rows, sum(p.numel() for p in parameters), sum(map(nbytes, parameters)), scores, with_calls)
    listed = tuple(row for row in rows if plain or row.structure != "dense" or row.frozen is not None)
    mentions = tuple(
        Mention(called[0], type(module).__name__, module.extra_repr())
        for module, called in names.items()
        if isinstance(module, _MENTIONED)
    )
    return Report(type(model).__name__, listed, mentions, sums, _notes(rows, with_calls, batch))


def _row(layer: Any, names: list[str], calls: Sequence[Call], first: dict[int, str]) -> LayerReport:
    weight = _kept(layer)
    mask: Mask | None = None
    structure = "dense"
    if isinstance(layer, LayerWithMask):
        mask = layer.mask
        structure = structure_of(mask)
    elif isinstance(layer, GatedLayer):
        if not layer.scores.is_meta and not is_sharded(layer.scores):  # else there are no values here
            with torch.no_grad():
                mask = Mask.from_dense(layer._gate(sampled=False) > 0.5)
        structure = f"{layer.kind} gates"
    shape = mask.shape if mask is not None else layer.weight.shape if weight is None else weight.shape
    active = mask.active if mask is not None else shape.numel()
    frozen = None if weight is None else frozen_mask(weight)
    explained = _explained(layer, calls)
    return LayerReport(
        name=names[0],
        also=tuple(names[1:]),
        kind=type(layer).__name__,
        shape=tuple(shape),
        dtype="computed" if weight is None else dtype_name(weight.dtype),
        device=layer.mask.device.type if weight is None and mask is not None else _device(weight),
        structure=structure,
        weights=shape.numel(),
        active=active,
        trained=_trained(weight, layer, mask, active, frozen),
        bytes=_bytes(layer, weight, mask),
        absent=(shape.numel() - active) * layer.values.element_size() if isinstance(layer, CompactLayer) else 0,
        shares=None if weight is None else shares(first, id(weight), names[0]),
        retained=isinstance(layer, MaskedLayer) and layer._retain,
        frozen=None if frozen is None else 1 - frozen.density,
        calls=tuple(calls),
        kernel=None if explained is None else explained.kernels["forward"],
        backend=None if explained is None else explained.backend,
        mask=mask,
    )


def _kept(layer: Any) -> Tensor | None:
    """The weight, or a compact layer's values; None where it is computed from others, which may have effects."""
    return layer._parameters.get("values") if isinstance(layer, CompactLayer) else weight_of(layer)


def _device(weight: Tensor | None) -> str:
    return "unknown" if weight is None else str(weight.device)


def _trained(weight: Tensor | None, layer: Any, mask: Mask | None, active: int, frozen: Mask | None) -> int:
    if weight is not None and not weight.requires_grad:
        return 0
    if frozen is None:
        return active
    if not isinstance(layer, MaskedLayer) or mask is None:
        return frozen.active
    return (frozen.to(mask.device) & mask).active


def _bytes(layer: Any, weight: Tensor | None, mask: Mask | None) -> Bytes:
    if isinstance(layer, PackedLayer) and mask is not None:
        return Bytes(nbytes(weight), nbytes(mask.bits), plan_bytes(mask), layer.packed_nbytes)
    if isinstance(layer, GatedLayer):
        return Bytes(nbytes(weight), scores=nbytes(layer.scores))
    return Bytes(nbytes(weight))


def _explained(layer: Any, calls: Sequence[Call]) -> Explanation | None:
    """What `explain` says of the first call; None where nothing is known, or nothing is to be chosen."""
    if not calls or not _takes_part(layer) or _kept(layer) is None:
        return None
    call = calls[0]
    layout = torch.channels_last if call.channels_last else torch.contiguous_format
    return explain(layer, batch=call.batch, size=call.size, memory_format=layout)


def _takes_part(layer: nn.Module) -> bool:
    return isinstance(layer, (LayerWithMask, GatedLayer))


def _notes(rows: list[LayerReport], with_calls: bool, batch: int | None) -> tuple[str, ...]:
    masked = [row for row in rows if row.masked]
    if not masked:
        return ("no layer is masked or gated: maskfuse.convert(model, policy) masks linear layers and convolutions",)
    notes = []
    if not with_calls:
        if any(row.kernel for row in masked):
            notes.append(
                f"kernels are those of {rows_of(1 if batch is None else batch)}: batch= or example_inputs= say more"
            )
        if any(len(row.shape) == 4 for row in masked):
            notes.append("kernels of convolutions depend on images: example_inputs= shows them")
    elif any(not row.calls for row in masked):
        notes.append("layers without a kernel were not called with the example inputs")
    if any("gates" in row.structure for row in masked):
        notes.append("gates above a half count as active; all weights are computed with until harden()")
    return tuple(notes)


__all__ = ["report"]
