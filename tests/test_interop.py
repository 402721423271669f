"""Masked models beside what torch has for models: saved programs, TorchScript, copies and files, weight norm,
quantization. ONNX and compiled packages have files of their own."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from maskfuse import Mask, convert, fold, use_backend
from maskfuse.nn import ChannelGate, GatedConv2d, GatedLinear, MaskedConv2d, MaskedLinear
from test_fold import Encoder, resnet
from torch import nn
from torch.nn.utils import parametrizations

BATCH = torch.export.Dim("batch", min=2, max=64)


def masked(rows=96, columns=80, density=0.2):
    return MaskedLinear(columns, rows, mask=Mask.random((rows, columns), density))


def masked_conv(inp=8, out=16):
    return MaskedConv2d(inp, out, 3, padding=1, mask=Mask.random((out, inp, 3, 3), 0.3))


# Masks of 4096 weights and more have a plan, others have none.
LAYERS = {
    "masked linear": (masked, (4, 80)),
    "small": (lambda: masked(5), (4, 80)),
    "packed": (lambda: masked().eval().pack(), (4, 80)),
    "masked conv": (lambda: masked_conv(32), (2, 32, 6, 7)),
    "small conv": (masked_conv, (2, 8, 6, 7)),
    "compact linear": (lambda: masked().to_compact(), (4, 80)),
    "small compact": (lambda: masked(5).to_compact(), (4, 80)),
    "compact conv": (lambda: masked_conv().to_compact(), (2, 8, 6, 7)),
    "gated linear": (lambda: GatedLinear(80, 5), (4, 80)),
    "gated conv": (lambda: GatedConv2d(8, 16, 3), (2, 8, 6, 7)),
    "fixed gate": (lambda: ChannelGate(torch.arange(8) % 2 == 0, compact=True), (2, 8, 6, 7)),
    "top-k gate": (lambda: ChannelGate(k=3), (2, 8, 6, 7)),
}
MODELS = {
    "encoder": (lambda: convert(Encoder(), 0.3), (4, 7, 6)),
    "resnet": (lambda: convert(resnet(), 0.3), (4, 3, 12, 12)),
}


def made(name):
    make, shape = (LAYERS | MODELS)[name]
    return make().eval(), torch.randn(shape)


def batches(x):
    """The input, and as a larger batch."""
    return x, torch.cat([x, -x, 2 * x])


def through_a_file(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def called_ops(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("name", LAYERS | MODELS)
@torch.no_grad()
def test_exported_programs_through_a_file(name):
    model, x = made(name)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},))
    loaded = through_a_file(program)
    for batch in batches(x):
        torch.testing.assert_close(loaded(batch), model(batch))


@pytest.mark.parametrize("name", LAYERS | MODELS)
@torch.no_grad()
def test_programs_of_the_reference_are_torchs_own(name):
    """They load and run where there is no maskfuse."""
    model, x = made(name)
    with use_backend("reference"):
        program = torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},))
    assert not [op for op in called_ops(program) if "maskfuse" in op]
    loaded = through_a_file(program)
    for batch in batches(x):
        torch.testing.assert_close(loaded(batch), model(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_plan_of_empty_tensors_is_none(kind):
    """What exported programs hold in the place of an empty list, which AOTInductor cannot pass on."""
    ops, none = torch.ops.maskfuse, [torch.empty(0, dtype=torch.int32)] * 2
    if kind == "linear":
        layer, x = masked(5), torch.randn(4, 80)
        rest, size, weight_size, grad = [], [], [], torch.randn(4, 5)
    else:
        layer, x = masked_conv(), torch.randn(2, 8, 6, 7)
        rest, size, weight_size, grad = [[1, 1], [1, 1], [1, 1], 1], [[6, 7]], [[3, 3]], torch.randn(2, 16, 6, 7)
    name, bits = f"masked_{'linear' if kind == 'linear' else 'conv2d'}", layer.mask.bits
    with torch.no_grad():
        for op, operands, tail in (
            (name, (x, layer.weight), [layer.bias, *rest]),
            (f"{name}_input_grad", (grad, layer.weight), [*size, *rest]),
            (f"{name}_weight_grad", (grad, x), [*weight_size, *rest]),
        ):
            call = getattr(ops, op)
            assert torch.equal(call(*operands, bits, none, *tail), call(*operands, bits, [], *tail))


@pytest.mark.parametrize("name", ["small", "small conv", "small compact", "compact conv"])
def test_exported_calls_never_have_an_empty_plan(name):
    model, x = made(name)
    program = torch.export.export(model, (x,))
    (call,) = (node for node in program.graph.nodes if "maskfuse" in str(node.target))
    (plan,) = (
        argument for argument in call.args if isinstance(argument, (list, tuple)) and not isinstance(argument[0], int)
    )
    assert len(plan) == 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("recorded", [False, True], ids=["", "with gradients"])
@pytest.mark.parametrize("name", LAYERS | MODELS)
def test_torchscript_traces(name, recorded):
    """A trace keeps the ops: it is saved, loaded, run at another batch, and differentiated."""
    model, x = made(name)
    with torch.set_grad_enabled(recorded):
        # torch's own check compares graphs, which its attention takes turns in.
        traced = torch.jit.trace(model, (x,), check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for batch in batches(x)[: 1 if name == "fixed gate" else 2]:
            torch.testing.assert_close(loaded(batch), model(batch))
        if name == "fixed gate":  # sizes of a gather are constants of its trace
            with pytest.raises(RuntimeError, match="input must have 2 samples of 8 channels, got"):
                loaded(batches(x)[1])
    if recorded:
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        for module, leaf in zip((loaded, model), inputs, strict=True):
            module(leaf).pow(2).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
@pytest.mark.parametrize("name", MODELS)
def test_copies_of_converted_models(name, copied):
    model, x = made(name)
    other = copied(model)
    with torch.no_grad():
        want = model(x)
        assert torch.equal(other(x), want)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(other(x), want)  # it has weights of its own
    assert type(fold(other)) is type(model)
    again = [module for module in model.modules() if isinstance(module, (MaskedLinear, MaskedConv2d))]
    assert again and all(0.2 < layer.mask.density < 0.4 for layer in again)


def test_weight_norm_over_a_mask():
    """The norm is that of all values, the mask is applied behind it, and masked values get no gradient."""
    mask = Mask.random((5, 8), 0.4)
    layer = parametrizations.weight_norm(MaskedLinear(8, 5, mask=mask))
    x = torch.randn(3, 8)
    weight = layer.weight.detach()
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight * mask.dense(), layer.bias))
    layer(x).pow(2).sum().backward()
    direction = layer.parametrizations.weight.original1
    assert not direction.grad[~mask.dense()].any() and direction.grad[mask.dense()].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_dynamic_quantization():
    """Of a folded model, whose masked weights stay zero; masked layers are of another type, and left as they are."""
    model = nn.Sequential(masked(48, 64), nn.ReLU(), masked(8, 48)).eval()
    masks = [model[0].mask.dense(), model[2].mask.dense()]
    x = torch.randn(4, 64)
    left = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert type(left[0]) is MaskedLinear and torch.equal(left(x), model(x))
    want = model(x).detach()
    quantized = torch.ao.quantization.quantize_dynamic(fold(model), {nn.Linear})
    for layer, mask in zip((quantized[0], quantized[2]), masks, strict=True):
        values = layer.weight().int_repr()
        assert not values[~mask].any() and values[mask].any()
    # Eight bits of the largest weight and activation: a hundredth, twice.
    assert (quantized(x) - want).norm() < 0.05 * want.norm()


def test_a_name_of_the_exporter_may_be_absent(monkeypatch):
    """As while another thread imports torch.onnx for the first time: what is compiled then has maskfuse's ops."""
    monkeypatch.delattr(torch.onnx, "is_in_onnx_export")
    layer, x = masked().eval(), torch.randn(3, 80)
    program = torch.export.export(layer, (x,))
    assert "maskfuse.masked_linear" in program.graph_module.code
