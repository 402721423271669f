"""The table of checks: what each calls, and what depends on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from . import channels, conv2d, gathered_conv2d, linear, mask
from .compare import has_kernel, library_used


@dataclass(frozen=True)
class Check:
    """One small problem for one op, or a few that belong together.

    Attributes:
        name: the op's stem.
        calls: the dispatcher ops that it calls wherever it runs.
        run: (`torch.ops.maskfuse`, device) -> None; raises what says how a result differs.
    """

    name: str
    calls: tuple[str, ...]
    run: Callable[[Any, torch.device], None]

    def applies(self, ops: Any, device: torch.device) -> bool:
        """Whether the device has kernels of what it calls."""
        return all(has_kernel(ops, name, device) for name in self.calls)


def _passes(stem: str) -> tuple[str, ...]:
    return (stem, f"{stem}_input_grad", f"{stem}_weight_grad")


CHECKS = {
    check.name: check
    for check in (
        Check("mask", ("mask_pack", "mask_unpack"), mask.mask),
        Check("masked_linear", _passes("masked_linear"), linear.masked_linear),
        Check("soft_masked_linear", _passes("soft_masked_linear"), linear.soft_masked_linear),
        Check("gated_linear", _passes("gated_linear"), linear.gated_linear),
        Check("masked_copy", ("masked_linear", "use_masked_library"), linear.masked_copy),
        Check("masked_conv2d", _passes("masked_conv2d"), conv2d.masked_conv2d),
        Check("gathered_conv2d", _passes("gathered_conv2d"), gathered_conv2d.gathered_conv2d),
        Check("channel_gather", ("channel_gather",), channels.channel_gather),
        Check("channel_scatter", ("channel_scatter",), channels.channel_scatter),
        Check("channel_select", ("channel_select", "channel_select_input_grad"), channels.channel_select),
    )
}

# An op of a backend -> the checks that must pass before it is used, where they are not the one of its name. A gate's
# gradient that is differentiated again is that of a real-valued mask.
NEEDS = {
    "masked_linear": ("mask", "masked_linear", "masked_copy", "soft_masked_linear"),
    "masked_linear_pack": ("masked_linear",),
    "gated_linear": ("gated_linear", "masked_copy", "soft_masked_linear"),
    "masked_conv2d": ("mask", "masked_linear", "masked_copy", "masked_conv2d"),
    "compact_linear": ("mask", "masked_linear", "masked_copy"),  # which run on a weight that is expanded for the call
    "compact_conv2d": ("mask", "masked_linear", "masked_copy", "masked_conv2d"),
    "gathered_conv2d": ("mask", "gathered_conv2d"),  # masked_conv2d with channels
    "gated_conv2d": (),  # torch's own
    "channel_gather": ("channel_gather", "channel_scatter"),  # each is the other's gradient
    "channel_scatter": ("channel_scatter", "channel_gather"),
}


def needed(op: str, ops: Any, device: torch.device) -> list[Check]:
    """The checks that `op` depends on and that the device has kernels for."""
    names = NEEDS.get(op, (op,))
    return [CHECKS[name] for name in names if name in CHECKS and CHECKS[name].applies(ops, device)]


class DeviceLost(RuntimeError):
    """Something before a check has made the device unusable."""


_here = threading.local()


def checking() -> bool:
    """True inside of a check, in the thread that runs it."""
    return getattr(_here, "checking", False)


@contextlib.contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """None of the modes that the caller may be in, and the device the current one; all as before when it ends."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())  # dispatch modes, such as those that count operations
        stack.enter_context(torch._C.DisableTorchFunction())  # function modes, such as a default device
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.autocast("cuda", enabled=False))
            stack.enter_context(torch.cuda.device(device))
        yield


def _await(device: torch.device) -> None:
    try:
        torch.cuda.current_stream(device).synchronize()
    except RuntimeError as error:
        raise DeviceLost(f"the device was unusable before the check: {error}") from error


def failure(check: Check, ops: Any, device: torch.device) -> Exception | None:
    """Runs a check; returns what it raised."""
    _here.checking = True
    try:
        with _plainly(device):
            if device.type == "cuda":
                _await(device)
            with library_used(ops, device, "never"):  # what is tested is here
                check.run(ops, device)
    except Exception as error:
        return error
    finally:
        _here.checking = False
    return None
