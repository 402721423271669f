"""`Trace`: one forward pass, in which every op says what becomes of the channels of its operands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .calls import Calls
from .labels import Atoms, Constant, Dim, Labels, Reader, Together
from .rules import note

Named: TypeAlias = "dict[str, list[tuple[Dim, ...]]]"  # the dims of what each module returned, by its name

# Modules that ask for the sizes they were made with, whatever their parameters have.
_RIGID = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


class Trace(TorchDispatchMode):
    """Follows channels through a forward pass of a model in eval mode, without gradients.

    Each index of the first two dims of every parameter and buffer is an atom. A rule for each op joins the atoms that
    must be cut together, hands them on to the result, and tells where a channel is one constant whatever the input is.
    An op without a rule makes all channels of its operands stay, so what is not known is left alone.
    """

    def __init__(self, model: nn.Module, masks: dict[int, Tensor]) -> None:
        super().__init__()
        self.atoms = Atoms()
        self.readers: list[Reader] = []
        self.together: list[Together] = []
        self.masks = masks  # bool, of masked weights by their id
        self.calls = Calls(model, self._returned)
        self.named: Named = {}
        self._owners: dict[int, int] = {}
        self.parameters: dict[int, tuple[Tensor, tuple[Dim, ...]]] = {}
        self._known: dict[int, tuple[Tensor, Labels]] = {}  # with the tensor, so that its id stays its own
        self._seen: set[int] = set()
        for t in (*model.parameters(), *model.buffers()):
            self._name(t)
        for module in model.modules():
            for parameter in module._parameters.values():
                self._owners[id(parameter)] = self._owners.get(id(parameter), 0) + 1
            if isinstance(module, _RIGID):
                for t in (*module.parameters(), *module.buffers()):
                    self.stay(t)

    def _name(self, t: Tensor) -> None:
        dims = tuple(self.atoms.new(size) if d < 2 else None for d, size in enumerate(t.shape))
        wide = [d for d, size in enumerate(t.shape) if size > 1]
        constant = None
        if len(wide) <= 1 and t.numel() and t.is_floating_point():
            values = t.detach().reshape(-1).double().cpu()
            constant = Constant(wide[0] if wide else None, values)
        self.parameters[id(t)] = (t, dims)
        self._known[id(t)] = (t, Labels(dims, constant, (t, tuple(range(t.dim())))))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to skip it, for seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an op, then its rule."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._seen.update(id(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor))
        note(self, func, args, kwargs, out)
        return out

    def finish(self, output: Any) -> None:
        """After the pass: what the model returns stays, and so does what no op was seen to read."""
        for t in tensors_of(output):
            self.stay(t)
        for t, _ in self.parameters.values():
            if id(t) not in self._seen:
                self.stay(t)

    def shared(self, module: nn.Module) -> bool:
        """Whether another module has a parameter of this one."""
        return any(self._owners[id(t)] > 1 for t in module._parameters.values() if t is not None)

    def _returned(self, name: str, module: nn.Module, output: Any) -> None:
        self.named.setdefault(name, [self.labels(t).dims for t in tensors_of(output)])

    # -- for rules -------------------------------------------------------------------------------------

    def labels(self, t: Tensor) -> Labels:
        """What is known of a tensor."""
        known = self._known.get(id(t))
        return known[1] if known is not None else Labels((None,) * t.dim())

    def set(self, t: Tensor, dims: tuple[Dim, ...], constant: Constant | None = None, source: Any = None) -> None:
        """Says what a result is."""
        self._known[id(t)] = (t, Labels(dims, constant, source))

    def stay(self, t: Tensor) -> None:
        """Makes all indices of a tensor stay."""
        for dim in self.labels(t).dims:
            self.atoms.stay(dim)

    def overwritten(self, t: Tensor) -> None:
        """Of an op in place: what else shares memory with `t` holds no constant that is known."""
        memory = t.untyped_storage().data_ptr()
        for key, (other, labels) in list(self._known.items()):
            if labels.constant is not None and other is not t and other.untyped_storage().data_ptr() == memory:
                self._known[key] = (other, Labels(labels.dims, None, labels.source))

    def observed(self, out: Tensor, dim: int, still: Tensor) -> Constant | None:
        """The constants of a result, of which bool `still` `[size of dim]` says that no input changes them there.

        They are read from the result, and have to be one value there up to rounding.
        """
        values = torch.full((out.shape[dim],), torch.nan, dtype=torch.float64)
        if bool(still.any()) and out.numel() and not out.is_complex():
            rows = out.detach().movedim(dim, 0).flatten(1) if out.dim() > 1 else out.detach()[:, None]
            rows = rows[still.to(out.device)].double().cpu()
            low, high = rows.amin(1), rows.amax(1)
            largest = torch.maximum(low.abs(), high.abs())
            # A kernel may round the last few elements of a row otherwise. Zero is exact.
            rounding = 4 * torch.finfo(out.dtype).eps if out.is_floating_point() else 0.0
            same = (high - low <= rounding * largest) & ((low * high > 0) | (largest == 0))
            values[still] = torch.where(same, rows[:, 0], torch.nan)
        return None if bool(values.isnan().all()) else Constant(dim, values)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in what a model returns: in containers, mappings and objects with attributes."""
    pending, seen = [value], set()
    while pending:
        one = pending.pop()
        if isinstance(one, Tensor):
            yield one
        elif id(one) not in seen and not isinstance(one, (str, bytes, int, float, nn.Module)):
            seen.add(id(one))
            children = [leaf for leaf in tree_iter(one) if leaf is not one]
            if not children and hasattr(one, "__dict__") and not isinstance(one, type):
                children = list(vars(one).values())
            pending.extend(reversed(children))
