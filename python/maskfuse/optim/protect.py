"""`protect`: no optimizer moves a masked or frozen weight."""

from __future__ import annotations

import functools
import weakref
from typing import Any, TypeVar

import torch
from torch import nn

from .._checks import check_module
from ..nn._masked import weight_of
from ..nn._trained import masked_layers
from ..nn._unmet import PROTECTION
from ._protection import Protection, parameters_of

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def protect(optimizer: AnyOptimizer, model: nn.Module) -> AnyOptimizer:
    """Makes an optimizer leave the masked weights of a model where they are; returns the optimizer.

    In every step, whatever weight decay, momentum and moments from before a mask was set would do, the weights under
    the mask of a masked layer and the frozen entries of a parameter (`nn.freeze`) keep their values bit for bit, and
    the others get the update that the optimizer gives to the gradient with zeros under the mask. It works by hooks
    around `step`: before it the gradient is masked (again; a closure's as soon as it returns), after it the values
    under the mask are put back, and between the calls of a closure too. So it serves any `torch.optim.Optimizer`. Its
    `state` is the optimizer's own affair: moments under the mask fade as they would, and are not reset.

    Masks are looked up in each step, so `set_mask`, `nn.freeze`, new layers and `add_param_group` need no second call.
    A weight that several masked layers share stays where all of them mask it, whatever else reads it. A second call
    with the same model changes nothing; with another one it protects both. Copies by `deepcopy` and pickles of the
    optimizer carry the protection, and the model with it; its `state_dict` is untouched.

    Costs, of each masked weight and one after another: a pass over gradient and weight, with a byte a weight of memory.
    What masked layers hold under their masks is zero, unless it is retained: these zeros are written, not stored. They
    are looked for where the weight has changed in place since the last step, which waits on CUDA (never while a graph
    is captured). Retained or frozen values, and all others that are not zero, are copied with their weight from the
    beginning of a step to its end.

    In a compiled step the hooks run between graphs. A CUDA graph of a step keeps the masks it was captured with.
    A term of the loss that reads the weight of a masked layer itself gives gradients under the mask until the step
    begins, which clipping sees: read it through `mask_gradient`.

    Args:
        optimizer: any, whatever its options; `differentiable` too.
        model: what has the masked layers and frozen parameters; it may get them later. Frozen parameters of the
            optimizer that are not the model's are kept as well.

    Raises:
        TypeError: not an optimizer, or not a module.
        ValueError: the optimizer has no parameter of the model. From `step`: a mask has another shape than its
            weight, or the weight of a masked layer is computed by a parametrization.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    check_module(model)
    if is_protected(optimizer, model):
        return optimizer
    held = {id(p) for p in parameters_of(optimizer)}
    names = [id(p) for p in model.parameters()] + [id(weight_of(layer)) for _, layer in masked_layers(model)]
    if held.isdisjoint(names):
        raise ValueError(
            f"optimizer ({type(optimizer).__name__} of {len(held)} parameters) has no parameter of model "
            f"({type(model).__name__}): it was made for another model, or for parameters that have been replaced since"
        )
    protection = getattr(optimizer, PROTECTION, None)
    if protection is None:
        protection = Protection()
        attributes: Any = optimizer
        setattr(attributes, PROTECTION, protection)
        optimizer.register_step_pre_hook(protection.before)
        optimizer.register_step_post_hook(protection.after)
        # Optimizers are copied and pickled without their hooks. A cycle would keep the state in memory.
        attributes.__reduce_ex__ = functools.partial(_reduce, weakref.ref(optimizer))
    protection.models.append(model)
    return optimizer


def is_protected(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether `protect(optimizer, model)` was called.

    Args:
        optimizer: of `torch.optim`, or any other object, which is not protected.
        model: as it was given to `protect`; it is compared by identity.
    """
    protection = getattr(optimizer, PROTECTION, None)
    return protection is not None and any(model is other for other in protection.models)


def _reduce(here: weakref.ref[Any], protocol: int) -> tuple[Any, ...]:
    optimizer: Any = here()
    models = getattr(optimizer, PROTECTION).models
    return _blank, (type(optimizer),), {"optimizer": optimizer.__getstate__(), "models": models}


def _blank(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """An optimizer that waits for what `_reduce` kept of another one."""
    optimizer: Any = kind.__new__(kind)
    optimizer.__setstate__ = functools.partial(_restore, optimizer)
    return optimizer


def _restore(optimizer: Any, state: dict[str, Any]) -> None:
    del optimizer.__setstate__  # the class's own again
    optimizer.__setstate__(state["optimizer"])
    for model in state["models"]:
        protect(optimizer, model)


__all__ = ["is_protected", "protect"]
