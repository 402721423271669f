"""fold: whole models converted, trained and folded; what stays, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from maskfuse import Mask, convert, fold, protect, use_backend
from maskfuse.nn import GatedLinear, MaskedConv2d, MaskedLinear
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Block(nn.Module):
    """A residual block, with a projection where the shape changes."""

    def __init__(self, inp, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inp, out, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


class Encoder(nn.Module):
    """A Transformer encoder with a layer before and one behind it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def resnet():
    blocks = [Block(8, 8, 1), Block(8, 16, 2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


MODELS = [(Encoder, (4, 7, 6), 6), (resnet, (4, 3, 12, 12), 7)]


def masked_layers(model):
    return [module for module in model.modules() if isinstance(module, (MaskedLinear, MaskedConv2d))]


def trained(make, shape, density=0.3):
    """A converted model after three steps, in eval mode."""
    torch.manual_seed(0)
    model = convert(make(), density)
    optimizer = protect(torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1), model)
    before = [layer.weight.detach().clone() for layer in masked_layers(model)]
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(shape)), torch.arange(shape[0])).backward()
        optimizer.step()
    assert not any(torch.equal(a, layer.weight) for a, layer in zip(before, masked_layers(model), strict=True))
    return model.eval()


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("make", "shape", "layers"), MODELS, ids=["encoder", "resnet"])
def test_convert_train_fold(make, shape, layers, backend):
    model = trained(make, shape)
    masked = masked_layers(model)
    masks = {layer: layer.mask.dense() for layer in masked}
    weights = {layer: layer.weight.detach().clone() for layer in masked}
    parameters = list(model.parameters())
    assert len(masked) == layers
    x = torch.randn(shape)
    if backend == "reference":  # which runs torch's kernels, as plain layers do
        with use_backend(backend):
            y = model(x)
    else:
        y = model(x)
    assert fold(model) is model
    folded = model(x)  # with gradients on: no fast path
    assert torch.equal(folded, y) if backend == "reference" else torch.allclose(folded, y, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # for the encoder by its fast path
        torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
    assert {type(layer) for layer in masked} <= {nn.Linear, nn.Conv2d}
    for layer, mask in masks.items():
        assert torch.equal(layer.weight, weights[layer]) and not layer.weight[~mask].any()
        assert not hasattr(layer, "mask") and not hasattr(layer, "_mask")
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    plain = make().eval()
    assert not any(plain.load_state_dict(model.state_dict()))  # no key is missing or left
    assert torch.equal(plain(x), folded)
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        assert vars(module).keys() == vars(other).keys()


def test_the_fast_path_is_on_again():
    model = fold(trained(Encoder, (4, 7, 6)))
    model.encoder.layers[0].linear1.forward = None  # never called by it
    model.encoder.layers[1].linear1.forward = None
    with torch.no_grad():
        model(torch.randn(4, 7, 6))
    assert model.encoder.use_nested_tensor
    assert model.encoder.layers[0].activation_relu_or_gelu == 1


def test_the_fast_path_stays_off_over_what_is_masked():
    model = convert(Encoder().eval(), 0.5)
    fold(model.encoder.layers[0])
    assert model.encoder.layers[0].activation_relu_or_gelu == 1
    assert model.encoder.layers[1].activation_relu_or_gelu == 0 and not model.encoder.use_nested_tensor
    again = copy.deepcopy(model)
    fold(again)
    assert again.encoder.use_nested_tensor and again.encoder.layers[1].activation_relu_or_gelu == 1


def test_retained_values_become_zero():
    layer = nn.Linear(8, 4)
    weight = layer.weight.detach().clone()
    mask = Mask.random((4, 8), 0.5)
    convert(layer).set_mask(mask, retain=True)
    layer.eval().pack()
    x = torch.randn(3, 8)
    y = layer(x)
    fold(layer)
    assert torch.equal(layer.weight, torch.where(mask.dense(), weight, 0))
    torch.testing.assert_close(layer(x), y)


def test_hooks_and_the_rest_stay():
    layer = convert(nn.Conv2d(4, 4, 3, groups=2, padding_mode="reflect", padding=1, dtype=torch.float64).eval(), 0.5)
    layer.note = "mine"
    layer.bias.requires_grad_(False)
    seen = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    assert repr(fold(layer)) == repr(nn.Conv2d(4, 4, 3, groups=2, padding_mode="reflect", padding=1))
    layer(torch.randn(1, 4, 5, 5, dtype=torch.float64))
    handle.remove()
    layer(torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert seen == [nn.Conv2d] and layer.note == "mine" and not layer.training and not layer.bias.requires_grad


@pytest.mark.parametrize("protected", [False, True])
def test_folded_layers_train_on(protected):
    layer = convert(nn.Linear(8, 4), 0.5)
    dense = layer.mask.dense()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)  # made while the mask had met no optimizer
    if protected:
        protect(optimizer, layer)
    fold(layer)
    layer(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    assert layer.weight[~dense].all()
    assert convert(layer, 0.25).mask.active == 8


def test_layers_that_share_a_weight():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    fold(convert(model, 0.5))
    assert model[0].weight is model[1].weight and type(model[1]) is nn.Linear
    convert(model)
    model[0].set_mask(Mask.random((6, 6), 0.5))
    with pytest.raises(ValueError, match=r"'0' and '1' share a weight.*18 and 36"):
        fold(model)
    assert len(masked_layers(model)) == 2


def test_values_that_something_else_reads():
    embedding, layer = nn.Embedding(5, 4), MaskedLinear(4, 5)
    layer.weight = embedding.weight
    layer.set_mask(Mask.random((5, 4), 0.5), retain=True)
    model = nn.Sequential(embedding, layer)
    with pytest.raises(ValueError, match=r"'1'.*'0' \(Embedding\) reads it too"):
        fold(model)
    assert layer.weight.all()
    layer.set_mask(layer.mask)
    assert type(fold(model)[1]) is nn.Linear


def test_nothing_to_fold_is_said():
    model = fold(convert(nn.Sequential(nn.Linear(4, 4)), 0.5))
    weight = model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"model \(Sequential\) has no masked layers.*folded before"):
        assert fold(model) is model
    assert torch.equal(model[0].weight, weight)


class Own(MaskedLinear):
    pass


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: GatedLinear(4, 4), r"'1' is gated \(GatedLinear\).*harden"),
        (lambda: Own(4, 4), r"'1' \(Own\) must be exactly"),
        (lambda: parametrizations.orthogonal(MaskedLinear(4, 4)), r"'1' \(Parametrized.*\) must be exactly"),
    ],
)
def test_what_cannot_be_folded_changes_nothing(other, message):
    model = nn.Sequential(convert(nn.Linear(4, 4), 0.5), other())
    with pytest.raises(TypeError, match=message):
        fold(model)
    assert type(model[0]) is MaskedLinear


def test_gated_layers_fold_once_hardened():
    gated = GatedLinear(8, 4, kind="straight_through").eval()
    nn.init.normal_(gated.scores)
    model = nn.Sequential(gated.harden())
    x = torch.randn(3, 8)
    torch.testing.assert_close(fold(model)(x), gated(x))


def test_bad_models():
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got dict"):
        fold({})
