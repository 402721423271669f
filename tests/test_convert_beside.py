"""convert beside other machinery: pruned models, attention and its fast path, subclasses, computed weights."""

from __future__ import annotations

import pytest
import torch
from maskfuse import Mask, Policy, convert, use_backend
from maskfuse.nn import GatedLinear, MaskedConv2d, MaskedLinear
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm


def masked(model):
    return [name for name, module in model.named_modules() if isinstance(module, (MaskedLinear, MaskedConv2d))]


@pytest.mark.parametrize("again", [False, True])
def test_pruned_models_keep_what_is_pruned(again):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    prune.l1_unstructured(model[4], "weight", 0.5)
    prune.ln_structured(model[0], "weight", 0.25, n=2, dim=0)
    prune.l1_unstructured(model[5], "bias", 1)
    if again:  # a container of two methods
        prune.random_unstructured(model[4], "weight", 0.5)
    kept = []
    model[4].register_forward_pre_hook(lambda module, args: kept.append(module))
    x = torch.randn(2, 3, 4, 4)
    with use_backend("reference"):
        y = model(x)
        original, pruned = model[4].weight_orig, model[4].weight_mask.bool()
        convert(model)
        assert torch.equal(model(x), y)
    assert model[4].weight is original and model[4].mask == Mask.from_dense(pruned)
    assert list(model[4]._parameters) == ["weight", "bias"] and not list(model[4].buffers())
    assert list(model[4].state_dict()) == ["weight", "bias", "mask_bits"] and len(kept) == 2
    assert model[0].mask.density == 0.75 and not model[0].weight[~model[0].mask.dense()].any()
    assert "bias_orig" in model[5]._parameters  # a bias has no mask here
    model(x).sum().backward()
    before = original.detach().clone()
    optimizer.step()
    assert not torch.equal(original, before) and not original[~pruned].any()


def test_a_policy_takes_more_away_from_what_is_pruned():
    layer = nn.Linear(8, 4)
    pruned = torch.zeros(4, 8, dtype=torch.bool)
    pruned[:, ::2] = True
    with torch.no_grad():
        layer.weight[:, 1::2] = 9  # the largest, were they not pruned
    prune.custom_from_mask(layer, "weight", pruned)
    convert(layer, 0.25)
    assert layer.mask.active == 8 and not layer.mask.dense()[~pruned].any()
    for policy in (0.75, {"": Mask.full((4, 8))}):
        layer = prune.custom_from_mask(nn.Linear(8, 4), "weight", pruned)
        assert convert(layer, policy).mask == Mask.from_dense(pruned)
    layer = prune.custom_from_mask(nn.Linear(8, 4), "weight", torch.full((4, 8), 0.5))
    with pytest.raises(ValueError, match=r"pruning mask.*zeros and ones"):
        convert(layer)


def test_layers_that_share_a_weight_are_pruned_alike():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match="must be pruned alike"):
        convert(model)
    assert prune.is_pruned(model)


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, **options)
    model = nn.TransformerEncoder(layer, 2)
    for parameter in model.parameters():  # clones of one layer are alike otherwise
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_attention_in_eval_calls_the_masked_layers(retain, padded):
    plain, model = encoder(), encoder()
    convert(model, 0.25)
    assert masked(model) == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    for name in masked(model):
        layer, other = model.get_submodule(name), plain.get_submodule(name)
        other.weight.masked_fill_(~layer.mask.dense(), 0)
        if retain:
            layer.set_mask(layer.mask, retain=True)
            layer.weight.masked_fill_(~layer.mask.dense(), 5)
    calls = []
    forward = MaskedLinear.forward
    x = torch.randn(3, 5, 16)
    padding = torch.arange(5) >= torch.tensor([[5], [4], [2]]) if padded else None
    with pytest.MonkeyPatch.context() as patch:  # a hook would turn the fast path off by itself
        patch.setattr(MaskedLinear, "forward", lambda self, input: calls.append(self) or forward(self, input))
        y = model(x, src_key_padding_mask=padding)
    wanted = plain(x, src_key_padding_mask=padding)
    assert len(calls) == 4
    if padded:  # what stands at padded places is arbitrary
        y, wanted = y[~padding], wanted[~padding]
    torch.testing.assert_close(y, wanted)


def test_attention_in_training_and_other_transformers():
    model = convert(nn.Transformer(16, 2, 1, 1, 32, batch_first=True), 0.5)
    assert masked(model) == [f"{side}.layers.0.linear{i}" for side in ("encoder", "decoder") for i in (1, 2)]
    model(torch.randn(2, 3, 16), torch.randn(2, 4, 16)).sum().backward()
    layer = model.encoder.layers[0].linear1
    assert layer.weight.grad.any() and not layer.weight.grad[~layer.mask.dense()].any()
    with pytest.raises(TypeError, match=r"out_proj.*never calls it"):
        convert(encoder(), {"layers.0.self_attn.out_proj": 0.5})
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = nn.Linear(4, 4)
    with pytest.warns(UserWarning, match="matches no layer"):
        convert(attention)
    assert type(attention.out_proj) is nn.Linear


def test_fast_paths_over_plain_layers_stay_on():
    model = convert(nn.ModuleDict({"encoder": encoder(), "head": nn.Linear(16, 2)}), {"head": 0.5})
    assert model["encoder"].use_nested_tensor and model["encoder"].layers[0].activation_relu_or_gelu == 1


class Own(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


def test_subclasses_are_left_alone_and_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4), GatedLinear(4, 4))
    assert masked(convert(model, 0.5)) == ["0"] and type(model[1]) is Own and type(model[2]) is GatedLinear
    for name, message in (("0", "masked already"), ("1", "Own"), ("2", "GatedLinear"), ("", "Sequential")):
        with pytest.raises(TypeError, match=f"names '{name}'.*{message}"):
            convert(model, {name: 0.5})


def own_forward(layer):
    layer.forward = layer.forward
    return layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (parametrizations.orthogonal, "parametrization"),
        (lambda layer: parametrizations.weight_norm(layer), "parametrization"),
        (spectral_norm, "computed from other parameters"),
        (own_forward, "forward of its own"),
    ],
)
def test_layers_that_compute_otherwise_are_refused(change, message):
    model = nn.Sequential(nn.Linear(4, 4), change(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=f"'1'.*{message}"):
        convert(model, 0.5)
    assert not masked(model)
    assert masked(convert(model, Policy(exclude="1"))) == ["0"]
