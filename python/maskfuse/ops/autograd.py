"""One derivative for all ways to differentiate.

Every product of this package is multilinear: linear in each of its tensor operands, plus a bias. So an op
says once which product each operand's gradient is, and that serves `register_autograd` (compile, export) and two
`torch.autograd.Function`s: one for eager code, one for `torch.func`, which refuses `register_autograd` ops.
Forward mode follows from linearity: the tangent is the sum of the product with one operand replaced by its
tangent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._traced import func_is_tracing, is_jit_tracing, outside_of_graphs


class Product(Protocol):
    """A differentiable op. `record` is for callers who know that a gradient is asked for and nothing else is."""

    record: Callable[..., Tensor]

    def __call__(self, *args: Any) -> Tensor:
        """The op, recorded, traced or transformed as the caller's context asks."""
        ...


def has_tangent(t: Tensor) -> bool:
    """True where an operand is being differentiated in forward mode."""
    return (
        forward_ad._current_level >= 0
        and (t.is_floating_point() or t.is_complex())
        and forward_ad.unpack_dual(t).tangent is not None
    )


def is_transformed(args: Sequence[Any]) -> bool:
    """True under `torch.func` transforms, and where an operand carries a forward-mode tangent."""
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and any(isinstance(t, Tensor) and has_tangent(t) for t in args)


_is_compiling = torch.compiler.is_compiling
_func_is_active = torch._C._are_functorch_transforms_active
_casts = torch._C._is_any_autocast_enabled


def plain() -> bool:
    """True where an op is just an op: nothing traces, transforms or casts it, and no forward-mode level is open."""
    return not (_is_compiling() or _func_is_active() or _casts() or forward_ad._current_level >= 0 or is_jit_tracing())


def is_recorded(args: Sequence[Any]) -> bool:
    """True where a gradient of an operand may be asked for."""
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args)


def one_forward_level(jvp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Function's `jvp`, which refuses to be differentiated in forward mode again: torch calls it with forward mode
    off, so that tangents of levels around it would be zero."""

    def checked(*args: Any) -> Tensor:
        from torch._functorch import pyfunctorch  # torch may move it: nothing else here needs it

        levels = pyfunctorch.retrieve_all_functorch_interpreters() if _func_is_active() else []
        if sum(level.key() == pyfunctorch.TransformType.Jvp for level in levels) > 1:
            raise NotImplementedError(
                "maskfuse has no forward-mode derivative of a forward-mode derivative (jvp of jvp, jacfwd of jacfwd): "
                "take one of them in reverse mode, as torch.func.hessian does"
            )
        return jvp(*args)

    return checked


class _Sizes:
    """Integers that functorch passes on as one value, where it would take a list apart."""

    def __init__(self, values: Sequence[int]) -> None:
        self.values = list(values)


def shape_of(operand: Tensor | torch.Size) -> torch.Size:
    """The shape of an operand that a gradient may have been given the shape of alone."""
    return operand.shape if isinstance(operand, Tensor) else operand


def multilinear(
    namespace: str,
    name: str,
    gradients: dict[int, Callable[..., Tensor]],
    bias: int | None = None,
    channel: int = -1,
) -> Product:
    """Makes `namespace::name` differentiable and returns the function to call it by.

    `gradients[i]` maps (saved inputs..., output gradient) to the gradient of input `i`; it is called with the
    inputs as a list, those that need not be kept as their shapes, and must itself be differentiable. `bias` is the
    position of an operand that is added along dimension `channel` of the output.
    """
    op = getattr(getattr(torch.ops, namespace), name).default
    arguments = op._schema.arguments
    count = len(arguments)
    plan = next((i for i, argument in enumerate(arguments) if str(argument.type) == "List[Tensor]"), None)

    # A Function's operands are flat, which functorch wants: the plan's tensors come last.
    def flatten(args: Sequence[Any]) -> list[Any]:
        flat = list(args)
        if plan is None:
            return flat
        tensors, flat[plan] = flat[plan], None
        return flat + tensors

    def unflatten(flat: Sequence[Any]) -> list[Any]:
        args = list(flat[:count])
        if plan is not None:
            args[plan] = list(flat[count:])
        return args

    def with_sizes(flat: Sequence[Any]) -> list[Any]:
        return [a.values if isinstance(a, _Sizes) else a for a in flat]

    def save(ctx: Any, flat: Sequence[Any], kept: list[int]) -> list[Tensor]:
        ctx.kept = kept
        ctx.rest = [
            (value.shape if i not in kept else None) if isinstance(value, Tensor) else value
            for i, value in enumerate(flat)
        ]
        ctx.has_bias = bias is not None and flat[bias] is not None
        return [flat[i] for i in kept]

    def setup_recorded(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
        # An operand is kept only where the gradient of another one is asked for; masks always.
        wanted = [i for i in gradients if ctx.needs_input_grad[i]]
        kept = [
            i
            for i, value in enumerate(inputs)
            if isinstance(value, Tensor) and i != bias and (i not in gradients or any(w != i for w in wanted))
        ]
        ctx.save_for_backward(*save(ctx, inputs, kept))

    def setup_transformed(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
        # Forward mode reads every operand, and functorch wants one list saved for both modes.
        ctx.output_shape = output.shape
        inputs = with_sizes(inputs)
        saved = save(ctx, inputs, [i for i, value in enumerate(inputs) if isinstance(value, Tensor)])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    def restore(ctx: Any) -> list[Any]:
        values = list(ctx.rest)
        for i, tensor in zip(ctx.kept, ctx.saved_tensors, strict=True):
            values[i] = tensor
        return values

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values = restore(ctx)
        result: list[Any] = [None] * len(values)
        args = unflatten(values)
        for i, gradient in gradients.items():
            if ctx.needs_input_grad[i]:
                result[i] = gradient(args, grad)
        if ctx.has_bias and bias is not None and ctx.needs_input_grad[bias]:
            others = [d for d in range(grad.dim()) if d != channel % grad.dim()]
            result[bias] = grad.sum(others) if others else grad
        return tuple(result)

    def along_channel(ctx: Any, row: Tensor) -> Tensor:
        behind = len(ctx.output_shape) - 1 - channel % len(ctx.output_shape)
        return row.reshape(*row.shape, *[1] * behind)

    @one_forward_level
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        args = unflatten(restore(ctx))
        if bias is not None:
            args[bias] = None
        terms = [
            along_channel(ctx, tangents[i]) if i == bias else call(*args[:i], tangents[i], *args[i + 1 :])
            for i in range(count)
            if isinstance(tangents[i], Tensor) and (i in gradients or i == bias)
        ]
        # jvp is called where some operand has a tangent; the bias's alone is a row.
        return sum(terms[1:], start=terms[0]).expand(ctx.output_shape)

    def registered_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return tuple(unflatten(backward(ctx, grad)))

    torch.library.register_autograd(
        f"{namespace}::{name}",
        registered_backward,
        setup_context=lambda ctx, inputs, output: setup_recorded(ctx, flatten(inputs), output),
    )

    def below_autograd(args: Sequence[Any]) -> Tensor:
        # register_autograd's kernel is Python, which small layers would feel; here its answer is known.
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def recorded_forward(ctx: Any, *flat: Any) -> Tensor:
        output = below_autograd(unflatten(flat))
        setup_recorded(ctx, flat, output)
        return output

    # Without setup_context, for which Function.apply would inspect a signature in every call.
    recorded: Any = type(
        f"{name}_recorded",
        (torch.autograd.Function,),
        {"forward": staticmethod(recorded_forward), "backward": staticmethod(backward)},
    )
    transformed: Any = type(
        f"{name}_transformed",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(lambda *flat: op(*unflatten(with_sizes(flat)))),
            "backward": staticmethod(backward),
            "setup_context": staticmethod(setup_transformed),
            "jvp": staticmethod(jvp),
            "generate_vmap_rule": True,
        },
    )

    def apply_transformed(*args: Any) -> Tensor:
        flat = flatten(args)
        return transformed.apply(*[_Sizes(a) if isinstance(a, (list, tuple)) else a for a in flat])

    # Compilers drop the tangents of tensors that come from outside: with such, the op breaks the graph.
    transformed_outside = outside_of_graphs(apply_transformed)
    func_traces = func_is_tracing(apply_transformed)

    def exportable(args: Sequence[Any]) -> Sequence[Any]:
        # AOTInductor of torch 2.13 gives an op None where a list of tensors is empty. Ops on the CPU take this instead.
        if plan is None or args[plan] or not torch.compiler.is_exporting():
            return args
        if namespace != "maskfuse" or not args[plan - 1].is_cpu:
            return args
        none = args[plan - 1].new_empty(0)  # int32, as the bits are
        return [*args[:plan], [none, none], *args[plan + 1 :]]

    def call(*args: Any) -> Tensor:
        if torch.compiler.is_compiling():
            args = tuple(exportable(args))
            if func_traces():
                return apply_transformed(*args)
            return op(*args) if forward_ad._current_level < 0 else transformed_outside(*args)
        if is_transformed(args):
            return apply_transformed(*args)
        if is_jit_tracing():  # which keeps ops, and of a Function nothing that could be saved
            return op(*args)
        # Function.apply has a cost of its own, so it is skipped where nothing would use it.
        return recorded.apply(*flatten(args)) if is_recorded(args) else below_autograd(args)

    def record(*args: Any) -> Tensor:
        return recorded.apply(*flatten(args))

    call.__name__ = name
    product = cast(Product, call)
    product.record = record
    return product
