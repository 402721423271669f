"""A module on some samples, and what stands for it on the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._checks import describe
from .._memory_format import memory_format_of
from ._samples import check_shape, outside, rows_of, widened, with_rows


class Skipping(nn.Module):
    """Runs `module`, or what `skipped` names, on all samples or on each its own; a base for `Bypass`, which decides."""

    module: nn.Module
    skipped: str | nn.Module  # "identity", "zeros" or what skipped samples are run through

    def _run(self, input: Tensor) -> Tensor:
        output = self.module(input)
        if not isinstance(output, Tensor):
            raise TypeError(f"the module must return a tensor, got {describe(output)}")
        if not isinstance(self.skipped, nn.Module):
            check_shape(output, input, f"{self.skipped} for input")
        return output

    def _skip(self, input: Tensor) -> Tensor:
        around = self._around(input)
        return torch.zeros_like(input) if around is None else around

    def _around(self, input: Tensor) -> Tensor | None:
        """What skipped samples get; None for zeros."""
        if isinstance(self.skipped, nn.Module):
            output = self.skipped(input)
            if not isinstance(output, Tensor):
                raise TypeError(f"the module skipped must return a tensor, got {describe(output)}")
            return output
        return input if self.skipped == "identity" else None

    @staticmethod
    def _scaled(run: Tensor, skip: Tensor | None, factor: float) -> Tensor:
        if skip is None:
            return run * factor
        check_shape(run, skip, "skipped is")
        return skip + (run - skip) * factor

    def _select(
        self,
        input: Tensor,
        active: Tensor,
        blend: Callable[[Tensor, Tensor | None, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The module on the active samples, among the skipped ones.

        `blend` maps (the module's samples, what they would get if skipped, their indices) to what they get.
        """
        index, others = outside.indices(active, input.device)
        if index.shape[0] == 0:
            return self._skip(input)
        every = others.shape[0] == 0
        samples = input if every else rows_of(input, index)
        rows = self._run(samples)
        if rows.dim() == 0 or rows.shape[0] != samples.shape[0]:
            raise ValueError(f"the module must return {samples.shape[0]} samples, got {describe(rows)}")
        whole = None
        if blend is not None:  # what skipped samples get is made of all at once: batch norms in it see one batch
            whole = self._around(input)
            around = samples if whole is input else whole
            if whole is not None and whole is not input and not every:
                if whole.shape[:1] != input.shape[:1]:
                    raise ValueError(f"the module skipped must return {input.shape[0]} samples, got {describe(whole)}")
                around = rows_of(whole, index)
            if around is not None:
                check_shape(rows, around, "skipped is")
            rows = blend(rows, around, index)
        # Of zeros and of the input itself the dtype is known; a module has to be run to know it.
        if every:
            return rows if isinstance(self.skipped, nn.Module) else widened(rows, input.dtype)
        if whole is None and isinstance(self.skipped, nn.Module):
            return self._beside(input, index, rows, others)
        base = self._skip(input) if whole is None else whole
        rows = widened(rows, base.dtype)
        return with_rows(base.to(rows.dtype), index, rows)

    def _beside(self, input: Tensor, index: Tensor, rows: Tensor, others: Tensor) -> Tensor:
        """The module's samples, and what the module `skipped` makes of the others, which it alone sees."""
        rest = self._around(rows_of(input, others))
        assert rest is not None
        if rest.shape[1:] != rows.shape[1:] or rest.shape[:1] != others.shape:
            raise ValueError(
                f"the module must return the shape of what is skipped but for the number of samples, "
                f"got {describe(rows)} where skipped is {describe(rest)}"
            )
        rows = widened(rows, rest.dtype)
        shape = (input.shape[0], *rows.shape[1:])
        base = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=memory_format_of(rows))
        return with_rows(with_rows(base, index, rows), others, rest.to(rows.dtype))
