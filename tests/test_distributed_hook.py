"""The hook that all-reduces active gradients, in two processes that see other data."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
import two_processes
from maskfuse import Mask, protect
from maskfuse.distributed import (
    SparseAllReduce,
    check_same_masks,
    register_sparse_allreduce,
    sparse_allreduce_hook,
)
from maskfuse.nn import GatedLinear, MaskedConv2d, MaskedLinear, freeze, frozen_mask
from optimizers import same_bits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def network(dtype=torch.float32, seed=0):
    """Masked, frozen and plain parameters, frozen ones with other strides, and a layer whose mask hides nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        MaskedConv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        MaskedLinear(8 * 36, 40),
        MaskedLinear(40, 30, bias=False),
        MaskedLinear(30, 12),
        nn.Linear(12, 10),
        nn.Unflatten(1, (10, 1, 1)),
        nn.Conv2d(10, 4, 3, padding=1),
    ).to(dtype)
    model[6].weight = nn.Parameter(torch.randn(10, 24, dtype=dtype)[:, ::2])  # with gaps
    model[8].to(memory_format=torch.channels_last)
    freeze(model[8].weight, Mask.random((4, 10, 3, 3), 0.3, seeded(seed)))
    assert not model[8].weight.is_contiguous()
    for index, density in ((0, 0.2), (3, 0.1), (4, 0.1)):
        model[index].set_mask(Mask.random(model[index].weight.shape, density, seeded(seed)))
    freeze(model[6].weight, Mask.random((10, 12), 0.5, seeded(seed)))
    return model


def active_entries(model):
    """Counted here by hand: of all parameters, as (active, all)."""
    total = sum(p.numel() for p in model.parameters())
    masks = [model[i].mask.dense() for i in (0, 3, 4, 5)] + [frozen_mask(model[i].weight).dense() for i in (6, 8)]
    return total - sum(int((~m).sum()) for m in masks), total


class Spy:
    """What all_reduce is really given, by torch's name for it."""

    def __init__(self):
        self.bytes, self.real = 0, torch.distributed.all_reduce

    def __call__(self, tensor, *args, **kwargs):
        self.bytes += tensor.untyped_storage().nbytes()
        return self.real(tensor, *args, **kwargs)


def batch(rank, step, dtype=torch.float32):
    return torch.randn(8, 3, 8, 8, generator=seeded(step)).to(dtype)[rank::2]


def gradients(model):
    return [p.grad for p in model.parameters()]


def same_as_the_plain_one(rank, dtype, options):
    """Three steps, the second of which changes a mask: gradients, traffic, and what DDP does with its buckets."""
    plain, sparse = (DistributedDataParallel(network(dtype), bucket_cap_mb=0.01, **options) for _ in range(2))
    state = register_sparse_allreduce(sparse)
    spy, expected, share, layouts = Spy(), 0, 0.0, set()
    for step in range(4):
        if step == 2:
            for ddp in (plain, sparse):
                ddp.module[3].set_mask(Mask.random((40, 288), 0.05, seeded(9)))
                freeze(ddp.module[6].weight, Mask.random((10, 12), 0.25, seeded(9)))
        x = batch(rank, step, dtype)
        for ddp in (plain, sparse):
            ddp.zero_grad()
            with mock.patch("torch.distributed.all_reduce", spy):
                if step == 3:  # a layer without weights; gradients add up here, and are sent together
                    ddp.module[4].set_mask(Mask.full((30, 40), False))
                    with ddp.no_sync():
                        ddp(x).pow(2).sum().backward()
                ddp(x).pow(2).sum().backward()
        for p, q in zip(gradients(plain), gradients(sparse), strict=True):
            assert same_bits(p, q) and p.stride() == q.stride()
        for layer in (sparse.module[0], sparse.module[3], sparse.module[4]):
            under = layer.weight.grad[~layer.mask.dense()]
            assert not under.any() and not under.signbit().any()
        assert step == 3 or sparse.module[3].weight.grad.any()
        active, total = active_entries(sparse.module)
        expected += active * x.element_size() + 16  # the comparison of masks
        assert state.bytes_sent == spy.bytes == expected
        assert state.bytes_dense == (step + 1) * total * x.element_size()
        share += active / total
        assert active < 0.2 * total and spy.bytes <= 1.05 * share * total * x.element_size()
        layouts.add(tuple(len(bucket.parameters) for bucket in state._buckets.values()))
    assert len(layouts) > 1  # one bucket first, then several: places were looked up again


def unused_and_shared(rank):
    """A parameter that one process alone uses, and a weight that a plain layer has too, which is sent in full."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.ModuleList([MaskedLinear(6, 6, mask=Mask.random((6, 6), 0.3, seeded(0))) for _ in range(3)])
        model.append(nn.Linear(6, 6, bias=False))
        model[3].weight = model[2].weight
        models.append(model)

    class Chosen(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers[3](self.layers[2](self.layers[rank](x)))

    wrapped = [DistributedDataParallel(Chosen(model), find_unused_parameters=True) for model in models]
    state = register_sparse_allreduce(wrapped[1])
    for step in range(2):
        x = torch.randn(4, 6, generator=seeded(2 * step + rank))
        for ddp in wrapped:
            ddp.zero_grad()
            ddp(x).pow(2).sum().backward()
        for p, q in zip(gradients(wrapped[0]), gradients(wrapped[1]), strict=True):
            assert same_bits(p, q)
    under = [model.weight.grad[~model.mask.dense()] for model in models[1][:3]]
    assert not under[0].any() and not under[1].any() and under[2].any()
    assert state.bytes_sent == 2 * (4 * (11 + 11 + 36 + 3 * 6) + 16)


def a_hook_by_hand_in_training(rank):
    """The documented two lines, with a protected optimizer: both processes keep the same weights, zero under masks."""
    model = network()
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.01)
    state = SparseAllReduce(ddp)
    ddp.register_comm_hook(state, sparse_allreduce_hook)
    twin = DistributedDataParallel(copy.deepcopy(model))
    for one in (ddp, twin):
        optimizer = protect(torch.optim.AdamW(one.parameters(), 1e-2, weight_decay=0.1), one.module)
        for step in range(3):
            optimizer.zero_grad()
            one(batch(rank, step)).pow(2).mean().backward()
            optimizer.step()
    for p, q in zip(ddp.parameters(), twin.parameters(), strict=True):
        assert same_bits(p, q)
    assert not model[3].weight[~model[3].mask.dense()].any()
    assert 0 < state.bytes_sent < 0.2 * state.bytes_dense


def a_static_graph_and_sparse_gradients(rank):
    """Sparse gradients come in buckets of their own, and are sent as they are."""

    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 9, sparse=True)
            self.layer = MaskedLinear(9, 7, mask=Mask.random((7, 9), 0.3, seeded(0)))

        def forward(self, rows):
            return self.layer(self.table(rows))

    wrapped = []
    for _ in range(2):
        torch.manual_seed(0)
        wrapped.append(DistributedDataParallel(Looked(), static_graph=True))
    register_sparse_allreduce(wrapped[1])
    for _ in range(2):
        for ddp in wrapped:
            ddp.zero_grad()
            ddp(torch.tensor([rank, 3])).pow(2).sum().backward()
        for p, q in zip(gradients(wrapped[0]), gradients(wrapped[1]), strict=True):
            assert p.is_sparse == q.is_sparse and torch.equal(p.to_dense(), q.to_dense())
            assert q.to_dense().any()


def a_loss_that_reads_the_weight_itself(rank):
    """Its gradient under the mask, which plain DDP averages, is not sent, and zero."""
    layers = []
    for _ in range(2):
        torch.manual_seed(0)
        layer = MaskedLinear(6, 6)
        layer.set_mask(Mask.random((6, 6), 0.3, seeded(0)), retain=True)
        layers.append(DistributedDataParallel(layer))
    register_sparse_allreduce(layers[1])
    x = torch.randn(4, 6, generator=seeded(rank))
    for ddp in layers:
        (ddp(x).sum() - ddp.module.weight.pow(2).sum()).backward()
    plain, sparse = (ddp.module.weight.grad for ddp in layers)
    active = layers[0].module.mask.dense()
    assert same_bits(sparse[active], plain[active]) and plain[~active].all()
    assert not sparse[~active].any() and not sparse[~active].signbit().any()


def nothing_is_active(rank):
    ddp = DistributedDataParallel(MaskedLinear(6, 6, bias=False, mask=Mask.full((6, 6), False)))
    state = register_sparse_allreduce(ddp, check_every_step=False)
    ddp(torch.randn(2, 6)).sum().backward()
    assert state.bytes_sent == 0 and state.bytes_dense == 144 and not ddp.module.weight.grad.any()


def different_masks_are_refused(rank):
    """When the hook is made, and in the backward pass after a mask changed, in both processes or in one."""
    frozen = r"the frozen mask of parameter '6.weight' differs between them"
    model = network()
    freeze(model[6].weight, Mask.random((10, 12), 0.5, seeded(rank)))
    with pytest.raises(RuntimeError, match=frozen):
        check_same_masks(model)
    with pytest.raises(RuntimeError, match=frozen):
        register_sparse_allreduce(DistributedDataParallel(model))
    every = r"all processes must have the same masks, but the mask of layer '3' differs between them; maskfuse"
    for often, one_alone in ((None, True), (True, True), (False, False)):
        ddp = DistributedDataParallel(network(), bucket_cap_mb=0.01)
        state = register_sparse_allreduce(ddp, check_every_step=often)
        ddp(batch(rank, 0)).sum().backward()
        assert state.bytes_sent == 4 * active_entries(ddp.module)[0] + 16 * (often is not False)
        if rank == 0 or not one_alone:
            # As many active ones, elsewhere: sums of these would be wrong, and nobody would know.
            ddp.module[3].set_mask(Mask.random((40, 288), 0.1, seeded(5 + rank)))
        with pytest.raises(RuntimeError, match=every):
            ddp(batch(rank, 1)).sum().backward()


def the_same_masks_again(rank):
    """One process sets an equal mask, while a temperature has changed in both: nothing differs."""
    torch.manual_seed(0)
    model = nn.Sequential(MaskedLinear(6, 6, mask=Mask.random((6, 6), 0.3)), GatedLinear(6, 6))
    ddp = DistributedDataParallel(model)
    register_sparse_allreduce(ddp)
    for step in range(3):
        model[1].temperature = 0.5**step
        if rank == 1:
            model[0].set_mask(Mask.from_dense(model[0].mask.dense()))
        ddp(torch.randn(2, 6)).sum().backward()


def both(rank):
    for dtype, options in (
        (torch.float32, {}),
        (torch.bfloat16, {"gradient_as_bucket_view": True}),
    ):
        same_as_the_plain_one(rank, dtype, options)
    unused_and_shared(rank)
    a_hook_by_hand_in_training(rank)
    a_static_graph_and_sparse_gradients(rank)
    a_loss_that_reads_the_weight_itself(rank)
    nothing_is_active(rank)
    different_masks_are_refused(rank)
    the_same_masks_again(rank)


@pytest.mark.slow
def test_two_processes(tmp_path):
    two_processes.run(both, tmp_path)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got int"):
        SparseAllReduce(3)
    with pytest.raises(TypeError, match="model must be a DistributedDataParallel, got Linear"):
        register_sparse_allreduce(nn.Linear(2, 2))
