"""ONNX: folded models, and masked ones as they are, give onnxruntime the numbers that they give here."""

from __future__ import annotations

import io

import maskfuse
import pytest
import torch
from maskfuse import Mask, Policy, convert, fold, use_backend
from maskfuse.nn import Bypass, ChannelGate, GatedConv2d, GatedLinear, MaskedConv2d, MaskedLinear
from test_fold import Encoder, resnet
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

BATCH = {0: torch.export.Dim("batch", min=2, max=64)}


def exported(model, *inputs, **options):
    """The model as bytes of ONNX, any batch."""
    file = io.BytesIO()
    torch.onnx.export(
        model, inputs, file, dynamo=True, verbose=False, dynamic_shapes=[BATCH for _ in inputs], **options
    )
    onnx.checker.check_model(onnx.load_from_string(file.getvalue()), full_check=True)
    return file.getvalue()


def run(model, *inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    return [torch.from_numpy(t) for t in session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))]


def kinds(model):
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def assert_same(got, want, layers=1):
    """float32 sums of a few hundred terms in another order, whose errors add up from layer to layer."""
    torch.testing.assert_close(got, want, rtol=2e-6 * layers, atol=2e-6 * layers)


def check(model, *inputs, layers=1, **options):
    """Exports at one batch, runs at another. Returns the exported bytes."""
    model.eval()
    file = exported(model, *inputs, **options)
    with torch.no_grad():
        for batch in (inputs, [torch.cat([t, t.flip(0), t]) for t in inputs]):
            want = model(*batch)
            got = run(file, *batch)
            for one, other in zip(got, want if isinstance(want, tuple) else [want], strict=True):
                assert_same(one, other, layers)
    return file


def mlp():
    return nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 20), nn.GELU(), nn.Linear(20, 5))


MODELS = {"mlp": (mlp, (3, 20)), "resnet": (resnet, (3, 3, 12, 12)), "encoder": (Encoder, (3, 7, 6))}


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "masked"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, folded):
    make, shape = MODELS[name]
    model = convert(make().eval(), 0.3)
    x = torch.randn(shape)
    with torch.no_grad():
        before = model(x)
    if folded:
        fold(model)
    file = check(model, x, layers=8)
    assert_same(run(file, x)[0], before, layers=8)
    # A folded model has its weights alone: no mask is left to apply.
    assert "Where" not in kinds(file) or not folded


def test_transformers_model():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=99, max_position_embeddings=32)).eval()
    fold(convert(bert, Policy(exclude=["*embed*"], density=0.2)))

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, ids):
            return self.bert(input_ids=ids).last_hidden_state

    check(Hidden(), torch.randint(99, (3, 11)), layers=8)


class Calls(nn.Module):
    """A function of maskfuse on a weight and a mask that are buffers."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("weight", torch.randn(16, 6))
        self.register_buffer("mask", torch.rand(16, 6) > 0.5)

    def forward(self, x):
        return self.function(x, self.weight, self.mask)


def masked(density=0.1):
    return MaskedLinear(600, 200, mask=Mask.random((200, 600), density))


def masked_conv(**options):
    return MaskedConv2d(8, 16, 3, mask=Mask.random((16, 8, 3, 3), 0.5), **options)


def retained():
    layer = masked()
    nn.init.normal_(layer.weight)  # values under the mask, which take no part
    layer.set_mask(layer.mask, retain=True)
    with torch.no_grad():
        layer.weight.masked_fill_(~layer.mask.dense(), float("nan"))
    return layer


ROWS, IMAGES = (3, 6), (3, 8, 7, 7)
LAYERS = {
    "masked linear": (masked, (3, 600)),
    "packed": (lambda: masked().eval().pack(), (3, 600)),
    "retained": (retained, (3, 600)),
    "nothing masked": (lambda: masked(1.0), (3, 600)),
    "all masked": (lambda: masked(0.0), (3, 600)),
    "compact linear": (lambda: masked().to_compact(), (3, 600)),
    "masked conv": (lambda: masked_conv(stride=2, padding=1, dilation=2), IMAGES),
    "circular padding": (lambda: masked_conv(padding=1, padding_mode="circular"), IMAGES),
    "compact conv": (lambda: masked_conv().to_compact(), IMAGES),
    "gated linear": (lambda: GatedLinear(6, 16), ROWS),
    "hard-concrete": (lambda: GatedLinear(6, 16, kind="hard_concrete"), ROWS),
    "gated conv": (lambda: GatedConv2d(8, 16, 3), IMAGES),
    "fixed gate": (lambda: ChannelGate(torch.arange(8) % 2 == 0), IMAGES),
    "compact gate": (lambda: ChannelGate(torch.arange(8) % 2 == 0, compact=True), IMAGES),
    "threshold": (lambda: ChannelGate(threshold=0.8), IMAGES),
    "bypass": (lambda: Bypass(nn.Linear(6, 6), p=0.5), ROWS),
    "bool mask": (lambda: Calls(maskfuse.masked_linear), ROWS),
    "integers": (lambda: Calls(lambda x, w, m: maskfuse.masked_linear(x, w, m.int())), ROWS),
    "real-valued": (lambda: Calls(lambda x, w, m: maskfuse.masked_linear(x, w, m * 0.5)), ROWS),
    "channels": (lambda: Calls(lambda x, w, m: maskfuse.masked_linear(x, w, m, channels=x > 0)), ROWS),
    "mask_gradient": (lambda: Calls(lambda x, w, m: maskfuse.mask_gradient(x, x > 0) @ w.T), ROWS),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_functions(name):
    make, shape = LAYERS[name]
    check(make(), torch.randn(shape))


def test_small_weights_are_constants():
    layer = MaskedLinear(6, 16, mask=Mask.random((16, 6), 0.5))
    file = check(layer, torch.randn(ROWS))
    (weight,) = (t for t in onnx.load_from_string(file).graph.initializer if len(t.dims) == 2)
    kept = torch.from_numpy(onnx.numpy_helper.to_array(weight).copy())
    assert kinds(file) == ["Gemm"] and torch.equal(kept, layer.weight)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_older_exporter():
    layer, x = masked().eval(), torch.randn(3, 600)
    file = io.BytesIO()
    torch.onnx.export(layer, (x,), file, dynamo=False)
    assert_same(run(file.getvalue(), x)[0], layer(x).detach())


def test_exported_programs():
    """What was traced for torch keeps the kernels; what was traced as the reference exports like any other."""
    layer, x = masked().eval(), torch.randn(3, 600)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"No ONNX function found.*maskfuse.masked_linear"):
        torch.onnx.export(torch.export.export(layer, (x,)), (), io.BytesIO(), verbose=False)
    with use_backend("reference"):
        program = torch.export.export(layer, (x,))
    file = io.BytesIO()
    torch.onnx.export(program, (), file, verbose=False)
    assert_same(run(file.getvalue(), x)[0], layer(x).detach())


def test_kernels_are_back_afterwards():
    layer, x = masked().eval(), torch.randn(3, 600)
    exported(layer, x)
    assert "maskfuse.masked_linear" in torch.export.export(layer, (x,)).graph_module.code
