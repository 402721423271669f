"""How ops are vectorised: a batch folded into rows or samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def vmap_rows(namespace: str, name: str, row_operand: int) -> None:
    """Registers vmap: a batch of the operand in front (any leading dimensions) is one more leading dimension.

    Where another operand is batched too, the samples are computed one by one: each has its own weight.
    """
    _register_vmap(namespace, name, row_operand, folds=False)


def vmap_samples(namespace: str, name: str, operand: int) -> None:
    """The same where the operand's first dimension counts samples, among which a batch of them is folded."""
    _register_vmap(namespace, name, operand, folds=True)


def _register_vmap(namespace: str, name: str, row_operand: int, folds: bool) -> None:
    op = getattr(getattr(torch.ops, namespace), name).default

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        batched = [i for i, dim in enumerate(in_dims) if isinstance(dim, int)]
        if batched == [row_operand]:
            values = list(args)
            together = args[row_operand].movedim(in_dims[row_operand], 0)
            values[row_operand] = together.flatten(0, 1) if folds else together
            output = op(*values)
            return output.unflatten(0, together.shape[:2]) if folds else output, 0
        if info.batch_size == 0:  # no sample to learn the shape from
            samples = [
                a.new_zeros(a.movedim(d, 0).shape[1:]) if isinstance(d, int) else a
                for a, d in zip(args, in_dims, strict=True)
            ]
            return op(*samples).unsqueeze(0)[:0], 0
        outputs = [
            op(*[a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)])
            for i in range(info.batch_size)
        ]
        return torch.stack(outputs), 0

    torch.library.register_vmap(f"{namespace}::{name}", rule)
