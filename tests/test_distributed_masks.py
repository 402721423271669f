"""Two processes with other data and other random numbers: schedules and broadcast_masks give them the same masks."""

from __future__ import annotations

import pytest
import torch
import two_processes
from maskfuse import Mask, protect
from maskfuse.distributed import SparseAllReduce, broadcast_masks, check_same_masks, register_sparse_allreduce
from maskfuse.nn import ChannelGate, CompactLinear, GatedLinear, MaskedLinear, freeze, frozen_mask, unfreeze
from maskfuse.schedule import SET, CubicSchedule, RigL
from optimizers import same_bits
from schedules import TOTAL, masked_layers, network, recording, under_masks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")


def everyones(t):
    parts = [torch.empty_like(t) for _ in range(two_processes.PROCESSES)]
    torch.distributed.all_gather(parts, t)
    return parts


def same_everywhere(model):
    check_same_masks(model)
    bits = torch.cat([layer.mask.bits.flatten() for layer in masked_layers(model)])
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.equal(*everyones(bits)) and same_bits(*everyones(weights))


def schedules_agree(rank, kind):
    """Nothing is seeded alike but DDP's first weights; the masks a process has before are its own too."""
    torch.manual_seed(rank)
    model = network()
    start = None if kind is CubicSchedule else Mask.random((20, 36), 0.3)
    if start is not None:
        model[4].set_mask(start)
        assert not torch.equal(*everyones(start.bits))
    ddp = DistributedDataParallel(model)
    optimizer = protect(torch.optim.Adam(ddp.parameters(), 0.01), ddp)
    if start is not None and rank == 1:  # the first process's masks fit the budget, and are kept
        model[4].set_mask(Mask.full((20, 36)))
    options = {} if kind is CubicSchedule else {"layers": ["4", "0"], "budget": "global"}
    with torch.no_grad():
        for p in model.parameters():  # as DDP would, of a model that has been masked since
            torch.distributed.broadcast(p.data, 0)
    density = 0.3 if kind is CubicSchedule else (108 + start.active) / (108 + 720)
    schedule = kind(model, optimizer, density, end=10, interval=2, **options)
    if start is not None:
        assert model[4].mask == Mask(everyones(start.bits)[0], start.shape)
    state = register_sparse_allreduce(ddp)
    changes = 0
    for _ in range(6):
        assert same_everywhere(model)
        optimizer.zero_grad()
        with recording(schedule):
            loss = (ddp(torch.randn(8, 2, 8, 8)) - 1).pow(2).mean()
        loss.backward()
        optimizer.step()
        changes += schedule.step()
    assert changes >= 2 and same_everywhere(model) and not under_masks(model).any()
    assert (schedule.density < 0.9) and state.bytes_sent < state.bytes_dense


def alone_in_a_group(rank):
    """Processes that train models of their own say so by groups of their own, and draw their own masks."""
    groups = [torch.distributed.new_group([r]) for r in range(2)]
    torch.manual_seed(rank)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if rank == 0:  # the other one does not take part at all
        SET(model, optimizer, 0.3, end=10, process_group=groups[rank])
        assert sum(layer.mask.active for layer in masked_layers(model)) == round(0.3 * TOTAL)


def masks_of_one(rank):
    """Everything that is neither parameter nor buffer, from the process that has it to the other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        MaskedLinear(6, 6),
        MaskedLinear(6, 6),
        nn.Linear(6, 6),
        nn.Linear(6, 6),
        GatedLinear(6, 6),
        nn.Unflatten(1, (6, 1)),
    )
    model.append(ChannelGate(torch.ones(6, dtype=torch.bool)))
    masks = [Mask.random((6, 6), 0.5) for _ in range(3)]
    if rank == 1:
        model[0].set_mask(masks[0])
        model[1].set_mask(masks[1], retain=True)
        freeze(model[2].weight, masks[2])
        model[4].temperature = 0.5
        model[6].set_mask(torch.arange(6) < 4)
    else:
        freeze(model[3].weight, masks[2])
    with pytest.raises(RuntimeError, match="mask of layer '0' differs between them, and 5 more"):
        check_same_masks(model)
    kept = model[1].weight.detach().clone()
    assert broadcast_masks(model, group_src=1) == (rank == 0)
    check_same_masks(model)
    assert model[0].mask == masks[0] and not model[0].weight[~masks[0].dense()].any()
    assert model[1].mask == masks[1] and model[1]._retain and same_bits(model[1].weight, kept)
    assert frozen_mask(model[2].weight) == masks[2] and frozen_mask(model[3].weight) is None
    assert model[4].temperature == 0.5 and torch.equal(model[6].mask, torch.arange(6) < 4)
    assert not broadcast_masks(model)  # nothing changes any more
    unfreeze(model[2].weight)
    other = nn.Sequential(*model[: 4 if rank else 3])
    if rank == 1:
        with pytest.raises(ValueError, match=r"the model of process 0 must have the same layers.*parameter '3\.bias'"):
            broadcast_masks(other)
    else:
        assert not broadcast_masks(other)


def compact_layers(rank):
    torch.manual_seed(rank)
    model = nn.Sequential(CompactLinear(6, 6, mask=Mask.random((6, 6), 0.5)))
    own = model[0].mask
    with pytest.raises(RuntimeError, match="mask of compact layer '0' differs"):
        check_same_masks(model)
    with pytest.raises(RuntimeError, match="mask of compact layer '0' differs"):
        SparseAllReduce(model)
    assert broadcast_masks(model) == (rank == 1) == (model[0].mask != own)
    check_same_masks(model)


def all_of_it(rank):
    for kind in (SET, RigL, CubicSchedule):
        schedules_agree(rank, kind)
    masks_of_one(rank)
    compact_layers(rank)
    alone_in_a_group(rank)


@pytest.mark.slow
def test_two_processes(tmp_path):
    two_processes.run(all_of_it, tmp_path)


def test_a_process_alone_agrees_with_itself():
    model = network()
    model[4].set_mask(Mask.random((20, 36), 0.3))
    mask = model[4].mask
    check_same_masks(model)
    assert not broadcast_masks(model) and model[4].mask is mask
