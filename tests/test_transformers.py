"""Whole models of the transformers package, with random weights: converted, trained, folded, saved."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from maskfuse import Mask, Policy, convert, fold, pack, protect, schedule, unpack, use_backend
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: before transformers is imported
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
TEXT = SIZES | {"vocab_size": 99, "max_position_embeddings": 32}
SHORT = {"input_ids": torch.randint(99, (3, 11), generator=torch.Generator().manual_seed(0))}
PADDED = SHORT | {"attention_mask": (torch.arange(11) < torch.tensor([[11], [7], [1]])).long()}
IMAGES = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def bert(attention="sdpa", kind="BertModel", **options):
    config = transformers.BertConfig(**TEXT, attn_implementation=attention, **options)
    return getattr(transformers, kind)(config)


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32, patch_size=8))


def t5():
    config = transformers.T5Config(vocab_size=99, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config)


def resnet(kind="ResNetModel", layer_type="basic"):
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type=layer_type, num_labels=5
    )
    return getattr(transformers, kind)(config)


# How to make one, what to call it with, and how many layers are masked below.
MODELS = {
    "bert-sdpa": (bert, PADDED, 12),
    "bert-eager": (lambda: bert("eager"), PADDED, 12),
    "vit": (vit, IMAGES, 12),
    "t5": (t5, PADDED, 12),
    "resnet-basic": (resnet, IMAGES, 7),
    "resnet-bottleneck": (lambda: resnet("ResNetForImageClassification", "bottleneck"), IMAGES, 10),
}


def blocks(name, layer):
    """Half of the blocks of 8 x 8 of a linear layer, half of the channels of a convolution."""
    rows, columns = layer.weight.shape[:2]
    if isinstance(layer, nn.Conv2d):
        return Mask.channels(layer.weight.shape, out=torch.arange(rows) % 2 == 0)
    if rows % 8 or columns % 8:
        return None
    return Mask.blocks(torch.rand(rows // 8, columns // 8) < 0.5, (8, 8))


# Not the layer that reads pixels, nor heads.
POLICIES = {
    "unstructured": Policy(exclude=["*embed*", "pooler*", "classifier*"], density=0.1),
    "structured": Policy(exclude=["*embed*", "pooler*", "classifier*"], mask=blocks),
}


def masked_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, (MaskedLinear, MaskedConv2d))}


def outputs(model, inputs):
    """Everything that a model computes, in eval mode, as one list of tensors."""
    with torch.no_grad():
        result = model.eval()(**inputs, output_hidden_states=True)
    return [t for value in result.values() for t in (value if isinstance(value, tuple) else (value,))]


def assert_outputs_close(model, other):
    """Sums in another order, over at most 128 weights in two layers behind one another, of normalised activations."""
    for got, want in zip(model, other, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def loss_of(model, inputs):
    result = model(**inputs)
    return next(iter(result.values())).square().mean()


def trained_before(model, inputs):
    """An optimizer with momentum on all weights, from before anything is masked."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    loss_of(model.train(), inputs).backward()
    optimizer.step()
    return optimizer


def train(model, inputs, optimizer, steps=3):
    """With a schedule that prunes on in each step, to half of what is active."""
    model.train()
    protect(optimizer, model)
    layers = masked_layers(model)
    density = sum(m.mask.active for m in layers.values()) / sum(m.mask.numel for m in layers.values())
    pruning = schedule.CubicSchedule(
        model, optimizer, density / 2, end=steps, interval=1, initial_density=density, budget="global"
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, inputs).backward()
        optimizer.step()
        pruning.step()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_convert_train_fold(name, policy):
    make, inputs, count = MODELS[name]
    model = make()
    keys = list(model.state_dict())
    optimizer = trained_before(model, inputs)
    convert(model, POLICIES[policy])
    layers = masked_layers(model)
    assert len(layers) == count
    before = {n: layer.weight.detach().clone() for n, layer in layers.items()}
    active = {n: layer.mask for n, layer in layers.items()}
    train(model, inputs, optimizer)
    left = sum(layer.mask.active for layer in layers.values())
    assert left == round(sum(mask.active for mask in active.values()) / 2)
    for n, layer in layers.items():
        dense = layer.mask.dense()
        assert not (layer.weight[~dense] != 0).any() and not dense[~active[n].dense()].any()
        assert bool((layer.weight != before[n])[dense].any()) or not dense.any(), f"{n} was not trained"
    trained = {n: layer.weight.detach().clone() for n, layer in layers.items()}
    with use_backend("reference"):  # torch's product on the masked weight: what the folded model runs
        exact = outputs(model, inputs)
    fast, ready = outputs(model, inputs), outputs(pack(model), inputs)
    assert fold(unpack(model)) is model and not masked_layers(model) and list(model.state_dict()) == keys
    for n, weight in trained.items():
        assert torch.equal(model.get_submodule(n).weight, weight)
    folded = outputs(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(folded, exact, strict=True))
    assert_outputs_close(fast, folded)
    assert_outputs_close(ready, folded)


@pytest.mark.parametrize("name", MODELS)
def test_every_masked_layer_is_called(name):
    """Nothing reads a masked layer's weight instead of calling it: NaNs retained under masks change nothing."""
    make, inputs, _ = MODELS[name]
    model = convert(make(), POLICIES["unstructured"])
    clean = outputs(model, inputs)
    calls = []
    for n, layer in masked_layers(model).items():
        layer.set_mask(layer.mask, retain=True)
        with torch.no_grad():
            layer.weight.masked_fill_(~layer.mask.dense(), float("nan"))
        layer.register_forward_hook(lambda module, args, output, n=n: calls.append(n))
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, inputs), clean, strict=True))
    assert set(calls) == set(masked_layers(model))


def test_a_decoder_tied_to_the_embedding():
    """A mask on it would mask the embedding as well: refused by default, left alone on request, and tied still."""
    model = bert(kind="BertForMaskedLM")
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    with pytest.raises(ValueError, match=r"'cls.predictions.decoder'.*'bert.embeddings.word_embeddings' \(Embedding\)"):
        convert(model, 0.1)
    assert not masked_layers(model)
    optimizer = trained_before(model, PADDED)
    convert(model, Policy(exclude="cls.predictions.decoder", density=0.1))
    assert len(masked_layers(model)) == 13 and type(model.get_output_embeddings()) is nn.Linear
    model.tie_weights()
    train(model, PADDED, optimizer)
    with use_backend("reference"):
        exact = outputs(model, PADDED)
    assert all(torch.equal(a, b) for a, b in zip(outputs(fold(model), PADDED), exact, strict=True))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight is embedding


def test_layers_that_are_no_linear_layers_are_left_alone():
    """GPT-2's are `Conv1D`, whose weights are transposed."""
    config = transformers.GPT2Config(vocab_size=99, n_positions=32, n_embd=64, n_layer=1, n_head=2)
    with pytest.warns(UserWarning, match=r"matches no layer of model \(GPT2Model\)"):
        assert not masked_layers(convert(transformers.GPT2Model(config), 0.1))


def test_an_untied_decoder_is_masked():
    model = bert(kind="BertForMaskedLM", tie_word_embeddings=False)
    convert(model, 0.1)
    assert "cls.predictions.decoder" in masked_layers(model)


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_folded_models_are_saved_and_loaded(kind, tmp_path):
    model = fold(convert(bert(kind=kind), Policy(names="*encoder*", density=0.1)))
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(a, b) for a, b in zip(outputs(again, PADDED), outputs(model, PADDED), strict=True))


def test_masked_models_are_saved_and_loaded(tmp_path):
    """`from_pretrained` makes plain layers, which know no masks; a model of masked layers takes the file whole."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    model = convert(bert(), POLICIES["unstructured"])
    want = outputs(model, PADDED)
    model.save_pretrained(tmp_path)
    plain, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {f"{n}.mask_bits" for n in masked_layers(model)}
    assert not report["missing_keys"]
    assert_outputs_close(outputs(plain, PADDED), want)  # zeros are in the weights themselves
    again = convert(bert(), Policy(exclude=["embeddings*", "pooler*"]))
    assert str(again.load_state_dict(load_file(tmp_path / "model.safetensors"))) == "<All keys matched successfully>"
    assert all(torch.equal(a, b) for a, b in zip(outputs(again, PADDED), want, strict=True))
    assert all(layer.mask == masked_layers(model)[n].mask for n, layer in masked_layers(again).items())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model = convert(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), POLICIES["unstructured"]).train()
    loss_of(model, PADDED).backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    counts = dict.fromkeys(masked_layers(model), 0)
    for n, layer in masked_layers(model).items():
        layer.register_forward_hook(lambda module, args, output, n=n: counts.update({n: counts[n] + 1}))
    loss_of(model, PADDED).backward()
    assert set(counts.values()) == {2}  # computed again in the backward pass
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == wanted.keys() and all(torch.equal(grads[n], wanted[n]) for n in grads)


def test_bfloat16_and_autocast():
    model = convert(bert(), POLICIES["unstructured"])
    exact = outputs(model, PADDED)
    half = copy.deepcopy(model).bfloat16()
    for got, want in zip(outputs(half, PADDED), exact, strict=True):
        torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model.train(), PADDED).backward()
    for layer in masked_layers(model).values():
        assert layer.weight.grad.any() and not layer.weight.grad[~layer.mask.dense()].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-sdpa", "resnet-basic"])
def test_compiled(name):
    make, inputs, _ = MODELS[name]
    model = convert(make(), POLICIES["unstructured"])
    eager = outputs(model, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_outputs_close(outputs(compiled, inputs), eager)
    loss_of(compiled.train(), inputs).backward()
    for layer in masked_layers(model).values():
        assert layer.weight.grad.any() and not layer.weight.grad[~layer.mask.dense()].any()
