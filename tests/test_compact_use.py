"""compact: inputs, dtypes, what stays of a model, what is refused."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections import UserDict

import pytest
import torch
from compacts import lively, masked, mlp
from maskfuse import Mask, compact
from maskfuse._compact.check import inputs_like
from maskfuse.nn import CompactConv2d, CompactLinear, GatedLinear, MaskedLinear, freeze, frozen_mask
from torch import nn
from torch.nn import functional as F


def test_what_stays_of_parameters_and_modes():
    model = masked(mlp(nn.ReLU()), _0=[0, 1]).train()
    model[1].eval()
    model[2].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    frozen = torch.rand(4, 12) > 0.5
    freeze(model[2].weight, frozen)
    small = compact(model, torch.randn(3, 6))
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [True, True, False, False]
    assert torch.equal(frozen_mask(small[2].weight).dense(), frozen[:, 2:])
    small(torch.randn(3, 6)).sum().backward()
    assert small[0].weight.grad.shape == (10, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model = masked(mlp(nn.SiLU()), _0=[0, 1, 2]).to(dtype)
    x = torch.randn(5, 6, dtype=dtype)
    small = compact(model, x)
    assert small[0].weight.shape == (9, 6) and small[2].bias.dtype == dtype
    close = {torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(small(x), model(x), rtol=close, atol=close)


def test_inputs_as_arguments_and_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x, y=None):
            return {"sum": [self.last(F.relu(self.first(x + y)))], "mean": (y.mean(), 3, None)}

    model = masked(Two(), first=[0])
    x, y = torch.randn(3, 6), torch.randn(3, 6)
    for inputs in ((x, y), [x, y], {"x": x, "y": y}, UserDict(x=x, y=y)):
        assert compact(model, inputs).first.weight.shape == (7, 6)


def test_inference_mode_and_packed_weights():
    model = masked(mlp(nn.Sigmoid()), _0=[0, 1]).eval()
    model[0].pack()
    with torch.inference_mode():
        x = torch.randn(3, 6)
        small = compact(model, x)
        torch.testing.assert_close(small(x), model(x))
    assert small[0].weight.shape == (10, 6) and not any(p.is_inference() for p in small.parameters())


def test_passes_draw_the_same_and_leave_the_inputs():
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.last(F.dropout(self.first(x.mul_(2)), 0.5, True))

    x = torch.randn(3, 6)
    before = x.clone()
    compact(masked(Drawing(), first=[0]), x)
    assert torch.equal(x, before)


def test_the_check_draws_inputs_like_the_example():
    example = {"x": torch.full((1000,), 2.0), "ids": torch.arange(3), "y": (torch.randn(1000) * 5 + 3, 7)}
    first, other, another = inputs_like(example, 2)
    assert first is example and torch.equal(other["ids"], example["ids"]) and other["y"][1] == 7
    assert not torch.equal(other["x"], another["x"])
    for t, mean, deviation in [(other["x"], 2, 1), (another["x"], 2, 1), (other["y"][0], 3, 5)]:
        assert abs(t.mean() - mean) < 0.2 * deviation and abs(t.std() - deviation) < 0.2 * deviation


def test_random_numbers_and_buffers_are_left_alone():
    model = masked(
        lively(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))), _0=[0]
    ).train()
    state, means = torch.get_rng_state(), model[1].running_mean.clone()
    x = torch.randn(4, 6)
    torch.set_rng_state(state)
    small = compact(model, x)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(model[1].running_mean, means)
    assert torch.equal(small[1].running_mean, means[1:])


def test_what_was_cut_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="maskfuse"):
        compact(masked(mlp(nn.ReLU()), _0=[0, 1]), torch.randn(3, 6))
    assert [record.getMessage() for record in caplog.records] == [
        "compact: 0.weight [12, 6] -> [10, 6]",
        "compact: 0.bias [12] -> [10]",
        "compact: 2.weight [4, 12] -> [4, 10]",
    ]


class Fixed(nn.Module):
    """Code with a layer's size in it."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(2), nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.pool(self.conv(x)).view(-1, 24))


class Scaled(nn.Module):
    """A number that depends on a layer's size."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x)
        return self.last(y / y.shape[-1])


def test_code_that_knows_sizes_is_refused_and_named():
    for model, shape, where in [
        (masked(Fixed(), conv=[0, 1]), (2, 3, 6, 6), r"does not return what it did .*RuntimeError.*part in the model"),
        (masked(Scaled(), first=[0, 1]), (3, 6), r"apart.*part in layer 'last' \(Linear\)"),
    ]:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match=where):
            compact(model, torch.randn(*shape))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert compact(model, torch.randn(3, 6), tolerance=10.0).first.out_features == 6


def test_what_the_check_finds_a_wrong_cut_by(monkeypatch):
    from maskfuse._compact import decide

    monkeypatch.setattr(decide._Product, "needed", lambda self, dead: self.inputs[:1])
    with pytest.raises(RuntimeError, match=r"part in layer '2' \(Linear\)"):
        compact(masked(mlp(nn.ReLU()), _0=[0]), torch.randn(3, 6))


def test_bad_input():
    x = torch.randn(3, 6)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got int"):
        compact(3, x)
    with pytest.raises(
        ValueError, match=r"model \(Sequential\) does not run on example_inputs \(Tensor\): ValueError: input"
    ):
        compact(masked(mlp(nn.ReLU()), _0=[0]), torch.randn(3, 5))
    with pytest.raises(ValueError, match=r"does not run on example_inputs \(dict\): TypeError"):
        compact(masked(mlp(nn.ReLU()), _0=[0]), {"wrong": x})
    with pytest.raises(ValueError, match=r"all of its values here, but '0\.weight' is on meta"):
        compact(masked(mlp(nn.ReLU()), _0=[0]).to("meta"), x)
    with pytest.raises(TypeError, match=r"layer '0' is gated"):
        compact(nn.Sequential(GatedLinear(6, 6), MaskedLinear(6, 6)), x)
    model = masked(mlp(nn.ReLU()), _0=[0])
    model.state = model(x)  # a tensor with a history, which torch does not copy
    with pytest.raises(ValueError, match=r"model \(Sequential\) cannot be copied: "):
        compact(model, x)
    with pytest.warns(UserWarning, match=r"model \(Sequential\) has no masked layers: nothing is cut"):
        plain = mlp(nn.ReLU())
        other = compact(plain, x)
    assert other is not plain and torch.equal(other(x), plain(x))


def test_hooks_stay_and_see_the_passes():
    model = masked(mlp(nn.ReLU()), _0=[0, 1])
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    small = compact(model, torch.randn(3, 6))
    x = torch.randn(4, 6)
    torch.testing.assert_close(small(x), model(x))
    assert small[0].out_features == 10 and len(small[1]._forward_hooks) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (small[0], small[2]))


def test_parametrizations_of_other_layers_are_followed():
    for normed in (nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm):
        model = masked(mlp(nn.ReLU()), _0=[0, 1])
        normed(model[2])
        model.eval()  # in training spectral norm changes its vectors in each call
        x = torch.randn(4, 6)
        torch.testing.assert_close(compact(model, x)(x), model(x))


def test_it_needs_no_other_package():
    code = (
        "import sys, torch, maskfuse; assert not {'torch_pruning', 'transformers', 'torch._dynamo'} & set(sys.modules)"
    )
    code += "; l = maskfuse.nn.MaskedLinear(4, 4); maskfuse.compact(torch.nn.Sequential(l), torch.zeros(1, 4))"
    code += "; assert not {'torch_pruning', 'torch._dynamo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_compact_layers_are_cut_and_stay_compact():
    """They were made plain ones, whose masks were gone, and their own dead channels were not seen."""
    rows = torch.arange(12) % 3 != 0
    scattered = Mask.channels((12, 6, 3, 3), out=rows) & Mask.random((12, 6, 3, 3), 0.3)
    conv = CompactConv2d(6, 12, 3, mask=scattered)
    head = CompactLinear(12, 4, mask=Mask.channels((4, 12), inp=rows))
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    x = torch.randn(2, 6, 5, 5)
    small = compact(model, x)
    assert type(model[0]) is CompactConv2d and model[0].mask == scattered  # what was given is as it was
    assert type(small[0]) is CompactConv2d and small[0].mask == Mask.from_dense(scattered.dense()[rows])
    assert torch.equal(small[0].values, conv.values) and small[0].out_channels == 8
    assert list(small[0].state_dict()) == list(conv.state_dict())
    assert type(small[4]) is nn.Linear and small[4].weight.shape == (4, 8)  # nothing of it is masked now
    torch.testing.assert_close(small(x), model(x))
    small(x).sum().backward()
    assert small[0].values.grad.shape == small[0].values.shape


def test_compact_layers_that_share_their_values():
    mask = Mask.random((8, 8), 0.3)
    model = nn.Sequential(CompactLinear(8, 8, mask=mask), nn.ReLU(), CompactLinear(8, 8, mask=mask), nn.ReLU())
    model[2].values = model[0].values
    freeze(model[0].values, torch.arange(mask.active) % 2 == 0)
    model.append(MaskedLinear(8, 4))
    small = compact(model, torch.randn(3, 8))
    assert type(small[0]) is CompactLinear and small[0].values is small[2].values
    assert torch.equal(frozen_mask(small[0].values).dense(), torch.arange(mask.active) % 2 == 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: compact(m, x, tolerance=-1.0), ValueError, r"tolerance must not be negative, got -1\.0"),
        (lambda m, x: compact(m, x, tolerance=float("nan")), ValueError, "tolerance must not be NaN"),
        (lambda m, x: compact(m, x, tolerance="1e-3"), TypeError, "tolerance must be a number"),
        (lambda m, x: compact(nn.Sequential(GatedLinear(6, 4)), x), TypeError, r"'0' is gated.*harden\(\)"),
    ],
)
def test_arguments_that_cannot_be(call, error, message):
    with pytest.raises(error, match=message):
        call(masked(mlp(nn.ReLU()), _0=[0]), torch.randn(3, 6))
