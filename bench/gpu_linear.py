"""Rows of linear layers: every one against torch on a weight that was masked before, but where a row says otherwise."""

from __future__ import annotations

import torch
from gpu_calls import OURS, Calls, NotThereYet, Setting, Work, gradients, nbytes
from maskfuse import Mask, explain, gated_linear, masked_linear
from maskfuse.nn import MaskedLinear
from torch import Tensor
from torch.nn import functional as F

LAYER, TINY_LAYER = (4096, 4096), (256, 256)
DECODED, TINY_DECODED = (8192, 8192), (256, 256)
TINY_TOKENS = 32


def _shape(setting: Setting, tokens: int) -> tuple[int, int, int]:
    out, inp, rows = setting.sizes((*LAYER, tokens), (*TINY_LAYER, min(tokens, TINY_TOKENS)))
    return out, inp, rows


def _about(setting: Setting, mask: Mask, rows: int, dtype: torch.dtype, direction: str = "forward") -> dict:
    kernel = explain(mask, rows, setting.device, dtype).kernels[direction]
    return {"kernel": kernel, "tokens": rows, "shape": list(mask.shape), "density": mask.density}


def _masked(weight: Tensor, mask: Mask) -> Tensor:
    return weight.detach().masked_fill(~mask.dense(), 0)


def _product(setting: Setting, mask: Mask, rows: int, dtype: torch.dtype, structured: bool) -> Calls:
    """Forward. With a structured mask our work is that of the active weights alone."""
    setting.needs("masked_linear")
    out, inp = mask.shape
    x, w = setting.normal(rows, inp, dtype=dtype), setting.normal(out, inp, dtype=dtype)
    dense = _masked(w, mask)
    whole = Work(nbytes(x, w) + rows * out * x.element_size(), 2.0 * rows * out * inp)
    flop = 2.0 * rows * mask.active if structured else whole.flop
    return Calls(
        run={"F.linear": lambda: F.linear(x, dense), OURS: lambda: masked_linear(x, w, mask)},
        work={"F.linear": whole, OURS: Work(whole.bytes + nbytes(mask.bits), flop)},
        expected=lambda: F.linear(x.double(), dense.double()),
        about=_about(setting, mask, rows, dtype),
    )


def forward(setting: Setting, tokens: int, masked: int, dtype: str = "bfloat16") -> Calls:
    out, inp, rows = _shape(setting, tokens)
    return _product(setting, setting.mask((out, inp), masked), rows, getattr(torch, dtype), structured=False)


def channels(setting: Setting, tokens: int, half_of_outputs: bool) -> Calls:
    out, inp, rows = _shape(setting, tokens)
    outputs = setting.permutation(out)[: out // 2] if half_of_outputs else None
    mask = Mask.channels((out, inp), outputs, setting.permutation(inp)[: inp // 2])
    return _product(setting, mask, rows, torch.bfloat16, structured=True)


def blocks(setting: Setting, tokens: int, masked: int) -> Calls:
    out, inp, rows = _shape(setting, tokens)
    height, width = 128, 64
    active = setting.permutation((out // height) * (inp // width)) >= round(out * inp / height / width * masked / 100)
    mask = Mask.blocks(active.reshape(out // height, inp // width), (height, width))
    return _product(setting, mask, rows, torch.bfloat16, structured=True)


def decode(setting: Setting, tokens: int, masked: int) -> Calls:
    setting.needs("masked_linear")
    out, inp = setting.sizes(DECODED, TINY_DECODED)
    dtype = torch.bfloat16
    mask = setting.mask((out, inp), masked)
    layer = MaskedLinear(inp, out, bias=False, device=setting.device, dtype=dtype).eval().requires_grad_(False)
    layer.weight.normal_()
    layer.set_mask(mask)
    layer.pack()
    if layer.packed_nbytes == 0:
        raise NotThereYet(f"MaskedLinear.pack packs nothing on {setting.device.type}")
    x, weight = setting.normal(tokens, inp, dtype=dtype), layer.weight
    ends = nbytes(x) + tokens * out * x.element_size()
    flop = 2.0 * tokens * out * inp
    return Calls(
        run={"F.linear": lambda: F.linear(x, weight), OURS: lambda: layer(x)},
        work={"F.linear": Work(nbytes(weight) + ends, flop), OURS: Work(layer.packed_nbytes + ends, flop)},
        expected=lambda: F.linear(x.double(), weight.double()),
        about={
            "kernel": explain(layer, tokens).kernels["forward"],
            "tokens": tokens,
            "shape": [out, inp],
            "density": mask.density,
            "packed bytes over dense": layer.packed_nbytes / nbytes(weight),
        },
    )


def weight_grad(setting: Setting, tokens: int, masked: int) -> Calls:
    setting.needs("masked_linear")
    out, inp, rows = _shape(setting, tokens)
    dtype = torch.bfloat16
    mask = setting.mask((out, inp), masked)
    dy, x = setting.normal(rows, out, dtype=dtype), setting.normal(rows, inp, dtype=dtype)
    bits, plan, op = mask.bits, mask.plan, torch.ops.maskfuse.masked_linear_weight_grad
    work = Work(nbytes(dy, x) + out * inp * x.element_size(), 2.0 * rows * out * inp)
    return Calls(
        run={"dy.T @ x": lambda: dy.T @ x, OURS: lambda: op(dy, x, bits, plan)},
        work={"dy.T @ x": work, OURS: Work(work.bytes + nbytes(bits), work.flop)},
        expected=lambda: _masked(dy.double().T @ x.double(), mask),
        unlike=("dy.T @ x",),
        about=_about(setting, mask, rows, dtype, "weight_grad"),
    )


def _multiplied(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return F.linear(x, weight * mask)


def step(setting: Setting, tokens: int, masked: int) -> Calls:
    """Output and the gradients of input and weight; torch's mask has the weight's type, as its pruning has it."""
    setting.needs("masked_linear")
    out, inp, rows = _shape(setting, tokens)
    dtype = torch.bfloat16
    mask = setting.mask((out, inp), masked)
    x, w = (setting.normal(*size, dtype=dtype).requires_grad_() for size in ((rows, inp), (out, inp)))
    dy, factor = setting.normal(rows, out, dtype=dtype), mask.dense().to(dtype)
    compiled = setting.compiled(_multiplied)

    def expected() -> tuple[Tensor, ...]:
        a, g, kept = x.detach().double(), dy.double(), _masked(w, mask).double()
        return F.linear(a, kept), g @ kept, _masked(g.T @ a, mask)

    work = Work(2 * nbytes(x, w, dy), 6.0 * rows * out * inp)
    torchs = Work(work.bytes + 2 * nbytes(factor), work.flop)
    return Calls(
        run={
            "F.linear, nothing masked": gradients(lambda: F.linear(x, w), (x, w), dy),
            "F.linear(x, w * m)": gradients(lambda: _multiplied(x, w, factor), (x, w), dy),
            "torch.compile": gradients(lambda: compiled(x, w, factor), (x, w), dy),
            OURS: gradients(lambda: masked_linear(x, w, mask), (x, w), dy),
        },
        work={
            "F.linear, nothing masked": work,
            "F.linear(x, w * m)": torchs,
            "torch.compile": torchs,
            OURS: Work(work.bytes + 3 * nbytes(mask.bits), work.flop),
        },
        expected=expected,
        unlike=("F.linear, nothing masked",),
        about=_about(setting, mask, rows, dtype),
    )


def _gated(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    return F.linear(x, weight * torch.sigmoid(scores))


def gated_step(setting: Setting, tokens: int) -> Calls:
    """Output and the gradients of input, weight and scores."""
    setting.needs("gated_linear")
    out, inp, rows = _shape(setting, tokens)
    dtype = torch.bfloat16
    sizes = ((rows, inp), (out, inp), (out, inp))
    x, w, scores = (setting.normal(*size, dtype=dtype).requires_grad_() for size in sizes)
    dy = setting.normal(rows, out, dtype=dtype)
    compiled = setting.compiled(_gated)

    def expected() -> tuple[Tensor, ...]:
        a, b, g = x.detach().double(), w.detach().double(), dy.double()
        gate = torch.sigmoid(scores.detach().double())
        product = g.T @ a
        return F.linear(a, b * gate), g @ (b * gate), product * gate, product * b * gate * (1 - gate)

    work = Work(2 * nbytes(x, w, scores, dy), 6.0 * rows * out * inp)
    operands = (x, w, scores)
    return Calls(
        run={
            "F.linear(x, w * gate)": gradients(lambda: _gated(x, w, scores), operands, dy),
            "torch.compile": gradients(lambda: compiled(x, w, scores), operands, dy),
            OURS: gradients(lambda: gated_linear(x, w, scores), operands, dy),
        },
        work=dict.fromkeys(("F.linear(x, w * gate)", "torch.compile", OURS), work),
        expected=expected,
        about={"tokens": rows, "shape": [out, inp]},
    )
