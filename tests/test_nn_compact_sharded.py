"""Compact layers under FSDP2 and DistributedDataParallel, in two processes."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
from maskfuse import Mask
from maskfuse.nn import CompactLinear
from torch import nn, optim

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        CompactLinear(19, 7, mask=Mask.random((7, 19), 0.4)),
        nn.ReLU(),
        CompactLinear(7, 3, mask=Mask.random((3, 7), 0.5)),
    )


def trained(model, optimizer, x, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()


def one_process(rank, path, kind):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    x = torch.randn(8, 19, generator=torch.Generator().manual_seed(1))
    {"FSDP2": fully_sharded, "DDP": data_parallel}[kind](x, rank)
    torch.distributed.destroy_process_group()


def fully_sharded(x, rank):
    from torch.distributed.fsdp import fully_shard

    plain = network()
    model = copy.deepcopy(plain)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
    optimizers = [optim.Adam(m.parameters(), 0.05) for m in (plain, model)]
    trained(plain, optimizers[0], x)
    trained(model, optimizers[1], x)
    assert model[0].values.to_local().numel() in (26, 27)
    torch.testing.assert_close(model[0].values.full_tensor(), plain[0].values)
    torch.testing.assert_close(model[0].weight, plain[0].weight)
    torch.testing.assert_close(maskfuse.dense_state_dict(model)["2.weight"], plain[2].weight.detach())
    before = model[0].mask
    with pytest.raises(ValueError, match="must not be sharded when its mask is set"):
        model[0].set_mask(Mask.full((7, 19)), optimizers[1])
    assert model[0].mask is before
    with pytest.raises(ValueError, match=r"'0\.values' .* sharded: gather it first"):
        maskfuse.save_compressed(model, "unwritten")
    state = model.state_dict()
    with torch.no_grad():
        model[0].values.zero_()
    model.load_state_dict(state)
    trained(model, optimizers[1], x, 1)


def data_parallel(x, rank):
    """A mask is set between steps, and the reducer, whose buckets have the values' sizes, is made anew."""
    plain, model = network(), network()
    optimizers = [optim.Adam(m.parameters(), 0.05) for m in (plain, model)]
    for mask in (None, Mask.random((7, 19), 0.2, torch.Generator().manual_seed(2))):
        for m, optimizer in zip((plain, model), optimizers, strict=True):
            if mask is not None:
                m[0].set_mask(mask, optimizer)
        run = nn.parallel.DistributedDataParallel(model)
        trained(plain, optimizers[0], x)
        trained(run, optimizers[1], x[rank::2])
        torch.testing.assert_close(model[0].values, plain[0].values)


@pytest.mark.parametrize("kind", ["FSDP2", "DDP"])
def test_in_two_processes(tmp_path, kind):
    torch.multiprocessing.spawn(one_process, (str(tmp_path / "rendezvous"), kind), nprocs=2)
