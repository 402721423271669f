"""A wrong call of each public name, and how its message names the argument, for `test_docstrings.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import maskfuse
import pytest
import torch
from maskfuse import Mask, Policy, distributed, functional, nn, optim, schedule

X, W, IMAGE, KERNEL = torch.ones(3, 8), torch.ones(5, 8), torch.ones(2, 4, 6, 6), torch.ones(5, 4, 3, 3)
FLAGS = torch.ones(5, 8, dtype=torch.bool)
MASK, CONV_MASK = Mask.full((5, 8)), Mask.full((5, 4, 3, 3))


def _linear(kind: Any = nn.MaskedLinear) -> Any:
    return kind(8, 5)


def _conv(kind: Any = nn.MaskedConv2d) -> Any:
    return kind(4, 5, 3)


def _schedule(kind: Any) -> Any:
    layer = _linear()
    return kind(layer, torch.optim.SGD(layer.parameters(), 0.1), 0.5, end=10)


class _Bucket:
    """As a communication hook is given one: of a weight that a mask does not fit."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def index(self) -> int:
        return 0

    def buffer(self) -> torch.Tensor:
        return torch.zeros(self.weight.numel())

    def parameters(self) -> list[torch.Tensor]:
        return [self.weight]


def _hook() -> Any:
    layer = _linear()
    state = distributed.SparseAllReduce(layer, check_every_step=False)
    layer.weight = torch.nn.Parameter(torch.zeros(4, 8))
    return distributed.sparse_allreduce_hook(state, _Bucket(layer.weight))


def _keep(model: Any) -> None:
    with nn.keep_frozen(model):
        pass


def _plot() -> Any:
    pytest.importorskip("matplotlib")
    return maskfuse.report(_linear()).plot("plot.nothing")


def _backend(name: str) -> None:
    with maskfuse.use_backend(name):
        pass


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "distributed.SparseAllReduce": (lambda: distributed.SparseAllReduce(X), "model"),
    "distributed.broadcast_masks": (lambda: distributed.broadcast_masks(X), "model"),
    "distributed.check_same_masks": (lambda: distributed.check_same_masks(X), "model"),
    "distributed.register_sparse_allreduce": (lambda: distributed.register_sparse_allreduce(_linear()), "model"),
    "distributed.sparse_allreduce_hook": (_hook, "mask"),
    "schedule.SET": (lambda: schedule.SET(_linear(), None, 0.5, end=10), "optimizer"),
    "schedule.SET.load_state_dict": (lambda: _schedule(schedule.SET).load_state_dict({}), "state_dict"),
    "schedule.CubicSchedule": (lambda: schedule.CubicSchedule(X, None, 0.5, end=10), "model"),
    "schedule.CubicSchedule.load_state_dict": (
        lambda: _schedule(schedule.CubicSchedule).load_state_dict({}),
        "state_dict",
    ),
    "schedule.RigL": (lambda: schedule.RigL(_linear(), None, 0.5, end=10), "optimizer"),
    "schedule.RigL.load_state_dict": (lambda: _schedule(schedule.RigL).load_state_dict({}), "state_dict"),
    "optim.protect": (lambda: optim.protect(_linear(), _linear()), "optimizer"),
    "functional.channel_gather": (lambda: functional.channel_gather(IMAGE, torch.rand(4)), "channels"),
    "functional.channel_scatter": (lambda: functional.channel_scatter(IMAGE, slice(0, 4), 2), "channels"),
    "functional.channel_select": (lambda: functional.channel_select(IMAGE, torch.rand(2, 4)), "mask"),
    "functional.collect_active": (lambda: functional.collect_active(X, MASK), "weight"),
    "functional.expand_active": (lambda: functional.expand_active(X, MASK), "values"),
    "functional.compact_conv2d": (lambda: functional.compact_conv2d(IMAGE, X, CONV_MASK), "values"),
    "functional.compact_linear": (lambda: functional.compact_linear(X, W, FLAGS), "mask"),
    "functional.gated_conv2d": (lambda: functional.gated_conv2d(IMAGE, KERNEL, W), "scores"),
    "functional.gated_linear": (lambda: functional.gated_linear(X, W, X), "scores"),
    "functional.mask_gradient": (lambda: functional.mask_gradient(X, FLAGS), "mask"),
    "functional.masked_conv2d": (lambda: functional.masked_conv2d(IMAGE, KERNEL, CONV_MASK, stride="2"), "stride"),
    "functional.masked_linear": (lambda: functional.masked_linear(X, W, FLAGS.T), "mask"),
    "nn.Bypass": (lambda: nn.Bypass(_linear(), p=2), "p must"),
    "nn.Bypass.forward": (lambda: nn.Bypass(torch.nn.ReLU())(X, active=1), "active"),
    "nn.ChannelGate": (lambda: nn.ChannelGate(k=-1), "k must"),
    "nn.ChannelGate.active": (lambda: nn.ChannelGate(k=9).active(X), "k is 9"),
    "nn.ChannelGate.forward": (lambda: nn.ChannelGate(k=1)(FLAGS), "input"),
    "nn.ChannelGate.set_mask": (lambda: nn.ChannelGate(FLAGS[0]).set_mask(X), "mask"),
    "nn.CompactConv2d": (lambda: nn.CompactConv2d(4, 5, 3, mask=MASK), "mask"),
    "nn.CompactConv2d.forward": (lambda: _conv(nn.CompactConv2d)(X), "input"),
    "nn.CompactConv2d.from_dense": (lambda: nn.CompactConv2d.from_dense(_linear()), "layer"),
    "nn.CompactConv2d.set_mask": (lambda: _conv(nn.CompactConv2d).set_mask(KERNEL), "mask"),
    "nn.CompactConv2d.train": (lambda: _conv(nn.CompactConv2d).train(2), "mode"),
    "nn.CompactLinear": (lambda: nn.CompactLinear(8, 5, mask=W), "mask"),
    "nn.CompactLinear.forward": (lambda: _linear(nn.CompactLinear)(W.T), "input"),
    "nn.CompactSequential": (lambda: nn.CompactSequential(X), "Module"),
    "nn.GatedConv2d": (lambda: nn.GatedConv2d(4, 5, 3, kind="open"), "kind"),
    "nn.GatedConv2d.from_dense": (lambda: nn.GatedConv2d.from_dense(_linear()), "layer"),
    "nn.GatedConv2d.harden": (lambda: _conv(nn.GatedConv2d).harden(1), "threshold"),
    "nn.GatedLinear": (lambda: nn.GatedLinear(8, 5, temperature=0), "temperature"),
    "nn.GatedLinear.forward": (lambda: _linear(nn.GatedLinear)(X.double()), "input"),
    "nn.MaskedConv2d": (lambda: nn.MaskedConv2d(4, 5, 3, mask=MASK), "mask"),
    "nn.MaskedConv2d.forward": (lambda: _conv()(IMAGE[:, :3]), "input"),
    "nn.MaskedConv2d.from_dense": (lambda: nn.MaskedConv2d.from_dense(_linear()), "layer"),
    "nn.MaskedConv2d.set_mask": (lambda: _conv().set_mask(MASK), "mask"),
    "nn.MaskedLinear": (lambda: nn.MaskedLinear(8, 5, mask=FLAGS.T), "mask"),
    "nn.MaskedLinear.forward": (lambda: _linear()(X.int()), "input"),
    "nn.freeze": (lambda: nn.freeze(W, FLAGS), "parameter"),
    "nn.keep_frozen": (lambda: _keep(X), "model"),
    "nn.unfreeze": (lambda: nn.unfreeze(W), "parameter"),
    "Mask.blocks": (lambda: Mask.blocks(FLAGS, 2), "block"),
    "Mask.channels": (lambda: Mask.channels((5, 8), out=torch.tensor([5])), "out"),
    "Mask.from_bits": (lambda: Mask.from_bits(X, (5, 8)), "bits"),
    "Mask.from_dense": (lambda: Mask.from_dense(X), "t must"),
    "Mask.full": (lambda: Mask.full(5), "shape"),
    "Mask.n_m": (lambda: Mask.n_m(W, 2, 3), "m=3"),
    "Mask.random": (lambda: Mask.random((5, 8), 2), "density"),
    "Mask.threshold": (lambda: Mask.threshold(FLAGS, 0), "t must"),
    "Mask.to": (lambda: MASK.to("moon"), "device"),
    "Mask.topk": (lambda: Mask.topk(FLAGS, 0.5), "scores"),
    "Policy": (lambda: Policy(density=2), "density"),
    "compact": (lambda: maskfuse.compact(X, X), "model"),
    "convert": (lambda: maskfuse.convert(_linear(), "all"), "policy"),
    "dense_state_dict": (lambda: maskfuse.dense_state_dict(X), "model"),
    "explain": (lambda: maskfuse.explain(MASK, batch=-1), "batch"),
    "fold": (lambda: maskfuse.fold(X), "model"),
    "load_compressed": (lambda: maskfuse.load_compressed("missing", X), "model"),
    "pack": (lambda: maskfuse.pack(X), "model"),
    "report": (lambda: maskfuse.report(_linear(), batch=1.5), "batch"),
    "save_compressed": (lambda: maskfuse.save_compressed(X, "unwritten"), "model_or_state_dict"),
    "self_test": (lambda: maskfuse.self_test("meta"), "device"),
    "sync_masks": (lambda: maskfuse.sync_masks(_linear(), X), "source"),
    "unpack": (lambda: maskfuse.unpack(X), "model"),
    "use_backend": (lambda: _backend("fpga"), "backend"),
    "Report.plot": (_plot, "nothing"),
}
