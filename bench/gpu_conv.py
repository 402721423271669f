"""Rows of masked_conv2d, images and weights in channels_last: against F.conv2d on a weight that was masked before."""

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
