"""Rows of masked_conv2d, images and weights in channels_last: against F.conv2d on a weight that was masked before, and
with channels of each image's own against F.conv2d on an input with zeros in the others."""

from __future__ import annotations

import torch
from gpu_calls import OURS, Calls, Setting, Work, gradients, nbytes
from maskfuse import Mask, masked_conv2d
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

BATCH, SIZE = 64, 28
DTYPE = torch.bfloat16


def _operands(setting: Setting, channels: int, kernel: int, half_of_inputs: bool) -> tuple[Tensor, Tensor, Mask]:
    batch, channels, size = setting.sizes((BATCH, channels, SIZE), (2, 64, 6))
    shape = (channels, channels, kernel, kernel)
    if half_of_inputs:
        mask = Mask.channels(shape, inp=setting.permutation(channels)[: channels // 2])
    else:
        mask = setting.mask(shape, 50)
    x, w = setting.normal(batch, channels, size, size, dtype=DTYPE), setting.normal(*shape, dtype=DTYPE)
    return (*(t.contiguous(memory_format=torch.channels_last) for t in (x, w)), mask)


def _work(x: Tensor, mask: Mask, half_of_inputs: bool, passes: int) -> dict[str, Work]:
    pixels = x.numel() // x.shape[1]  # stride 1, and padding that keeps the size
    read = passes * (2 * nbytes(x) + mask.numel * x.element_size())
    ours = mask.active if half_of_inputs else mask.numel
    return {
        "F.conv2d": Work(read, 2.0 * passes * pixels * mask.numel),
        OURS: Work(read + passes * nbytes(mask.bits), 2.0 * passes * pixels * ours),
    }


def forward(setting: Setting, channels: int, kernel: int, half_of_inputs: bool = False) -> Calls:
    setting.needs("masked_conv2d")
    x, w, mask = _operands(setting, channels, kernel, half_of_inputs)
    dense, padding = w.masked_fill(~mask.dense(), 0), kernel // 2
    return Calls(
        run={
            "F.conv2d": lambda: F.conv2d(x, dense, padding=padding),
            OURS: lambda: masked_conv2d(x, w, mask, padding=padding),
        },
        work=_work(x, mask, half_of_inputs, 1),
        expected=lambda: F.conv2d(x.double(), dense.double(), padding=padding),
        about={"shape": list(x.shape), "density": mask.density},
    )


def step(setting: Setting, channels: int, kernel: int) -> Calls:
    """Output and the gradients of input and weight; torch's weight gradient is not masked."""
    setting.needs("masked_conv2d")
    x, w, mask = _operands(setting, channels, kernel, half_of_inputs=False)
    dense, padding = w.masked_fill(~mask.dense(), 0), kernel // 2
    dy = torch.randn_like(x)
    for t in (x, w, dense):
        t.requires_grad_()

    def expected() -> tuple[Tensor, ...]:
        a, kept, g = x.detach().double(), dense.detach().double(), dy.double()
        grad = conv2d_weight(a, kept.shape, g, padding=padding).masked_fill(~mask.dense(), 0)
        return F.conv2d(a, kept, padding=padding), conv2d_input(a.shape, kept, g, padding=padding), grad

    return Calls(
        run={
            "F.conv2d": gradients(lambda: F.conv2d(x, dense, padding=padding), (x, dense), dy),
            OURS: gradients(lambda: masked_conv2d(x, w, mask, padding=padding), (x, w), dy),
        },
        work=_work(x, mask, False, 3),
        expected=expected,
        unlike=("F.conv2d",),
        about={"shape": list(x.shape), "density": mask.density},
    )


def _of_channels(setting: Setting, channels: int, kernel: int, each: int) -> tuple[Tensor, Tensor, Mask, Tensor]:
    """Every image has half of the channels, or of groups of `each` channels, of its own; the weight is dense."""
    batch, channels, size = setting.sizes((BATCH, channels, SIZE), (2, 64, 6))
    shape = (channels, channels, kernel, kernel)
    x, w = setting.normal(batch, channels, size, size, dtype=DTYPE), setting.normal(*shape, dtype=DTYPE)
    groups = -(-channels // each)
    chosen = torch.rand(batch, groups, device=setting.device).topk(-(-groups // 2)).indices
    active = torch.zeros(batch, groups, dtype=torch.bool, device=setting.device).scatter(1, chosen, True)
    mask = Mask.full(shape).to(setting.device)
    assert mask.structure == "full"  # looked up: calls go by what is known
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    return x, w, mask, active.repeat_interleave(each, 1)[:, :channels]


def _work_of_channels(x: Tensor, w: Tensor, active: Tensor, passes: int) -> dict[str, Work]:
    pixels, share = x.numel() // x.shape[1], active.float().mean().item()
    read = passes * (2 * nbytes(x) + nbytes(w))
    return {
        "F.conv2d(where)": Work(read + passes * 2 * nbytes(x), 2.0 * passes * pixels * w.numel()),
        OURS: Work(read, 2.0 * passes * pixels * w.numel() * share),
    }


def of_channels(setting: Setting, channels: int, kernel: int, each: int) -> Calls:
    setting.needs("masked_conv2d")
    x, w, mask, active = _of_channels(setting, channels, kernel, each)
    flags, padding = active[:, :, None, None], kernel // 2
    return Calls(
        run={
            "F.conv2d(where)": lambda: F.conv2d(torch.where(flags, x, 0), w, padding=padding),
            OURS: lambda: masked_conv2d(x, w, mask, padding=padding, channels=active),
        },
        work=_work_of_channels(x, w, active, 1),
        expected=lambda: F.conv2d(torch.where(flags, x, 0).double(), w.double(), padding=padding),
        about={"shape": list(x.shape), "channels_together": each},
    )


def of_channels_step(setting: Setting, channels: int, kernel: int, each: int) -> Calls:
    """Output and the gradients of input and weight."""
    setting.needs("masked_conv2d")
    x, w, mask, active = _of_channels(setting, channels, kernel, each)
    flags, padding, dy = active[:, :, None, None], kernel // 2, torch.randn_like(x)
    for t in (x, w):
        t.requires_grad_()

    def zeroed() -> Tensor:
        return F.conv2d(torch.where(flags, x, 0), w, padding=padding)

    def expected() -> tuple[Tensor, ...]:
        a, b, g = torch.where(flags, x.detach(), 0).double(), w.detach().double(), dy.double()
        grad = conv2d_input(a.shape, b, g, padding=padding) * flags
        return F.conv2d(a, b, padding=padding), grad, conv2d_weight(a, b.shape, g, padding=padding)

    return Calls(
        run={
            "F.conv2d(where)": gradients(zeroed, (x, w), dy),
            OURS: gradients(lambda: masked_conv2d(x, w, mask, padding=padding, channels=active), (x, w), dy),
        },
        work=_work_of_channels(x, w, active, 3),
        expected=expected,
        about={"shape": list(x.shape), "channels_together": each},
    )
