"""Every CUDA op once on small operands with ragged edges, for compute-sanitizer, which is far too slow for the tests.

Operands are drawn on the host and products are not left to torch's library, so that hardly any kernels but ours run on
the device (racecheck takes cuBLAS's own for faulty). Results are compared with the host's, so that the kernels under
the tool are known to do their work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from maskfuse import Mask, channel_gather, channel_scatter, gated_linear, masked_conv2d, masked_linear
from maskfuse.backends import verdicts
from maskfuse.nn import MaskedLinear
from torch import Tensor

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def _step(function: Callable[..., Tensor], device: str, *operands: Tensor, extra: tuple = ()) -> tuple[Tensor, ...]:
    """The output, and the gradients of the operands from a gradient that is the output itself."""
    leaves = [t.to(device).requires_grad_() for t in operands]
    output = function(*leaves, *extra)
    return (output.detach(), *torch.autograd.grad(output, leaves, output.detach()))


def _linear(device: str, dtype: torch.dtype, batch: int, inp: int, out: int) -> tuple[Tensor, ...]:
    x, w = torch.randn(batch, inp).to(dtype), torch.randn(out, inp).to(dtype)
    mask = Mask.random((out, inp), 0.4).to(device)
    return _step(lambda a, b: masked_linear(a, b, mask), device, x, w)


def _blocks(device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    mask = Mask.blocks(torch.tensor([[True, False, True], [False, False, True]]), (128, 64)).to(device)
    return _step(lambda a, b: masked_linear(a, b, mask), device, torch.randn(40, 192).to(dtype),
                 torch.randn(256, 192).to(dtype))  # fmt: skip


def _real_valued(device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, w, m = (torch.randn(*size).to(dtype) for size in ((37, 75), (90, 75), (90, 75)))
    return _step(masked_linear, device, x, w, m)


def _gated(device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, w, s = (torch.randn(*size).to(dtype) for size in ((37, 75), (90, 75), (90, 75)))
    return _step(gated_linear, device, x, w, s)


def _conv(device: str, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, ...]:
    x = torch.randn(2, 72, 9, 7).to(dtype).contiguous(memory_format=layout)
    w = torch.randn(40, 72, 3, 3).to(dtype)
    mask = Mask.random((40, 72, 3, 3), 0.4).to(device)
    return _step(lambda a, b: masked_conv2d(a, b, mask, None, 2, 1), device, x, w)


def _of_channels(device: str, dtype: torch.dtype, layout: torch.memory_format, samples: int) -> tuple[Tensor, ...]:
    """Channels of each image's own, or of all, in blocks and by themselves; of a mask of whole channels, as it is taken
    in every dtype."""
    x = torch.randn(3, 136, 9, 7).to(dtype).contiguous(memory_format=layout)
    w = torch.randn(40, 136, 3, 3).to(dtype)
    mask = Mask.channels((40, 136, 3, 3), inp=torch.randperm(136)[:130])
    assert mask.structure == "channels"
    mask, active = mask.to(device), torch.rand(samples, 136) < 0.5
    active[0, 64:128] = False
    active = (active if samples > 1 else active[0]).to(device)
    return _step(lambda a, b: masked_conv2d(a, b, mask, None, 2, 1, channels=active), device, x, w)


def _packed(device: str, dtype: torch.dtype, batch: int) -> tuple[Tensor, ...]:
    layer = MaskedLinear(200, 136, dtype=dtype, mask=Mask.random((136, 200), 0.3)).to(device).eval()
    layer.requires_grad_(False)
    x = torch.randn(batch, 200).to(dtype).to(device)
    return (layer.pack()(x),)


def _channels(device: str, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, ...]:
    x = torch.randn(3, 11, 5, 7).to(dtype).contiguous(memory_format=layout)
    c = torch.randperm(11)[:6].to(device)
    gathered = _step(lambda a: channel_gather(a, c), device, x)
    return (*gathered, *_step(lambda a: channel_scatter(a, c, 11), device, x[:, :6]))


def cases() -> Iterator[tuple[str, str, Callable[[str], tuple[Tensor, ...]]]]:
    """(name, op, results on a device), each with operands of its own seed."""
    layouts = (torch.contiguous_format, torch.channels_last)
    for dtype in TYPES:
        # The last: large enough for Hopper's kernel, which takes half types and rows of whole sixteens of bytes.
        large = [(1256, 1256, 1256)] if dtype.itemsize == 2 else []
        for shape in ((3, 70, 90), (150, 130, 70), *large):
            yield f"masked_linear {shape} {dtype}", "masked_linear", lambda d, t=dtype, s=shape: _linear(d, t, *s)
        yield f"blocks {dtype}", "masked_linear", lambda d, t=dtype: _blocks(d, t)
        yield f"real-valued {dtype}", "masked_linear", lambda d, t=dtype: _real_valued(d, t)
        yield f"gated {dtype}", "gated_linear", lambda d, t=dtype: _gated(d, t)
        for layout in layouts:
            yield f"conv {layout} {dtype}", "masked_conv2d", lambda d, t=dtype, f=layout: _conv(d, t, f)
            for samples in (1, 3):
                name = f"conv of {samples} rows of channels {layout} {dtype}"
                yield name, "masked_conv2d", lambda d, t=dtype, f=layout, n=samples: _of_channels(d, t, f, n)
            yield f"channels {layout} {dtype}", "channel_gather", lambda d, t=dtype, f=layout: _channels(d, t, f)
        for batch in (1, 13):
            yield f"packed {batch} {dtype}", "masked_linear", lambda d, t=dtype, b=batch: _packed(d, t, b)


def main(device: str) -> int:
    wrong = ran = 0
    if device == "cuda":
        torch.ops.maskfuse.use_masked_library("never")
    for seed, (name, op, results) in enumerate(cases()):
        if device == "cuda" and dict(verdicts(op, device))["cuda"] is not None:
            print(f"left out, no kernel: {name}")
            continue
        torch.manual_seed(seed)
        want = results("cpu")
        torch.manual_seed(seed)
        got = [t.cpu() for t in results(device)]
        ran += 1
        for g, w in zip(got, want, strict=True):
            unit = torch.finfo(w.dtype).eps
            error = (g.double() - w.double()).norm() / w.double().norm()
            if not error <= (4 * unit if unit > 1e-4 else 1000 * unit):
                print(f"WRONG {name}: error {error:.3g}")
                wrong += 1
    print(f"{ran} cases ran, {wrong} results are wrong")
    return 1 if wrong or not ran else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "cuda"))
