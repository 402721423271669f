"""compact: random networks with random masks, and networks of `transformers`."""

from __future__ import annotations

import pytest
import torch
from compacts import Block, lively, masked, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from maskfuse import Mask, compact, convert
from torch import nn
from torch.nn import functional as F


class Concatenated(nn.Module):
    """Two convolutions of one input, one behind the other's channels."""

    def __init__(self, inp, out):
        super().__init__()
        self.left, self.right = nn.Conv2d(inp, out, 3, padding=1), nn.Conv2d(inp, 2, 1)

    def forward(self, x):
        return torch.cat([x, self.left(x), torch.tanh(self.right(x))], 1)


class Squeezed(nn.Module):
    """Channels weighted by what their means say."""

    def __init__(self, inp):
        super().__init__()
        self.down, self.up = nn.Conv2d(inp, 3, 1), nn.Conv2d(3, inp, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def piece(kind, inp, out):
    """A part of a network, and the channels it returns."""
    if kind == "conv":
        return nn.Conv2d(inp, out, 3, padding=1), out
    if kind == "unpadded":
        return nn.Conv2d(inp, out, 1, bias=False), out
    if kind == "reflect":
        return nn.Conv2d(inp, out, 3, padding=1, padding_mode="reflect"), out
    if kind == "grouped":
        return nn.Conv2d(inp, 2 * inp, 3, padding=1, groups=inp // 2 if inp % 2 == 0 else inp), 2 * inp
    if kind == "depthwise":
        return nn.Conv2d(inp, inp, 3, padding=1, groups=inp), inp
    if kind in ("residual", "projected"):
        return Block(inp, out if kind == "projected" else inp, kind == "projected", bias=True), (
            out if kind == "projected" else inp
        )
    if kind == "cat":
        return Concatenated(inp, out), inp + out + 2
    if kind == "squeeze":
        return Squeezed(inp), inp
    if kind == "groupnorm":
        return nn.GroupNorm(2 if inp % 2 == 0 else 1, inp), inp
    simple = {
        "batchnorm": lambda: nn.BatchNorm2d(inp),
        "relu": lambda: nn.ReLU(inplace=True),
        "gelu": nn.GELU,
        "sigmoid": nn.Sigmoid,
        "maxpool": lambda: nn.MaxPool2d(3, 1, 1),
        "avgpool": lambda: nn.AvgPool2d(3, 1, 1),
    }
    return simple[kind](), inp


KINDS = ("conv", "unpadded", "reflect", "grouped", "depthwise", "residual", "projected", "cat", "squeeze", "groupnorm")
KINDS += ("batchnorm", "relu", "gelu", "sigmoid", "maxpool", "avgpool")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    holes=st.booleans(),
    flat=st.booleans(),
    zeros=st.booleans(),
)
def test_random_networks_return_the_same(kinds, seed, share, holes, flat, zeros):
    torch.manual_seed(seed)
    parts, width = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()], 6
    for kind in kinds:
        part, width = piece(kind, width, 4 + seed % 5)
        parts.append(part)
    parts += (
        [nn.Flatten(), nn.Linear(width * 25, 3)]
        if flat
        else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
    )
    model = lively(nn.Sequential(*parts)).double()

    def mask(name, layer):
        rows, columns = (torch.rand(n) > share for n in layer.weight.shape[:2])
        chosen = Mask.channels(layer.weight.shape, rows, columns if torch.rand(()) < 0.3 else None)
        return chosen & Mask.random(layer.weight.shape, 0.8) if holes else chosen

    convert(model, {"*": mask})
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1 and torch.rand(()) < 0.5:
                p.clamp_(max=0)  # biases that are no more above zero: constants that a ReLU makes zero
    example = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    small = compact(model, 0 * example if zeros else example)  # of zeros everything looks constant
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(0 not in p.shape for p in small.parameters())
    again = compact(small, x) if any(hasattr(m, "mask") for m in small.modules()) else small
    assert sum(p.numel() for p in again.parameters()) <= sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_a_residual_network_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type=kind, num_labels=5
    )
    model = transformers.ResNetForImageClassification(config).eval()  # new norms: masked channels are 0

    def mask(name, layer):
        return Mask.channels(layer.weight.shape, out=torch.randperm(len(layer.weight)) > len(layer.weight) // 2)

    inner = ["*layer.0.convolution"] + ["*layer.1.convolution"] * (kind == "bottleneck")
    convert(model, dict.fromkeys(inner, mask))
    x = torch.randn(2, 3, 32, 32)
    small = compact(model, {"pixel_values": x})
    with torch.no_grad():
        torch.testing.assert_close(small(x).logits, model(x).logits, rtol=1e-4, atol=1e-5)
    layers = [name for name, module in model.named_modules() if hasattr(module, "mask")]
    assert len(layers) == len(inner) * 4
    for name in layers:
        before, after = model.get_submodule(name), small.get_submodule(name)
        rows = int(before.mask.dense().flatten(1).any(1).sum())
        assert after.out_channels == rows < before.out_channels and type(after) is nn.Conv2d


def test_language_models_lose_hidden_features():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    model = transformers.LlamaForCausalLM(config).eval()
    masked(model, model__layers__0__mlp__gate_proj=[0, 1, 5], model__layers__1__mlp__up_proj=[2])
    small = compact(model, {"input_ids": torch.randint(0, 50, (2, 7))})
    sizes = shapes(small)
    assert sizes["model.layers.0.mlp.up_proj"] == (21, 16) and sizes["model.layers.0.mlp.down_proj"] == (16, 21)
    assert sizes["model.layers.1.mlp.gate_proj"] == (23, 16)
