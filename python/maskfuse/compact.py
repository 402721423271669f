"""`compact`: a model without the channels that its masks switched off."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ._checks import check_module
from ._compact.check import differs, inputs_like, run, where_they_part
from ._compact.cut import cut
from ._compact.decide import Decision, decide
from ._compact.trace import Trace
from ._fast_path import set_fast_paths
from ._sharded import is_sharded
from .convert import become_masked
from .fold import fold
from .mask import Mask
from .nn._compact import CompactLayer
from .nn._gated import GatedLayer
from .nn._numbers import number
from .nn._with_mask import LayerWithMask

Model = TypeVar("Model", bound=nn.Module)

_log = logging.getLogger("maskfuse")


@torch.inference_mode(False)  # what is made here outlives the call, and ops are others there
def compact(model: Model, example_inputs: Any, tolerance: float | None = None) -> Model:
    """A copy of a model without the channels that do not matter; the model itself stays as it is.

    A channel goes where each layer that reads it masks all of its weights on it, or meets a constant there. A constant
    is what a channel holds whose weights are all masked: its bias, and what norms and activations make of that,
    followed through the ops of one forward pass, so that it is known to depend on no input. Zero adds nothing and may
    be left out; another constant is added to the bias of the layer that reads it (which gets one if need be). Where a
    convolution puts zeros beside constants at the border, it keeps one, with weights that stand for all. As rows go,
    columns go that they alone read, and so on. Channels go together where they meet: in sums (residual connections,
    where a sum is constant only if all its terms are), products, norms, concatenations, convolutions in groups, and
    linear layers behind a flatten. What a pass of the model does not run is not seen: where it chooses by its input,
    the example must be of the kind that matters.

    What stays in any case: channels of what the model returns, and of its inputs; those that a layer norm or a softmax
    runs over, as each counts in its statistics, and a group of a group norm unless all of it goes; those that an op
    counts off or mixes in a way that is not followed (heads of attention, channel shuffles, slices, recurrent layers,
    circular padding). A convolution in groups loses whole groups, and as many channels of each group as of any other.
    One channel stays where all would go.

    Layers whose mask is full then are plain; the others are masked or compact ones, as before, with what is left of
    their mask, of one hole or more in what stays. Values that were retained under a mask are zero. Parameters that are
    cut are new ones, and so are compact layers', with `requires_grad` and the masks of `nn.freeze` kept; make a new
    optimizer. Hooks stay, and run in the passes that this takes. Each module has the mode it had; but the two models
    are equal in eval mode, since in training a norm takes other statistics of a constant channel than those it is cut
    by.

    Both are run on the example and on two inputs of random numbers, and must return the same up to rounding; terms are
    summed in another order, and constants are summed before the rest. Tensors that are not floating are not compared.
    The passes keep all activations of the model. What is cut is logged at level INFO by the logger "maskfuse".

    Torch-Pruning's dependency graph answers a related question, which channels have to be cut together if one is; here
    it is which may be cut for the result to stay the same, for which each op's meaning has to be known.

    Args:
        model: any module with masked layers, as `convert` makes them, or compact ones. Gated layers are to be hardened
            first.
        example_inputs: what the model is called with: a tensor, a tuple or list of arguments, or a dict of keyword
            arguments. Sizes that are no channels (batch, image, sequence) may be others later, if the model's own code
            does not depend on them.
        tolerance: how far outputs may be apart, as a share of the largest of them; None is 1.2e-4 in float32, 2.9e-11
            in float64, and 8 units of rounding in half types.

    Raises:
        TypeError: not a module, or a tolerance that is no number; or what `fold` refuses: gated layers, subclasses of
            masked layers, parametrizations.
        ValueError: a negative tolerance or NaN; the model cannot be copied, or does not run on the example; parameters
            are on meta or sharded; masks that `fold` refuses.
        RuntimeError: what is left returns something else; the message names the first layer that does. It happens where
            the model's own code has numbers in it that depend on a layer's size, as in `x.view(-1, 512)` for
            `x.flatten(1)`.

    Warns:
        UserWarning: no layer is masked; the copy is as the model is.
    """
    check_module(model)
    if tolerance is not None and number(tolerance, "tolerance") < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_meta or is_sharded(t):
            where = "on meta" if t.is_meta else "sharded"
            raise ValueError(f"model must have all of its values here, but {name!r} is {where}")
    if isinstance(example_inputs, Mapping):  # as a tokenizer's, which is no dict, and whose tensors are not seen
        example_inputs = dict(example_inputs)
    made = _copied(model)
    layers = [module for module in made.modules() if isinstance(module, LayerWithMask)]
    if not layers and not any(isinstance(module, GatedLayer) for module in made.modules()):  # which fold refuses
        warnings.warn(f"model ({type(model).__name__}) has no masked layers: nothing is cut", UserWarning, stacklevel=3)
        return made
    modes = {module: module.training for module in made.modules()}
    made.eval()
    examples = inputs_like(example_inputs, 2)
    want = [_runs(made, example) for example in examples]
    dense = [layer.mask.dense().cpu() for layer in layers]
    kinds = [type(layer) for layer in layers]
    sizes = _sizes(made)
    fold(made)
    masks = {id(layer.weight): mask for layer, mask in zip(layers, dense, strict=True)}
    trace = Trace(made, masks)
    with trace.calls:  # its hooks also keep transformer layers off their fast path, which is one op
        with trace:
            output = _runs(made, example_inputs)
        trace.finish(output)
    decision = decide(trace)
    left = cut(made, trace, decision)
    collected: dict[int, nn.Parameter] = {}
    weights: list[Any] = [layer.weight for layer in layers]  # a compact layer will have none
    for layer, kind, weight in zip(layers, kinds, weights, strict=True):
        if bool(left[id(weight)].all()):
            continue
        mask = Mask.from_dense(left[id(weight)].to(weight.device))
        if issubclass(kind, CompactLayer):
            kind._take_over(layer, mask, collected)
        else:
            become_masked(layer, mask)
    set_fast_paths(made)
    for example, masked in zip(examples, want, strict=True):
        _check(model, made, example, masked, trace, decision, tolerance)
    for module, training in modes.items():
        module.training = training
    for name, size in _sizes(made).items():
        if size != sizes.get(name):
            _log.info("compact: %s %s -> %s", name, sizes.get(name, "none"), size)
    return made


def _copied(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(f"model ({type(model).__name__}) cannot be copied: {error}") from error


def _runs(model: nn.Module, example: Any) -> Any:
    try:
        return run(model, example)
    except Exception as error:
        given = type(example).__name__
        raise ValueError(
            f"model ({type(model).__name__}) does not run on example_inputs ({given}): {type(error).__name__}: {error}"
        ) from error


def _sizes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(t.shape) for name, t in model.named_parameters()}


def _check(
    model: nn.Module,
    made: nn.Module,
    example: Any,
    want: Any,
    trace: Trace,
    decision: Decision,
    tolerance: float | None,
) -> None:
    """Raises where the two models return different things."""
    error: Exception | None = None
    try:
        reason = differs(run(made, example), want, tolerance)
    except Exception as raised:
        reason, error = f"{type(raised).__name__}: {raised}", raised
    if reason is not None:
        masked = _copied(model).eval()
        part = where_they_part(masked, made, example, trace.named, decision, tolerance)
        raise RuntimeError(
            f"model ({type(model).__name__}) without its dead channels does not return what it did ({reason}). They "
            f"part {part}. Code that counts on a layer's size has to ask for it; the model is unchanged"
        ) from error


__all__ = ["compact"]
