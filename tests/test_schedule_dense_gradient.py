"""RigL's dense gradient: what each weight would get if nothing were masked, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from maskfuse import Mask
from maskfuse.nn import MaskedConv2d, MaskedLinear
from maskfuse.schedule import RigL
from maskfuse.schedule.dense_gradient import DenseGradients
from optimizers import same_bits
from schedules import masked_layers, network
from torch import optim
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": (2, 1), "padding": (1, 2)},
    "dilated": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2},
    "same": {"padding": "same", "kernel_size": (2, 4)},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": (1, 2), "padding_mode": "circular"},
}


def want(layer, input, incoming, channels=None):
    """The gradient of a dense leaf that holds zeros under the mask, by torch's own plain layer."""
    plain = layer.to_dense().requires_grad_(True)
    if channels is not None:
        input = input * (channels[..., None, None] if input.dim() == 4 else channels)
    plain(input.detach()).backward(incoming)
    return plain.weight.grad


def got(layer, input, incoming, **kwargs):
    recorded = DenseGradients()
    with recorded.recording([("layer", layer)]):
        output = layer(input, **kwargs)
    output.backward(incoming)
    return recorded.sums["layer"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,)])
def test_linear(leading, retain, dtype):
    layer = MaskedLinear(6, 4, dtype=dtype)
    layer.set_mask(Mask.random((4, 6), 0.3), retain=retain)
    x, incoming = torch.randn(*leading, 6, dtype=dtype), torch.randn(*leading, 4, dtype=dtype)
    dense = got(layer, x, incoming)
    torch.testing.assert_close(dense, want(layer, x, incoming))
    assert dense[~layer.mask.dense()].any() or leading == (0,)
    assert not layer.weight.grad[~layer.mask.dense()].any()


def test_linear_by_hand():
    layer = MaskedLinear(2, 2, bias=False, mask=torch.tensor([[True, False], [False, False]]))
    x, incoming = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [10.0, 1.0]])
    assert got(layer, x, incoming).tolist() == [[31.0, 42.0], [3.0, 4.0]]
    assert layer.weight.grad.tolist() == [[31.0, 0.0], [0.0, 0.0]]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv2d(options, batch):
    layer = MaskedConv2d(4, 6, **{"kernel_size": 3, **options})
    layer.set_mask(Mask.random(layer.weight.shape, 0.2))
    x = torch.randn(3, 4, 9, 8).to(memory_format=torch.channels_last)
    x = x if batch else x[0]
    incoming = torch.randn_like(layer(x))
    dense = got(layer, x, incoming)
    torch.testing.assert_close(dense, want(layer, x, incoming))
    assert dense[~layer.mask.dense()].any() and not layer.weight.grad[~layer.mask.dense()].any()


@pytest.mark.parametrize("keyword", [False, True])
def test_channels_that_take_no_part(keyword):
    conv, linear = MaskedConv2d(4, 6, 3), MaskedLinear(6, 4)
    for layer, x, channels in (
        (conv, torch.randn(3, 4, 5, 5), torch.rand(3, 4) > 0.5),
        (linear, torch.randn(3, 6), torch.tensor([True, False, True, True, False, True])),
    ):
        layer.set_mask(Mask.random(layer.weight.shape, 0.3))
        incoming = torch.randn_like(layer(x))
        bad = x.masked_fill(~(channels[..., None, None] if x.dim() == 4 else channels), float("nan"))
        recorded = DenseGradients()
        with recorded.recording([("layer", layer)]):
            output = layer(input=bad, channels=channels) if keyword else layer(bad, channels)
        output.backward(incoming)
        torch.testing.assert_close(recorded.sums["layer"], want(layer, x, incoming, channels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_multiplied_in_float32(dtype):
    layer = MaskedLinear(6, 4, dtype=dtype, mask=Mask.random((4, 6), 0.3))
    x, incoming = torch.randn(50, 6).to(dtype), torch.randn(50, 4).to(dtype)
    assert got(layer, x, incoming).dtype == torch.float32
    torch.testing.assert_close(got(layer, x, incoming), incoming.float().T @ x.float())


def test_autocast():
    layer = MaskedLinear(6, 4, mask=Mask.random((4, 6), 0.3))
    x, incoming = torch.randn(50, 6), torch.randn(50, 4).bfloat16()
    recorded = DenseGradients()
    with recorded.recording([("layer", layer)]), torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        output.backward(incoming)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(recorded.sums["layer"], incoming.float().T @ x)


@pytest.fixture
def trained():
    """A model, its optimizer, and a RigL whose every step needs the dense gradient."""
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.01)
    return model, optimizer, RigL(model, optimizer, 0.2, end=100, interval=1)


def test_training_is_bitwise_what_it_is_without(trained):
    model, _, rigl = trained
    twin = copy.deepcopy(model)
    x = torch.randn(4, 2, 8, 8, requires_grad=True)
    with rigl.dense_gradient():
        output = model(x)
    output.pow(2).sum().backward()
    y = x.detach().clone().requires_grad_(True)
    expected = twin(y)
    expected.pow(2).sum().backward()
    assert same_bits(output, expected) and same_bits(x.grad, y.grad)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert same_bits(p.grad, q.grad)
    # And where both are defined, they are the same gradient.
    for name, gradient in rigl._recorded.sums.items():
        layer = model[int(name)]
        torch.testing.assert_close(torch.where(layer.mask.dense(), gradient, 0), layer.weight.grad)


def test_batches_add_up_and_the_context_may_end_before_backward(trained):
    model, _, rigl = trained
    batches = torch.randn(3, 4, 2, 8, 8)
    for x in batches:
        with rigl.dense_gradient():
            loss = model(x).pow(2).sum()
        loss.backward()
    sums = rigl._recorded.sums
    other = DenseGradients()
    with other.recording([(name, model[int(name)]) for name in sums]):
        model(batches.flatten(0, 1)).pow(2).sum().backward()
    assert sums.keys() == {"0", "2", "4", "7"}
    for name, gradient in sums.items():
        torch.testing.assert_close(gradient, other.sums[name])


def test_nothing_is_recorded_where_it_is_not_needed():
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.01)
    rigl = RigL(model, optimizer, 0.2, end=5, interval=2)
    needed = []
    for _ in range(8):
        needed.append(rigl.needs_dense_gradient)
        optimizer.zero_grad()
        with rigl.dense_gradient():
            assert all(bool(layer._forward_hooks) == needed[-1] for layer in masked_layers(model))
            loss = model(torch.randn(2, 2, 8, 8)).sum()
        loss.backward()
        assert (rigl._recorded is not None) == needed[-1]
        optimizer.step()
        assert rigl.step() == needed[-1]
        assert rigl._recorded is None and not any(layer._forward_hooks for layer in masked_layers(model))
    assert needed == [False, True, False, True, False, False, False, False]


def test_hooks_are_gone_after_an_error(trained):
    model, _, rigl = trained
    with pytest.raises(ValueError), rigl.dense_gradient():
        model[4](torch.randn(2, 5))
    assert not any(layer._forward_hooks for layer in masked_layers(model))


def test_evaluation_in_it_is_not_recorded(trained):
    model, _, rigl = trained
    with rigl.dense_gradient(), torch.no_grad():
        model(torch.randn(2, 2, 8, 8))
    assert not rigl._recorded.sums


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_count_once(trained, reentrant):
    model, _, rigl = trained
    x = torch.randn(4, 2, 8, 8, requires_grad=True)
    results = []
    for forward in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        rigl._recorded = None
        with rigl.dense_gradient():
            forward(x).pow(2).sum().backward()
        results.append(rigl._recorded.sums)
    assert results[0].keys() == results[1].keys() and len(results[0]) == 4
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name])


def test_what_follows_in_place_does_not_matter(trained):
    model, _, rigl = trained
    x, layer = torch.randn(4, 36), model[4]
    with rigl.dense_gradient():
        F.relu_(layer(x)).pow(2).sum().backward()
    plain = layer.to_dense()
    F.relu(plain(x)).pow(2).sum().backward()
    torch.testing.assert_close(rigl._recorded.sums["4"], plain.weight.grad)


def test_compiled_models_run_uncompiled(trained):
    """Compiled code has no hooks that came later; in the context the model's own code runs."""
    model, optimizer, rigl = trained
    calls = []

    def backend(graph, inputs):
        return lambda *values: calls.append(None) or graph.forward(*values)

    compiled = torch.compile(model, backend=backend)
    x = torch.randn(4, 2, 8, 8)
    compiled(x)
    assert calls
    calls.clear()
    with rigl.dense_gradient():
        loss = compiled(x).pow(2).sum()
    loss.backward()
    assert not calls and rigl._recorded.sums.keys() == {"0", "2", "4", "7"}
    optimizer.step()
    assert rigl.step()
    compiled(x)
    assert calls


def test_steps_without_it_are_refused(trained):
    model, optimizer, rigl = trained
    message = r"step 1 of RigL changes masks and needs the dense gradient of layer '0'.*with rigl.dense_gradient\(\)"
    masks = [layer.mask for layer in masked_layers(model)]
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=message):
        rigl.step()
    with rigl.dense_gradient():
        loss = model(torch.randn(2, 2, 8, 8)).sum()
    with pytest.raises(RuntimeError, match=message):  # backward did not run
        rigl.step()
    assert rigl.steps == 0
    assert all(layer.mask is mask for layer, mask in zip(masked_layers(model), masks, strict=True))
    loss.backward()
    optimizer.step()
    assert rigl.step() and rigl.steps == 1


def test_a_layer_that_ran_outside_is_refused_and_one_that_did_not_run_has_none(trained):
    model, optimizer, rigl = trained
    x = torch.randn(2, 2, 8, 8)
    with rigl.dense_gradient():
        features = model[:6](x)
    model[6:](features).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="dense gradient of layer '7'"):
        rigl.step()
    optimizer.zero_grad()
    rigl._recorded = None
    layer = model[7]
    with rigl.dense_gradient():
        model[:6](x).sum().backward()
    optimizer.step()
    weight, mask = layer.weight.detach().flatten(), layer.mask.dense().flatten()
    assert rigl.step()
    # Nothing tells masked weights apart, so the first of them grow.
    active = sorted(mask.nonzero().flatten().tolist(), key=lambda i: -abs(weight[i].item()))
    drop = round(rigl.drop_fraction_at(1) * len(active))
    kept = set(active[: len(active) - drop])
    free = [i for i in range(mask.numel()) if i not in kept]
    assert drop > 1 and set(layer.mask.dense().flatten().nonzero().flatten().tolist()) == kept | set(free[:drop])


def test_gradients_that_are_not_finite_postpone_the_change(trained):
    model, optimizer, rigl = trained
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    changes = []
    for t in range(3):
        optimizer.zero_grad()
        with rigl.dense_gradient():
            loss = model(torch.randn(2, 2, 8, 8)).pow(2).mean()
        scaler.scale(loss * (float("inf") if t == 0 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        changes.append(rigl.step())
        if t == 0:
            # The next one is due at 50, but one waits, after resuming too.
            state = rigl.state_dict()
            rigl = RigL(model, optimizer, 0.2, end=100, interval=50)
            assert not rigl.needs_dense_gradient
            rigl.load_state_dict(state)
            assert rigl.needs_dense_gradient
    assert changes == [False, True, False] and not rigl.needs_dense_gradient
