"""Packed weights: the same results, and dropped whenever the weight could have changed."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
from conftest import DTYPES, LEVELS, assert_sums_close
from copies import pickled
from maskfuse import Mask, reference
from maskfuse.nn import MaskedLinear

IN, OUT = 130, 70


def layer_of(density, dtype=torch.float32):
    return MaskedLinear(IN, OUT, dtype=dtype, mask=Mask.random((OUT, IN), density)).eval()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.9])
def test_the_same_result(level, dtype, density):
    before = torch.ops.maskfuse.set_cpu_level(level)
    try:
        layer = layer_of(density, dtype).pack()
        assert layer.packed_nbytes > 0
        w, b, mask = layer.weight.detach().double(), layer.bias.detach().double(), layer.mask
        for batch in (1, 2, 3, 4, 5, 8, 11, 16, 17, 70):
            x = torch.randn(batch, IN).to(dtype)
            want = reference.masked_linear(x.double(), w, mask, b)
            magnitude = reference.masked_linear(x.double().abs(), w.abs(), mask, b.abs())
            with torch.no_grad():
                assert_sums_close(layer(x), want, magnitude, dtype, IN)
            assert_sums_close(layer(x).detach(), want, magnitude, dtype, IN)  # recorded for a gradient
    finally:
        torch.ops.maskfuse.set_cpu_level(before)


def test_what_is_masked_may_be_nan():
    layer = layer_of(0.1)
    x = torch.randn(2, IN)
    want = layer(x)
    with torch.no_grad():
        layer.weight[~layer.mask.dense()] = float("nan")
    torch.testing.assert_close(layer.pack()(x), want)


def test_rows_without_weights_and_full_rows():
    dense = torch.zeros(OUT, IN, dtype=torch.bool)
    dense[::3] = True
    dense[1, 5] = True
    layer = MaskedLinear(IN, OUT, mask=dense).eval()
    for batch in (1, 4, 16):
        x = torch.randn(batch, IN)
        want = layer.unpack()(x)
        torch.testing.assert_close(layer.pack()(x), want)


def test_the_kernel_is_explained():
    layer = layer_of(0.1)
    assert "decode" not in str(maskfuse.explain(layer, batch=1))
    if torch.ops.maskfuse.cpu_level() != "scalar":
        assert maskfuse.explain(layer.pack(), batch=1).kernels["forward"].startswith("decode")
        assert not maskfuse.explain(layer, batch=64).kernels["forward"].startswith("decode")


DROPS = {
    "unpack": lambda layer: layer.unpack(),
    "set_mask": lambda layer: layer.set_mask(Mask.random((OUT, IN), 0.3)),
    "load_state_dict": lambda layer: layer.load_state_dict(layer_of(0.2).state_dict()),
    "train": lambda layer: layer.train(),
    "double": lambda layer: layer.double(),
    "model.train": lambda layer: torch.nn.Sequential(layer).train(),
    "model.unpack": lambda layer: maskfuse.unpack(torch.nn.Sequential(layer)),
}


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS.keys())
def test_dropped_by(drop):
    layer = layer_of(0.1).pack()
    assert layer.packed_nbytes > 0
    drop(layer)
    assert layer.packed_nbytes == 0
    x = torch.randn(1, IN, dtype=layer.weight.dtype)
    torch.testing.assert_close(layer(x), reference.masked_linear(x, layer.weight, layer.mask, layer.bias))


def test_kept_by_eval_and_not_copied():
    layer = layer_of(0.1).pack()
    assert layer.eval().packed_nbytes > 0
    assert copy.deepcopy(layer).packed_nbytes == 0
    assert pickled(layer).packed_nbytes == 0
    assert set(layer.state_dict()) == {"weight", "bias", "mask_bits"}


def test_nothing_to_pack():
    assert MaskedLinear(IN, OUT).pack().packed_nbytes == 0  # every weight active
    assert MaskedLinear(IN, OUT, device="meta").pack().packed_nbytes == 0


def test_a_packed_layer_has_gradients():
    layer = layer_of(0.1).pack()
    x = torch.randn(3, IN, requires_grad=True)
    layer(x).pow(2).sum().backward()
    y = reference.masked_linear(x.detach(), layer.weight, layer.mask, layer.bias).detach()
    torch.testing.assert_close(x.grad, 2 * y @ torch.where(layer.mask.dense(), layer.weight, 0))


def test_models():
    model = torch.nn.Sequential(layer_of(0.1), torch.nn.ReLU(), torch.nn.Linear(OUT, 3)).eval()
    x = torch.randn(1, IN)
    want = model(x)
    assert maskfuse.pack(model) is model and model[0].packed_nbytes > 0
    torch.testing.assert_close(model(x), want)
    assert maskfuse.unpack(model) is model and model[0].packed_nbytes == 0
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got int"):
        maskfuse.pack(3)


def test_packed_under_autocast():
    layer = layer_of(0.1).pack()
    x = torch.randn(2, IN)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got = layer(x)
        want = layer.unpack()(x)
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)


def test_compiled():
    torch._dynamo.reset()
    layer = layer_of(0.1).pack()
    x = torch.randn(1, IN)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.parametrize("batch", [1, 100])
def test_a_packed_layer_reads_what_was_packed(batch):
    if torch.ops.maskfuse.cpu_level() == "scalar":
        pytest.skip("the scalar level reads the weight")
    layer = layer_of(0.1).eval().pack()
    for part in (0, 3):  # row after row, and in the order of the plan
        layer._packed[part].zero_()
    bias = layer.bias.expand(batch, OUT)
    torch.testing.assert_close(layer(torch.randn(batch, IN)), bias)


def other_weight(layer: MaskedLinear) -> None:
    layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight) * layer.mask.dense())


def optimizer_step(layer: MaskedLinear) -> None:
    layer(torch.randn(3, IN)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("change", [other_weight, optimizer_step, MaskedLinear.reset_parameters])
def test_a_packed_layer_notices_a_changed_weight(change, batch):
    layer = layer_of(0.1).eval().pack()
    x = torch.randn(batch, IN)
    before = layer(x).detach()
    change(layer)
    want = torch.nn.functional.linear(x, layer.weight * layer.mask.dense(), layer.bias)
    assert not torch.allclose(before, want)
    torch.testing.assert_close(layer(x), want, atol=1e-4, rtol=1e-4)


def test_a_packed_layer_under_transforms():
    layer = layer_of(0.1).eval().pack()
    x, w = torch.randn(20, IN), torch.randn(OUT, IN)
    got = torch.func.functional_call(layer, {"weight": w}, (x,))
    torch.testing.assert_close(got, maskfuse.masked_linear(x, w, layer.mask, layer.bias))
    compiled = torch.compile(layer, fullgraph=True)
    for rows in (1, 20):
        torch.testing.assert_close(compiled(x[:rows]), layer(x[:rows]))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), layer.unpack()(x))
        inside = layer_of(0.1).eval().pack()
        assert inside.packed_nbytes > 0 and inside(x).shape == (20, OUT)
