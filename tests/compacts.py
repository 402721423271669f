"""Networks with masked channels, and what of them compact leaves."""

from __future__ import annotations

import copy

import torch
from maskfuse import Mask, compact, convert
from torch import nn
from torch.nn import functional as F


def lively(model):
    """Norms with parameters and statistics that are not those of a new one, in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            module.weight.data.normal_()
            module.bias.data.normal_()
    return model.eval()


def masked(model, **dead):
    """Masks all weights of some output channels: `layer=[...]`, dots in names written as `__`."""
    for name, channels in dead.items():
        layer = model.get_submodule(name.lstrip("_").replace("__", "."))
        out = torch.ones(len(layer.weight), dtype=torch.bool)
        out[channels] = False
        convert(model, {name.lstrip("_").replace("__", "."): Mask.channels(layer.weight.shape, out=out)})
    return model


def unread(model, name, channels):
    """Masks all weights on some input channels."""
    layer = model.get_submodule(name)
    inp = torch.ones(layer.weight.shape[1], dtype=torch.bool)
    inp[channels] = False
    convert(model, {name: Mask.channels(layer.weight.shape, inp=inp)})
    return model


def check(model, *shape, others=()):
    """The compact model, after it was seen to be equal on inputs of this shape and others."""
    before = copy.deepcopy(model.state_dict())
    small = compact(model, torch.randn(*shape))
    for other in (shape, *others):
        x = torch.randn(*other)
        with torch.no_grad():
            torch.testing.assert_close(small(x), copy.deepcopy(model).eval()(x), rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(after[key], value) for key, value in before.items())
    return small


def shapes(model):
    return {name.removesuffix(".weight"): tuple(p.shape) for name, p in model.named_parameters() if "weight" in name}


def mlp(*between, bias=True):
    return nn.Sequential(nn.Linear(6, 12, bias), *between, nn.Linear(12, 4))


class Block(nn.Module):
    """A residual block; its sum is with the input, or with a projection of it."""

    def __init__(self, inp, out, project, bias=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inp, out, 3, padding=1, bias=bias), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1, bias=bias), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(inp, out, 1, bias=bias) if project else nn.Identity()

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.short(x)
        return F.relu(y)


def residual(project):
    out = 12 if project else 8
    blocks = [Block(8, out, project), Block(out, out, False)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(out, 5),
    )
