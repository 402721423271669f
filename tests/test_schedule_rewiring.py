"""SET and RigL: which weights are dropped and grown, how many, and what becomes of them."""

from __future__ import annotations

import math

import pytest
import torch
import two_processes
from maskfuse import Mask, protect
from maskfuse.nn import MaskedLinear
from maskfuse.schedule import SET, RigL
from schedules import NUMEL, TOTAL, masked_layers, network, step, under_masks
from torch import nn, optim

BUDGETS = ["uniform", "erk", "global"]
KINDS = [SET, RigL]


def made(kind, model=None, density=0.2, lr=0.01, **options):
    model = model or network()
    optimizer = optim.SGD(model.parameters(), lr, momentum=0.9)
    options = {"end": 100, "interval": 1, "generator": torch.Generator().manual_seed(0), **options}
    return model, optimizer, kind(model, optimizer, density, **options)


def one_layer(kind, weight, active, drop_fraction=0.5, **options):
    """A linear layer with these weights and this mask, whose next step rewires it."""
    layer = MaskedLinear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    layer.set_mask(torch.tensor(active, dtype=torch.bool))
    density = layer.mask.density
    return made(kind, nn.Sequential(layer), density, 0.0, drop_fraction=drop_fraction, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("density", [0.05, 0.1, 0.33, 0.9, 1.0])
def test_counts_never_change(kind, budget, density):
    """Not by drawing, not by rewiring, not past the end; nor those of layers, unless all compete."""
    model, optimizer, schedule = made(kind, density=density, budget=budget, end=6, drop_fraction=0.4)
    first = schedule.active
    for t in range(12):
        assert sum(schedule.active.values()) == round(density * TOTAL)
        assert budget == "global" or schedule.active == first
        masks = [layer.mask for layer in masked_layers(model)]
        changed = step(model, optimizer, schedule)
        assert changed == (masks != [layer.mask for layer in masked_layers(model)])
        if kind is SET or budget != "global" or density > 0.2:  # with few weights RigL may leave a layer with none
            assert changed == (t < 5 and density < 1)
        assert not changed or t < 5
        assert not under_masks(model).any()
    if budget == "uniform" and density == 0.1:
        assert first == {"0": 11, "2": 11, "4": 72, "7": 4}
    if density == 0.9 and budget == "erk":
        assert first["0"] == NUMEL["0"] and first["7"] == NUMEL["7"]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_drawn_from_the_generator_alone(kind):
    def drawn(seed):
        model, _, _ = made(kind, generator=torch.Generator().manual_seed(seed))
        return [layer.mask for layer in masked_layers(model)]

    first = drawn(1)
    before = torch.get_rng_state()
    model = network()
    torch.set_rng_state(before)
    made(kind, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn(1) == first != drawn(2)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind):
    def run():
        torch.manual_seed(1)
        model, optimizer, schedule = made(kind)
        for _ in range(5):
            step(model, optimizer, schedule)
        return [layer.mask for layer in masked_layers(model)]

    assert run() == run()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", ["uniform", "global"])
def test_masks_that_have_the_budgets_numbers_are_kept(kind, budget):
    model = network()
    masks = [Mask.random(layer.weight.shape, 0.25) for layer in masked_layers(model)]
    for layer, mask in zip(masked_layers(model), masks, strict=True):
        layer.set_mask(mask)
    made(kind, model, 0.25, budget=budget)
    assert all(layer.mask is mask for layer, mask in zip(masked_layers(model), masks, strict=True))
    made(kind, model, 0.24, budget=budget)
    assert not any(layer.mask is mask for layer, mask in zip(masked_layers(model), masks, strict=True))


def test_drop_fractions():
    cosine = made(RigL, end=100, drop_fraction=0.3)[2]
    assert [cosine.drop_fraction_at(t) for t in (0, 100, 200)] == [0.3, 0.0, 0.0]
    assert cosine.drop_fraction_at(50) == pytest.approx(0.15)
    assert cosine.drop_fraction_at(25) == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    constant = made(SET, end=100, drop_fraction=0.3)[2]
    assert [constant.drop_fraction_at(t) for t in (0, 50, 200)] == [0.3] * 3
    assert made(RigL, annealing="constant")[2].drop_fraction_at(50) == 0.3
    assert made(SET, annealing="cosine")[2].drop_fraction_at(50) == pytest.approx(0.15)


def rigl_step(model, schedule, x, incoming):
    with schedule.dense_gradient():
        output = model(x)
    output.backward(incoming)
    with torch.no_grad():
        model[0].weight.add_(0)  # a step that leaves the weights as they are
    return schedule.step()


def test_rigl_by_hand():
    """Half of 6 active weights go. The dense gradient is the input's outer product with (1, 1)."""
    weight = [[5.0, -1.0, 0.5, 0.0], [2.0, 0.0, -4.0, 3.0]]
    active = [[1, 1, 1, 0], [1, 0, 1, 1]]
    model, _, schedule = one_layer(RigL, weight, active, annealing="constant")
    assert rigl_step(model, schedule, torch.tensor([[1.0, -7.0, 9.0, 8.0]]), torch.ones(1, 2))
    # Kept: 5, -4, 3. Then the largest of |1 -7 9 8| in both rows: 9 (dropped 0.5, which comes back), 8, and -7, the
    # first of two, which is dropped -1 and comes back too.
    assert model[0].mask.dense().int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert model[0].weight.tolist() == [[5.0, -1.0, 0.5, 0.0], [0.0, 0.0, -4.0, 3.0]]


@pytest.mark.parametrize("budget", ["erk", "global"])
def test_rigl_is_the_papers_algorithm(budget):
    model, optimizer, schedule = made(RigL, density=0.3, budget=budget, end=20)
    layers = dict(zip(NUMEL, masked_layers(model), strict=True))
    for t in range(1, 8):
        optimizer.zero_grad()
        with schedule.dense_gradient():
            loss = (model(torch.randn(8, 2, 8, 8)) - 1).pow(2).mean()
        loss.backward()
        optimizer.step()
        gradients = schedule._recorded.sums
        weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        masks = {name: layer.mask.dense() for name, layer in layers.items()}
        assert schedule.step()
        for names in [list(layers)] if budget == "global" else [[name] for name in layers]:
            w = torch.cat([weights[name].flatten() for name in names])
            m = torch.cat([masks[name].flatten() for name in names])
            g = torch.cat([gradients[name].flatten() for name in names])
            active = sorted(m.nonzero().flatten().tolist(), key=lambda i: (-abs(w[i].item()), i))
            drop = round(0.15 * (1 + math.cos(math.pi * t / 20)) * len(active))
            kept = set(active[: len(active) - drop])
            free = sorted(set(range(len(w))) - kept, key=lambda i: (-abs(g[i].item()), i))
            want = kept | set(free[:drop])
            got = torch.cat([layers[name].mask.dense().flatten() for name in names])
            assert set(got.nonzero().flatten().tolist()) == want
            now = torch.cat([layers[name].weight.detach().flatten() for name in names])
            assert torch.equal(now, torch.where(got & m, w, 0.0))


def test_set_drops_what_is_closest_to_zero_of_each_sign():
    """Half of 5 positive (one of them 0) and 3 negative weights, 4 in all: 2.5 and 1.5, the first one rounds up."""
    weight = [[5.0, 1.0, 2.0, 0.0, 4.0, -9.0, -7.0, -8.0], [0.0] * 8]
    active = [[1] * 8, [0] * 8]
    seen = set()
    for seed in range(20):
        model, _, schedule = one_layer(SET, weight, active, generator=torch.Generator().manual_seed(seed))
        assert schedule.step()
        mask = model[0].mask.dense()
        assert mask.sum() == 8
        assert mask[0, [0, 4, 5, 7]].all()  # 5, 4, -9, -8
        seen.update(mask.flatten().nonzero().flatten().tolist())
        grown = mask.clone()
        grown[0, :] = False
        assert not model[0].weight[grown].any()
        again = mask & torch.tensor(active, dtype=torch.bool)
        assert torch.equal(model[0].weight[again], torch.tensor(weight)[again])  # kept, or drawn again
    assert seen == set(range(16))


def test_set_draws_evenly():
    counts = torch.zeros(2, 50)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        weight = [[1.0] * 20 + [2.0] * 20 + [0.0] * 10, [0.0] * 50]
        active = [[1] * 40 + [0] * 10, [0] * 50]
        model, _, schedule = one_layer(SET, weight, active, generator=generator)
        schedule.step()
        counts += model[0].mask.dense()
    assert (counts[0, :20][counts[0, :20] == 300].numel() == 0) and (counts[0, 20:40] == 300).all()
    free = torch.cat([counts[0, :20], counts[0, 40:], counts[1]])  # 80 places for 20 weights
    assert (free - 75).abs().max() < 5 * math.sqrt(300 * 0.25 * 0.75)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.9, 1.0])
def test_masks_set_by_hand_come_back_to_the_budget(kind, density):
    model, optimizer, schedule = made(kind, density=0.3)
    first = schedule.active
    for layer in masked_layers(model)[1:]:
        layer.set_mask(Mask.random(layer.weight.shape, density))
    assert step(model, optimizer, schedule) and schedule.active == first


@pytest.mark.parametrize("kind", KINDS)
def test_values_kept_under_old_masks_do_not_come_back(kind):
    """Neither retained ones, nor what was written there, nor NaN."""
    model = nn.Sequential(MaskedLinear(6, 8, bias=False))
    model[0].set_mask(Mask.random((8, 6), 0.25), retain=True)
    with torch.no_grad():
        model[0].weight[~model[0].mask.dense()] = float("nan")
    optimizer = protect(optim.SGD(model.parameters(), 0.1), model)
    schedule = kind(model, optimizer, 0.25, end=9, interval=1)
    before = model[0].mask.dense()
    with torch.no_grad():
        model[0].weight.add_(0)
    if kind is RigL:
        with schedule.dense_gradient():
            loss = model(torch.randn(3, 6)).sum()
        loss.backward()
    assert schedule.step()
    mask = model[0].mask.dense()
    assert (mask & ~before).any() and not model[0].weight[~(mask & before)].any()
    assert torch.isfinite(model[0].weight).all()


def processes(rank, kind):
    """One of two processes of `test_processes_change_their_masks_alike`; errors end the test."""
    torch.manual_seed(0)
    model = network()
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        for layer in masked_layers(model):
            fully_shard(layer, mesh=mesh)
        run = fully_shard(model, mesh=mesh)
    else:
        run = nn.parallel.DistributedDataParallel(model)
    optimizer = optim.Adam(model.parameters(), 0.01)
    schedule = RigL(
        model, optimizer, 0.3, end=10, interval=2, generator=torch.Generator().manual_seed(0), budget="global"
    )
    data = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(8, 2, 8, 8, generator=data)
        masks = [layer.mask for layer in masked_layers(model)]
        optimizer.zero_grad()
        with schedule.dense_gradient():
            loss = run(x[rank::2]).pow(2).mean()
        loss.backward()
        optimizer.step()
        changed = schedule.step()
        assert changed == (schedule.steps % 2 == 0)
        assert changed == (masks != [layer.mask for layer in masked_layers(model)])
        assert sum(schedule.active.values()) == round(0.3 * TOTAL)
        bits = torch.cat([layer.mask.bits.flatten() for layer in masked_layers(model)])
        everyone = [torch.empty_like(bits) for _ in range(2)]
        torch.distributed.all_gather(everyone, bits)
        assert torch.equal(*everyone)
        for layer in masked_layers(model):
            weight = layer.weight.full_tensor() if kind == "fsdp" else layer.weight
            moment = optimizer.state[layer.weight]["exp_avg"]
            moment = moment.full_tensor() if kind == "fsdp" else moment
            assert not weight[~layer.mask.dense()].any() and not moment[~layer.mask.dense()].any()
            assert weight.any()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_change_their_masks_alike(kind, tmp_path):
    """Each sees other data: DDP, whose weights are whole everywhere, and FSDP2, whose weights are spread."""
    two_processes.run(processes, tmp_path, kind)
