"""FSDP2 (`fully_shard`) in two processes against one: masks are cut with their shards, and what is frozen stays so."""

from __future__ import annotations

import copy

import pytest
import torch
import two_processes
from maskfuse import Mask, protect
from maskfuse._sharded import local, local_part
from maskfuse.distributed import broadcast_masks
from maskfuse.nn import GatedLinear, MaskedConv2d, MaskedLinear, freeze, frozen_mask, keep_frozen
from maskfuse.schedule import CubicSchedule
from optimizers import same_bits
from torch import nn

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")


def network(masked=True):
    """Parts of weights differ in size: 5 or 9 rows in two processes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        MaskedConv2d(2, 5, 3),
        nn.Flatten(),
        MaskedLinear(80, 9),
        nn.Tanh(),
        nn.Linear(9, 7),
        GatedLinear(7, 6),
        MaskedLinear(6, 3),
    )
    if masked:
        model[0].set_mask(Mask.random((5, 2, 3, 3), 0.4))
        model[2].set_mask(Mask.random((9, 80), 0.3), retain=True)
        freeze(model[4].weight, Mask.random((7, 9), 0.5))
    return model


def shard(model):
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (two_processes.PROCESSES,))
    with keep_frozen(model):
        for layer in (model[0], model[2], model[4], model[5]):
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)


def full(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def training_equals_one_process(rank):
    plain = network()
    mask, retained, frozen = plain[0].mask.dense(), plain[2].mask.dense(), frozen_mask(plain[4].weight).dense()
    spread = shard(copy.deepcopy(plain))
    assert frozen_mask(spread[4].weight) == Mask.from_dense(frozen)
    before = [t.detach().clone() for t in (plain[2].weight, plain[4].weight)]
    ends = []
    for model in (plain, spread):
        part = slice(None) if model is plain else slice(rank, None, 2)
        optimizer = protect(torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1), model)
        schedule = CubicSchedule(model, optimizer, 0.5, end=4, interval=2, layers=["6"])
        norms = []
        for step in range(5):
            x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = model(x[part]).pow(2).mean() + 1e-3 * full(model[5].l1_penalty())
            loss.backward()
            # Before any optimizer has looked at them; so clipping sees active entries alone.
            assert not full(model[4].weight.grad)[~frozen].any() and full(model[4].weight.grad)[frozen].all()
            assert not full(model[0].weight.grad)[~mask].any() and not full(model[2].weight.grad)[~retained].any()
            norms.append(full(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
            optimizer.step()
            schedule.step()
        state = [full(optimizer.state[model[i].weight]["exp_avg"]) for i in (0, 6)]
        ends.append([*norms, *(full(p.detach()) for p in model.parameters()), *state])
        assert model[6].mask.active == 9 and not full(model[6].weight)[~model[6].mask.dense()].any()
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(two, one)
    assert plain[6].mask == spread[6].mask
    assert not full(spread[0].weight)[~mask].any()
    for index, active, old in ((2, retained, before[0]), (4, frozen, before[1])):
        now = full(spread[index].weight.detach())
        assert same_bits(now[~active], old[~active]) and not (now == old)[active].any()
    for layer in spread[0], spread[2], spread[6]:
        here = local_part(layer.mask.dense(), layer.weight)
        assert here.shape == local(layer.weight).shape and here.shape[0] < layer.mask.shape[0]
        if not layer._retain:
            assert not local(layer.weight)[~here].any()
    return plain, spread


def state_goes_everywhere(rank, plain, spread, path):
    """To one process, from one process, and through a checkpoint of shards into a model with other masks."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    def same(other):
        for one, two in zip(spread.parameters(), other.parameters(), strict=True):
            assert same_bits(full(one.detach()), full(two.detach()))
        assert all(other[i].mask == spread[i].mask for i in (0, 2, 6)) and other[2]._retain

    whole = get_model_state_dict(spread, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    assert bool(whole) == (rank == 0)
    if rank == 0:
        alone = network(masked=False)
        alone.load_state_dict(whole)
        same_shape = {name: t.shape for name, t in plain.state_dict().items()}
        assert same_shape == {name: t.shape for name, t in whole.items()}
        assert alone[2]._retain and alone[0].mask == plain[0].mask
        x = torch.randn(4, 2, 6, 6)
        torch.testing.assert_close(alone(x), plain(x))
    other = shard(network(masked=False))
    set_model_state_dict(other, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    broadcast_masks(other)  # torch has sent parameters and buffers
    same(other)
    checkpoint.save({"model": get_model_state_dict(spread)}, checkpoint_id=path)
    other = network(masked=False)
    other[6].set_mask(Mask.full((3, 6), False))
    other = shard(other)
    state = {"model": get_model_state_dict(other)}
    checkpoint.load(state, checkpoint_id=path)
    set_model_state_dict(other, state["model"])
    same(other)


def both(rank, path):
    plain, spread = training_equals_one_process(rank)
    state_goes_everywhere(rank, plain, spread, path)


@pytest.mark.slow
def test_two_processes(tmp_path):
    two_processes.run(both, tmp_path, str(tmp_path / "checkpoint"))
