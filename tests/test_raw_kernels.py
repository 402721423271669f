"""The pybind11 module of the raw kernels, which CMake builds: NumPy in, one instruction set at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maskfuse import Mask

raw = pytest.importorskip("maskfuse_raw", reason="built by CMake: make test")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("level", raw.levels())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_passes(dtype, level, threads):
    mask = Mask.random((70, 130), 0.4)
    m, bits = mask.dense().numpy(), mask.bits.numpy().view(np.uint32)
    rng = np.random.default_rng(0)
    x, dy, w = (rng.standard_normal(s).astype(dtype) for s in ((20, 130), (20, 70), (70, 130)))
    for which, a, b, want in (
        ("forward", x, w, x @ (w * m).T),
        ("input_grad", dy, w, dy @ (w * m)),
        ("weight_grad", dy, x, (dy.T @ x) * m),
    ):
        got = raw.masked_gemm(which, a, b, bits=bits, isa=level, threads=threads)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        got = raw.masked_gemm(which, a, b, factor=m.astype(dtype), isa=level, threads=threads)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bad_input():
    x, w = np.ones((2, 8), np.float32), np.ones((3, 8), np.float32)
    bits = np.ones((3, 1), np.uint32)
    with pytest.raises(ValueError, match="fit together"):
        raw.masked_gemm("forward", x[:, :4].copy(), w, bits=bits, isa="scalar")
    with pytest.raises(ValueError, match="bits must have shape"):
        raw.masked_gemm("forward", x, w, bits=bits[:2].copy(), isa="scalar")
    with pytest.raises(ValueError, match="either bits or factor"):
        raw.masked_gemm("forward", x, w, isa="scalar")
    with pytest.raises(ValueError, match="isa must be"):
        raw.masked_gemm("forward", x, w, bits=bits, isa="neon")


def test_numpy_and_torch_views_are_the_same_kernels():
    mask = Mask.random((70, 130), 0.4)
    x, w = torch.randn(20, 130), torch.randn(70, 130)
    ours = torch.ops.maskfuse.masked_linear(x, w, mask.bits, [], None)
    level = torch.ops.maskfuse.cpu_level()
    theirs = raw.masked_gemm("forward", x.numpy(), w.numpy(), bits=mask.bits.numpy().view(np.uint32), isa=level)
    assert np.array_equal(ours.numpy(), theirs)
