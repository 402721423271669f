"""CompactSequential against the nn.Sequential of the same modules, and where it computes less."""

from __future__ import annotations

import copy

import pytest
import torch
from copies import pickled
from maskfuse import Mask
from maskfuse.nn import CompactSequential, MaskedConv2d, MaskedLinear
from maskfuse.nn import _chains as module
from torch import nn
from torch.func import functional_call, grad

IN, A, B, OUT = 5, 12, 10, 7


def channels(width, share=0.5):
    return torch.randperm(width)[: max(1, int(width * share))].sort().values


def conv(inputs, outputs, inp=None, out=None, **options):
    layer = MaskedConv2d(inputs, outputs, 3, padding=1, **options)
    layer.set_mask(Mask.channels(layer.weight.shape, out=out, inp=inp))
    return layer


def linear(inputs, outputs, inp=None, out=None, **options):
    return MaskedLinear(inputs, outputs, mask=Mask.channels((outputs, inputs), out=out, inp=inp), **options)


def norm(kind, width):
    layer = kind(width)
    with torch.no_grad():
        for t in (layer.weight, layer.bias, layer.running_mean):
            t.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def models():
    """By name, the modules, and how many chains there are when the model is in training."""
    live = channels(A)
    some = channels(B)
    unstructured = conv(A, B, inp=live)
    unstructured.set_mask(unstructured.mask & Mask.random((B, A, 3, 3), 0.5))
    retained = conv(A, B, padding_mode="reflect")
    retained.set_mask(Mask.channels(retained.weight.shape, inp=live), retain=True)
    bn1, bn2 = nn.BatchNorm1d, nn.BatchNorm2d
    return {
        "conv relu conv": ([conv(IN, A, out=live), nn.ReLU(), conv(A, B, inp=live)], 1),
        "conv norm relu conv": ([conv(IN, A, out=live), norm(bn2, A), nn.ReLU(True), conv(A, B, inp=live)], 1),
        "no bias": ([conv(IN, A, out=live, bias=False), norm(bn2, A), nn.ReLU(), conv(A, B, inp=live)], 1),
        "three": (
            [conv(IN, A, out=live), norm(bn2, A), nn.GELU(), conv(A, B, live, some), norm(bn2, B), conv(B, OUT, some)],
            1,
        ),
        "pooled": ([conv(IN, A, out=live), nn.MaxPool2d(2), nn.SiLU(), conv(A, B, inp=live), nn.AvgPool2d(2)], 1),
        "the second reads less than is alive": ([conv(IN, A), nn.Tanh(), conv(A, B, inp=live)], 1),
        "and a norm counts it": ([conv(IN, A), norm(bn2, A), nn.Tanh(), conv(A, B, inp=live)], 0),
        "the second reads what is dead": ([conv(IN, A, out=live), nn.Sigmoid(), conv(A, B, inp=channels(A))], 1),
        "and behind a norm": ([conv(IN, A, out=live[:3]), norm(bn2, A), conv(A, B, inp=channels(A))], 1),
        "a norm further behind": ([conv(IN, A, out=live), nn.ReLU(), norm(bn2, A), conv(A, B, inp=live)], 0),
        "unstructured": ([conv(IN, A), nn.ReLU(), unstructured], 1),
        "retained": ([conv(IN, A), nn.ReLU(), retained], 1),
        "everything is read": ([conv(IN, A, out=live), nn.ReLU(), conv(A, B)], 0),
        "nothing is read": ([conv(IN, A, out=live), conv(A, B, inp=live[:0])], 0),
        "group norm": ([conv(IN, A, out=live), nn.GroupNorm(2, A), conv(A, B, inp=live)], 0),
        "plain layers around": ([nn.Conv2d(IN, IN, 1), conv(IN, A), conv(A, B, inp=live), nn.Conv2d(B, 3, 1)], 1),
        "stem of linear": ([nn.Flatten(), linear(IN * 36, A, out=live), norm(bn1, A), linear(A, B, inp=live)], 1),
        "linear on pixels": ([linear(6, A, out=live), nn.ReLU(), linear(A, B, inp=live), nn.ReLU()], 1),
        "conv then linear": ([conv(IN, A, out=live), nn.ReLU(), linear(6, B, inp=torch.arange(3))], 0),
        "nothing to fuse": ([nn.ReLU()], 0),
        "empty": ([], 0),
    }


NAMES = list(models())


def chains(model):
    return [part for part in model._plan() if isinstance(part, list)]


def trained(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (y.sin() * torch.linspace(0.5, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return y.detach(), x.grad, gradients, {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", NAMES)
def test_like_sequential(name, training, memory_format):
    modules, expected = models()[name]
    plain = nn.Sequential(*modules).double().train(training)
    compact = CompactSequential(*copy.deepcopy(modules)).double().train(training)
    for _ in range(2):
        x = torch.randn(4, IN, 6, 6, dtype=torch.float64).contiguous(memory_format=memory_format)
        for model in (plain, compact):
            model.zero_grad()
        for got, want in zip(trained(compact, x), trained(plain, x), strict=True):
            torch.testing.assert_close(got, want)
    found = len(chains(compact))
    assert found == expected if training else found >= expected
    if name in ("and a norm counts it", "a norm further behind") and not training:
        assert found == 1


def test_state_is_a_sequentials():
    modules, _ = models()["three"]
    compact, plain = CompactSequential(*modules), nn.Sequential(*copy.deepcopy(modules))
    compact(torch.randn(2, IN, 6, 6))
    assert list(compact.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(compact.state_dict())
    x = torch.randn(2, IN, 6, 6)
    for twin in (copy.deepcopy(compact), pickled(compact), plain):
        torch.testing.assert_close(twin.eval()(x), compact.eval()(x), atol=1e-5, rtol=1e-4)
    assert compact[0] is modules[0] and len(compact) == len(modules)
    assert torch.equal(compact[:2].eval()(x), nn.Sequential(*modules[:2]).eval()(x))


def test_what_is_not_read_is_not_computed(monkeypatch):
    seen = []
    product = module.ChainedLayer.product

    def watched(self, x):
        y = product(self, x)
        seen.append((x.shape[1], y.shape[1]))
        return y

    monkeypatch.setattr(module.ChainedLayer, "product", watched)
    modules, _ = models()["three"]
    CompactSequential(*modules)(torch.randn(2, IN, 6, 6))
    assert seen == [(IN, A // 2), (A // 2, B // 2), (B // 2, OUT)]


def test_changes_are_noticed():
    modules, _ = models()["conv norm relu conv"]
    compact, plain = CompactSequential(*modules), nn.Sequential(*modules)
    x = torch.randn(2, IN, 6, 6)

    def check(count):
        compact.eval()
        assert len(chains(compact)) == count
        torch.testing.assert_close(compact(x), plain(x), atol=1e-5, rtol=1e-4)

    check(1)
    with torch.no_grad():
        modules[0].weight.data.mul_(2)  # nothing is copied, so nothing is stale
    check(1)
    modules[3].set_mask(Mask.channels((B, A, 3, 3), inp=torch.tensor([1])), retain=True)
    check(1)
    modules[3].set_mask(Mask.full((B, A, 3, 3)))
    check(0)
    modules[3].set_mask(Mask.channels((B, A, 3, 3), inp=torch.tensor([0, 3])))
    check(1)
    handle = modules[1].register_forward_hook(lambda *args: None)
    check(0)
    handle.remove()
    check(1)
    compact[2] = nn.Conv2d(A, A, 1)
    plain = compact
    check(0)


def test_hooks_run():
    live, seen = channels(A), []
    compact = CompactSequential(conv(IN, A, out=live), nn.ReLU(), conv(A, B, inp=live))
    compact[0].register_forward_hook(lambda layer, args, output: seen.append(output.shape))
    compact(torch.randn(2, IN, 6, 6))
    assert seen == [(2, A, 6, 6)]


def test_dropout():
    """The same distribution: kept values are scaled, and in eval mode it is the identity."""
    live = channels(A)
    compact = CompactSequential(conv(IN, A, out=live), nn.Dropout(0.5), conv(A, B, inp=live))
    x = torch.randn(2, IN, 6, 6)
    torch.manual_seed(3)
    first = compact(x)
    torch.manual_seed(3)
    assert len(chains(compact)) == 1 and torch.equal(compact(x), first) and not torch.equal(compact(x), first)
    compact.eval()
    torch.testing.assert_close(compact(x), nn.Sequential(*compact)(x), atol=1e-5, rtol=1e-4)


def test_odd_inputs():
    modules, _ = models()["conv norm relu conv"]
    compact, plain = CompactSequential(*modules).eval(), nn.Sequential(*modules).eval()
    assert compact(torch.zeros(0, IN, 6, 6)).shape == (0, B, 6, 6)
    assert compact.to("meta")(torch.zeros(2, IN, 6, 6, device="meta")).shape == (2, B, 6, 6)
    modules, _ = models()["conv relu conv"]
    compact, plain = CompactSequential(*modules).eval(), nn.Sequential(*modules).eval()
    x = torch.randn(IN, 6, 6)
    torch.testing.assert_close(compact(x), plain(x), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="input must have shape"):
        compact(torch.randn(2, IN + 1, 6, 6))
    live = channels(A)
    rows = [linear(6, A, out=live), norm(nn.BatchNorm1d, 4), nn.ReLU(), linear(A, B, inp=live)]
    x = torch.randn(2, 4, 6)  # the norm counts the middle dimension
    torch.testing.assert_close(CompactSequential(*rows)(x), nn.Sequential(*copy.deepcopy(rows))(x))


def test_inference_mode_then_training():
    modules, _ = models()["conv norm relu conv"]
    compact = CompactSequential(*modules)
    with torch.inference_mode():
        compact.eval()(torch.randn(2, IN, 6, 6))
    compact(torch.randn(2, IN, 6, 6)).sum().backward()
    assert compact[0].weight.grad is not None


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_momentum(momentum):
    modules, _ = models()["conv norm relu conv"]
    modules[1].momentum = momentum
    compact, plain = CompactSequential(*modules), nn.Sequential(*copy.deepcopy(modules))
    for _ in range(3):
        x = torch.randn(4, IN, 6, 6)
        compact(x), plain(x)
    for got, want in zip(compact.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_functional_call_autocast_and_compile():
    modules, _ = models()["conv relu conv"]
    compact, plain = CompactSequential(*modules), nn.Sequential(*modules)
    x, parameters = torch.randn(2, IN, 6, 6), dict(compact.named_parameters())
    got, want = (grad(lambda p, m=m: functional_call(m, p, (x,)).pow(2).sum())(parameters) for m in (compact, plain))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        y = compact(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, plain(x), atol=0.05, rtol=0.02)
    torch._dynamo.reset()
    traced = torch.compile(compact, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(x), plain(x), atol=1e-5, rtol=1e-4)
