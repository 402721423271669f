"""convert: which layers a policy names, their masks, what stays of layers and models, bad input."""

from __future__ import annotations

import copy
import warnings

import maskfuse
import pytest
import torch
from copies import pickled
from maskfuse import Mask, Policy, convert
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch import nn


def small():
    """Two convolutions and two linear layers, of names that patterns tell apart."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 2)
    )


def masked(model):
    return [name for name, module in model.named_modules() if isinstance(module, (MaskedLinear, MaskedConv2d))]


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (None, ["0", "2", "4", "5"]),
        (0.5, ["0", "2", "4", "5"]),
        (Policy(types=(nn.Linear,)), ["4", "5"]),
        (Policy(types=nn.Conv2d), ["0", "2"]),
        (Policy(names="[02]"), ["0", "2"]),
        (Policy(names=("0", "5")), ["0", "5"]),
        (Policy(names=lambda name, layer: name == "2" or getattr(layer, "out_features", 0) == 10), ["2", "4"]),
        (Policy(exclude=["0", "[5-9]"]), ["2", "4"]),
        (Policy(exclude=lambda name, layer: isinstance(layer, nn.Conv2d)), ["4", "5"]),
        (Policy(min_weights=216), ["0", "4"]),
        (Policy(min_weights=217), ["4"]),
        (Policy(mask=lambda name, layer: Mask.full(layer.weight.shape) if name == "0" else None), ["0"]),
        ({"4": 0.25, "0": None}, ["0", "4"]),
    ],
)
def test_policies_choose_layers(policy, names):
    model = convert(small(), policy)
    assert masked(model) == names
    for name in names:
        assert type(model.get_submodule(name)) is (MaskedConv2d if name in "02" else MaskedLinear)


def test_masks_are_what_the_policy_says():
    model, plain = small(), small()
    plain.load_state_dict(model.state_dict())
    own = torch.eye(2, 10, dtype=torch.bool)
    seen = []

    def mask(name, layer):
        seen.append((name, type(layer)))
        return torch.ones_like(layer.weight, dtype=torch.int64)

    first = Mask.random((8, 3, 3, 3), 0.5)
    convert(model, {"0": first, "2": mask, "4": 0.25, "[45]": own})
    assert model[0].mask == first and model[2].mask == Mask.full((4, 8, 1, 1)) and model[5].mask == Mask.from_dense(own)
    assert model[4].mask == Mask.topk(plain[4].weight.abs(), 0.25)
    assert seen == [("2", nn.Conv2d)]
    for layer, before in zip(model, plain, strict=True):
        if hasattr(layer, "mask"):
            assert torch.equal(layer.weight, torch.where(layer.mask.dense(), before.weight, 0))
    assert convert(small(), 1)[0].mask.density == 1


def test_layers_and_parameters_stay_the_objects_they_are():
    model = small().double().eval()
    model[4].bias.requires_grad_(False)
    model[0].note = "mine"
    layers, parameters, elsewhere = list(model), list(model.parameters()), [model[4]]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    handle = model[4].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    model[4].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    model[5].register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update(mine=torch.ones(1)))
    assert convert(model, 0.5) is model
    assert all(a is b for a, b in zip(model, layers, strict=True)) and elsewhere[0] is model[4]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model[0].note == "mine" and not model[4].training and not model[4].bias.requires_grad
    assert {p.dtype for p in model.parameters()} == {torch.float64} and "mine" in model.state_dict()
    before = model[5].weight.detach().clone()
    model(torch.randn(2, 3, 4, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert seen == [MaskedLinear, "backward"] and not torch.equal(model[5].weight, before)
    assert not model[5].weight[~model[5].mask.dense()].any()
    handle.remove()
    model(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert seen.count(MaskedLinear) == 1


def test_a_plain_layer_is_a_model_too():
    layer = nn.Linear(8, 4)
    assert convert(layer, 0.25) is layer and type(layer) is MaskedLinear and layer.mask.active == 8


def test_converted_models_copy_pickle_and_pack():
    model = convert(small(), 0.2).eval()
    x = torch.randn(2, 3, 4, 4)
    y = model(x)
    for other in (copy.deepcopy(model), pickled(model)):
        assert masked(other) == masked(model) and torch.equal(other(x), y)
    torch.testing.assert_close(maskfuse.pack(model)(x), y)


def test_weights_in_channels_last_become_contiguous():
    model = small().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    y = model(x)
    convert(model)
    assert model[0].weight.is_contiguous()
    torch.testing.assert_close(model(x), y)


def test_meta_takes_masks_and_no_density():
    model = nn.Sequential(nn.Linear(4, 4, device="meta"))
    with pytest.raises(ValueError, match=r"'0'.*meta"):
        convert(model, 0.5)
    assert type(model[0]) is nn.Linear
    assert convert(model, {"0": Mask.channels((4, 4), out=torch.tensor([1]))})[0].mask.active == 4


class Tied(nn.Module):
    """One module under two names, and another that shares its weight with a third."""

    def __init__(self):
        super().__init__()
        self.a = self.again = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.c = nn.Linear(6, 6, bias=False)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.c(self.b(self.again(self.a(x))))


def test_shared_modules_and_weights_stay_shared():
    calls = []

    def mask(name, layer):
        calls.append(name)
        return Mask.random(layer.weight.shape, 0.5)

    model = convert(Tied(), Policy(mask=mask))
    assert model.a is model.again and type(model.a) is MaskedLinear
    assert model.b.weight is model.c.weight and model.b.mask == model.c.mask and calls == ["a", "b"]
    model = convert(Tied(), {"again": 0.5, "b": 0.25, "c": 0.25})
    assert model.a.mask.active == 18 and model.c.mask.active == 9


@pytest.mark.parametrize(
    "policy", [{"b": 0.5}, {"b": 0.5, "c": 0.25}, {"b": Mask.full((6, 6)), "c": None}, Policy(exclude="b", density=0.5)]
)
def test_half_of_what_shares_a_weight_is_refused(policy):
    model = Tied()
    weight = model.b.weight.detach().clone()
    with pytest.raises(ValueError, match="shares its weight"):
        convert(model, policy)
    assert not masked(model) and torch.equal(model.b.weight, weight)


def test_a_weight_that_is_an_embeddings_too_is_refused():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'1'.*'0' \(Embedding\).*exclude"):
        convert(model, 0.5)


def test_a_function_may_leave_alone_what_could_not_be_masked():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10), nn.Linear(10, 2))
    model[1].weight = model[0].weight
    policy = Policy(mask=lambda name, layer: Mask.full((2, 10)) if name == "2" else None)
    assert masked(convert(model, policy)) == ["2"]


def test_what_matches_nothing_is_said():
    model = small()
    with pytest.warns(UserWarning, match="matches no layer"):
        convert(model, Policy(mask=lambda name, layer: None))
    with pytest.warns(UserWarning, match=r"matches no layer of model \(Sequential\).*'0', '2', '4', '5'.*0 are masked"):
        assert convert(model, Policy(names="head.*")) is model
    with pytest.warns(UserWarning, match=r"'head"):
        convert(model, {"[02]": 0.5, "head": 0.5})
    assert masked(model) == ["0", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, 0.5)
    model[0] = model[0].to_compact()
    with pytest.warns(UserWarning, match=r"\[\], and 4 are masked already"):
        convert(model, 0.5)
    with pytest.raises(TypeError, match="names '0', which is masked already: its set_mask changes the mask"):
        convert(model, {"0": 0.5})


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        ({"4": Mask.full((64, 10))}, ValueError, r"'4'.*\[10, 64\], got \[64, 10\]"),
        ({"4": torch.ones(10, 63, dtype=torch.bool)}, ValueError, r"'4'.*\[10, 64\], got \[10, 63\]"),
        ({"4": torch.rand(10, 64)}, TypeError, r"'4'.*floating"),
        ({"4": torch.full((10, 64), 2)}, ValueError, r"'4'.*0 or 1"),
        (Policy(names="4", mask=lambda name, layer: "half"), TypeError, r"'4'.*str"),
        ({"4": "half"}, TypeError, "density"),
        ({"4": 1.5}, ValueError, "density must be in 0..1, got 1.5"),
        ("half", TypeError, "policy must be"),
        (True, TypeError, "policy must be"),
        ({1: 0.5}, TypeError, "names"),
    ],
)
def test_bad_policies_change_nothing(policy, error, message):
    model = small()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        convert(model, {"0": 0.5, **policy} if isinstance(policy, dict) else policy)
    assert not masked(model) and all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"types": (nn.Conv1d,)}, TypeError, "types.*Conv1d"),
        ({"names": 3}, TypeError, "names"),
        ({"exclude": [3]}, TypeError, "exclude"),
        ({"min_weights": 1.5}, TypeError, "min_weights"),
        ({"min_weights": -1}, ValueError, "min_weights"),
        ({"density": float("nan")}, ValueError, "density"),
        ({"density": 0.5, "mask": Mask.full((2, 2))}, ValueError, "both"),
        ({"mask": 0.5}, TypeError, "mask must be"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        Policy(**options)


def test_bad_models():
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got list"):
        convert([nn.Linear(2, 2)], 0.5)
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'0'.*NaN"):
        convert(model, 0.5)
    with pytest.raises(TypeError, match=r"'0'.*complex"):
        convert(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)))
