"""MaskedConv2d as an nn.Conv2d: construction, padding modes, masks, state, packing."""

from __future__ import annotations

import copy
import sys

import maskfuse
import pytest
import torch
from copies import pickled
from maskfuse import Mask
from maskfuse.nn import MaskedConv2d
from torch import nn

SHAPE = (40, 24, 3, 3)


@pytest.fixture
def mask():
    return Mask.random(SHAPE, 0.2)


@pytest.fixture
def x():
    return torch.randn(2, 24, 9, 8)


def test_is_a_conv2d(x):
    torch.manual_seed(1)
    layer = MaskedConv2d(24, 40, 3, padding=1)
    torch.manual_seed(1)
    plain = nn.Conv2d(24, 40, 3, padding=1)
    assert isinstance(layer, nn.Conv2d)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"] and not list(layer.buffers())
    assert torch.equal(layer.weight, plain.weight) and layer.mask.structure == "full"
    torch.testing.assert_close(layer(x), plain(x))
    assert MaskedConv2d(24, 40, 3, bias=False).bias is None
    assert "density=1" in repr(layer)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_padding_modes(mode, padding, mask, x):
    plain = nn.Conv2d(24, 40, 3, padding=padding, padding_mode=mode)
    layer = MaskedConv2d.from_dense(plain, mask)
    dense = layer.to_dense()
    assert type(dense) is nn.Conv2d and dense.padding_mode == mode
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = layer(x), dense(y)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    got.pow(2).sum().backward()
    want.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask.dense(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_from_dense_and_back(groups, x):
    plain = nn.Conv2d(24, 40, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=groups).double().eval()
    plain.bias.requires_grad_(False)
    mask = Mask.random(plain.weight.shape, 0.3)
    layer = MaskedConv2d.from_dense(plain, mask)
    assert not layer.training and not layer.bias.requires_grad and layer.weight.dtype == torch.float64
    assert not layer.weight.detach()[~mask.dense()].any() and plain.weight.detach()[~mask.dense()].all()
    again = MaskedConv2d.from_dense(layer)
    assert again.mask == mask and again.weight is not layer.weight
    torch.testing.assert_close(layer(x.double()), layer.to_dense()(x.double()))
    with pytest.raises(TypeError, match=r"layer must be an nn\.Conv2d, got Linear"):
        MaskedConv2d.from_dense(nn.Linear(3, 3))


def test_state_travels(mask, x):
    layer = MaskedConv2d(24, 40, 3, mask=mask)
    plain = nn.Conv2d(24, 40, 3)
    other = MaskedConv2d(24, 40, 3)
    other.load_state_dict(layer.state_dict())
    assert other.mask == mask and torch.equal(other(x), layer(x))
    other.load_state_dict(plain.state_dict(), strict=False)
    assert other.mask == mask and not other.weight.detach()[~mask.dense()].any()
    with pytest.raises(RuntimeError, match="mask_bits"):
        MaskedConv2d(24, 40, 2).load_state_dict(layer.state_dict())
    assert copy.deepcopy(layer).mask is layer.mask
    torch.testing.assert_close(pickled(layer)(x), layer(x))


def test_channels_last_model(mask, x):
    layer = MaskedConv2d(24, 40, 3, mask=mask)
    want = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous()
    got = layer(x.to(memory_format=torch.channels_last))
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pack(mask, x, dtype):
    layer = MaskedConv2d(24, 40, 3, padding=1, mask=mask, dtype=dtype).eval()
    x = x.to(dtype)
    torch.ops.maskfuse.prefer_masked_conv2d_kernel("accumulate")
    try:
        want = layer(x)
        assert layer.pack() is layer and 0 < layer.packed_nbytes <= mask.active * 4 + 4 * 64 * 8
        assert torch.equal(layer(x), want)
        with torch.no_grad():
            layer.weight.mul_(2)
        changed = layer(x)
        assert not torch.equal(changed, want)
        layer.pack()
        assert torch.equal(layer(x), changed)
        # What was packed is what is read.
        layer._packed[0].zero_()
        torch.testing.assert_close(layer(x), layer.bias.to(dtype)[None, :, None, None].expand(changed.shape))
        assert maskfuse.unpack(layer).packed_nbytes == 0
        assert torch.equal(layer(x), changed)
    finally:
        torch.ops.maskfuse.prefer_masked_conv2d_kernel("")


def test_pack_where_nothing_is_gained(mask):
    assert MaskedConv2d(24, 40, 3).pack().packed_nbytes == 0
    assert MaskedConv2d(24, 40, 3, groups=4, mask=Mask.random((40, 6, 3, 3), 0.2)).pack().packed_nbytes == 0
    assert MaskedConv2d(24, 40, 3, mask=Mask.random(SHAPE, 0.9)).pack().packed_nbytes == 0


def test_training_keeps_masked_weights_at_zero(mask, x):
    layer = MaskedConv2d(24, 40, 3, mask=mask)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).pow(2).mean().backward()
        optimizer.step()
    assert not layer.weight.detach()[~mask.dense()].any()


def test_deferred_shapes(mask, x):
    layer = MaskedConv2d(24, 40, 3, mask=mask, device="meta")
    assert layer(x.to("meta")).shape == (2, 40, 7, 6)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.mask == mask and not layer.weight.detach()[~mask.dense()].any()
    assert layer(x).shape == (2, 40, 7, 6)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_usual_call_takes_the_short_way(groups, packed, recorded, monkeypatch):
    """Straight to the op, with no backend asked for: the checks before it take longer than a small convolution."""
    mask = Mask.random((64, 64 // groups, 3, 3), 0.1)
    layer = MaskedConv2d(64, 64, 3, padding=1, stride=2, groups=groups, padding_mode="circular", mask=mask).eval()
    if packed:
        layer.pack()
    x = torch.randn(2, 64, 5, 6)
    with maskfuse.use_backend("cpu"):
        want = layer(x)
    module = sys.modules[MaskedConv2d.__module__]
    monkeypatch.setattr(module, "checked_masked_conv2d", lambda *args: pytest.fail("the long way"))
    with torch.set_grad_enabled(recorded):
        assert torch.equal(layer(x), want) and layer(x).requires_grad is recorded
    monkeypatch.setattr(module, "checked_masked_conv2d", lambda *args: "the long way")
    with maskfuse.use_backend("reference"):
        assert layer(x) == "the long way"
    for other in (torch.randn(2, 63, 5, 6), torch.randn(64, 5, 6), x.double()):
        assert layer(other) == "the long way"  # which says what is wrong, or takes an image alone
    assert layer(x, channels=torch.ones(64, dtype=torch.bool)) == "the long way"
    layer.bias = nn.Parameter(torch.empty(64, device="meta"))
    assert layer(x) == "the long way"
    full = MaskedConv2d(64, 64, 3)
    assert torch.equal(full(x), full.to_dense()(x))
