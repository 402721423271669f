"""protect: every optimizer leaves masked and frozen weights bit for bit, and gives the others their plain update."""

from __future__ import annotations

import copy

import pytest
import torch
import two_processes
from maskfuse import Mask, protect
from maskfuse.nn import MaskedConv2d, MaskedLinear, freeze
from optimizers import ELEMENTWISE, TOGETHER, made, same_bits, take_state, takes, trained
from torch import nn, optim

STEPS = 20
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda])]
if not torch.cuda.is_available():
    DEVICES = ["cpu"]

IMPLEMENTATIONS = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True, "foreach": False},
    "capturable foreach": {"capturable": True, "foreach": True},
}


def cases():
    for device in DEVICES:
        kind = device if isinstance(device, str) else device.values[0]
        for name, variants in ELEMENTWISE.items():
            for how, options in IMPLEMENTATIONS.items():
                if not takes(name, options) or (kind == "cpu" and how.startswith("capturable")):
                    continue
                if kind == "cuda" and (name, how) == ("Adagrad", "fused"):
                    continue  # torch has it for the CPU alone
                for i, variant in enumerate([*variants, {**variants[-1], "maximize": True}]):
                    if variant.get("lr") == "tensor" and how == "foreach":
                        continue  # torch refuses it
                    marks = [] if isinstance(device, str) else device.marks
                    yield pytest.param(kind, name, {**variant, **options}, id=f"{kind}-{name}-{how}-{i}", marks=marks)


class Watched:
    """A model with every kind of masked parameter, their masks, and what was under these."""

    def __init__(self, device="cpu", dtype=torch.float32, flat=False):
        self.model = nn.Sequential(
            MaskedLinear(9, 7, dtype=dtype),
            MaskedLinear(7, 9, dtype=dtype),
            nn.Linear(9, 6, bias=not flat, dtype=dtype),
            *([] if flat else [MaskedConv2d(2, 3, 3, dtype=dtype)]),
        ).to(device)
        self.parameters = [p for p in self.model.parameters() if p.dim() >= 2 or not flat]
        self.masks = {}

    def mask(self):
        """Masks are set after some steps, so that optimizers have moments from before."""
        for i, layer in enumerate(self.model):
            mask = torch.rand(layer.weight.shape, device=layer.weight.device) > 0.4
            self.masks[layer.weight] = mask
            if isinstance(layer, nn.Linear) and not isinstance(layer, MaskedLinear):
                freeze(layer.weight, mask)
            else:
                layer.set_mask(mask, retain=i == 1)
        self.before = {p: p.detach().clone() for p in self.masks}

    def gradients(self, clean=True):
        """Random ones; the parameter's own may hold anything under the mask."""
        for p in self.parameters:
            p.grad = torch.randn_like(p)
            if p in self.masks and not clean:
                p.grad[~self.masks[p]] = torch.tensor(
                    [float("nan"), float("inf"), 3.0], device=p.device, dtype=p.dtype
                )[torch.randint(3, (int((~self.masks[p]).sum()),), device=p.device)]

    def twin(self):
        """Plain parameters with the same values and masked gradients."""
        return [nn.Parameter(p.detach().clone()) for p in self.parameters]

    def give(self, plain):
        for p, q in zip(self.parameters, plain, strict=True):
            q.grad = p.grad.clone() if p not in self.masks else torch.where(self.masks[p], p.grad, 0)

    def check_masked(self):
        for p, mask in self.masks.items():
            assert same_bits(p[~mask], self.before[p][~mask])
        assert any(self.before[p][~mask].any() for p, mask in self.masks.items())

    def check_active(self, plain):
        for p, q in zip(self.parameters, plain, strict=True):
            mask = self.masks.get(p, torch.ones_like(p, dtype=torch.bool))
            assert same_bits(p[mask], q[mask])
            assert not same_bits(p[mask], self.before.get(p, torch.full_like(p, float("nan")))[mask])


@pytest.mark.parametrize(("device", "name", "options"), list(cases()))
def test_elementwise_optimizers_bitwise(device, name, options):
    watched = Watched(device)
    optimizer = protect(made(name, watched.parameters, options), watched.model)
    for _ in range(3):
        watched.gradients()
        optimizer.step()
    watched.mask()
    twin = watched.twin()
    plain = made(name, twin, options)
    take_state(plain, optimizer)
    for _ in range(STEPS):
        watched.gradients(clean=False)
        watched.give(twin)
        optimizer.step()
        plain.step()
        watched.check_masked()
    watched.check_active(twin)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(name, dtype):
    watched = Watched(dtype=dtype)
    optimizer = protect(made(name, watched.parameters, ELEMENTWISE[name][-1]), watched.model)
    watched.gradients()
    optimizer.step()
    watched.mask()
    for _ in range(3):
        twin = watched.twin()
        plain = made(name, twin, ELEMENTWISE[name][-1])
        take_state(plain, optimizer)
        watched.gradients(clean=False)
        watched.give(twin)
        optimizer.step()
        plain.step()
        watched.check_masked()
    watched.check_active(twin)


@pytest.mark.parametrize(
    ("name", "options"), [pytest.param(n, o, id=f"{n}-{i}") for n, v in TOGETHER.items() for i, o in enumerate(v)]
)
def test_optimizers_of_whole_tensors(name, options):
    """Each step is the plain optimizer's on the masked gradient, from the same weights and state."""
    watched = Watched(flat=name == "Muon")
    optimizer = protect(made(name, watched.parameters, options), watched.model)
    for _ in range(3):
        watched.gradients()
        optimizer.step()
    watched.mask()
    for _ in range(STEPS):
        watched.gradients(clean=False)
        twin = watched.twin()
        plain = made(name, twin, options)
        take_state(plain, optimizer)
        watched.give(twin)
        optimizer.step()
        plain.step()
        watched.check_masked()
        watched.check_active(twin)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("as_keyword", [False, True])
def test_lbfgs(search, as_keyword):
    """Its closure's gradients are masked too, though terms of the loss read the weights themselves."""
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Sequential(MaskedLinear(9, 7), nn.Tanh(), nn.Linear(7, 3))
        twin = copy.deepcopy(model)
        x, y = torch.randn(20, 9), torch.randn(20, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    masks = [torch.rand(7, 9) > 0.4, torch.rand(3, 7) > 0.4]

    def prepare(model):
        model[0].set_mask(masks[0], retain=True)
        return [model[0].weight, model[2].weight]

    def loss_of(model):
        return (model(x) - y).pow(2).sum() + sum(p.pow(2).sum() for p in model.parameters())

    def closure_of(model, optimizer, after=lambda: None):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            after()
            return loss

        return closure

    weights, plain_weights = prepare(model), prepare(twin)
    freeze(weights[1], masks[1])
    before = [w.detach().clone() for w in weights]

    def mask_plain():
        for w, m in zip(plain_weights, masks, strict=True):
            w.grad.masked_fill_(~m, 0)

    optimizer = protect(optim.LBFGS(model.parameters(), 0.5, max_iter=5, line_search_fn=search), model)
    plain = optim.LBFGS(twin.parameters(), 0.5, max_iter=5, line_search_fn=search)
    for _ in range(STEPS):
        closure = closure_of(model, optimizer)
        loss = optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
        want = plain.step(closure_of(twin, plain, mask_plain))
        assert loss.item() == want.item()
        for w, p, m, b in zip(weights, plain_weights, masks, before, strict=True):
            assert same_bits(w[~m], b[~m]) and b[~m].any()
            assert same_bits(w[m], p[m]) and not torch.equal(w[m], b[m])


def test_a_closure_sees_weights_that_stay():
    """A history from before the mask moves frozen weights inside a step; the loss is not that of moved ones."""
    layer = nn.Linear(6, 4)
    x, y = torch.randn(10, 6), torch.randn(10, 4)
    optimizer = protect(optim.LBFGS([layer.weight], max_iter=4), layer)
    seen = []

    def closure():
        seen.append(layer.weight.detach().clone())
        optimizer.zero_grad()
        loss = (layer(x) - y).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mask = torch.rand(4, 6) > 0.5
    freeze(layer.weight, mask)
    before = layer.weight.detach().clone()
    seen.clear()
    optimizer.step(closure)
    assert len(seen) > 2 and not torch.equal(seen[-1], before)
    assert all(same_bits(w[~mask], before[~mask]) for w in seen)


def test_a_closure_that_raises_leaves_weights_in_place():
    layer = MaskedLinear(6, 4)
    x = torch.randn(10, 6)
    optimizer = protect(optim.LBFGS(layer.parameters(), max_iter=4), layer)
    calls = []

    def closure():
        calls.append(None)
        if len(calls) == 7:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = layer(x).sub(1).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    layer.set_mask(torch.rand(4, 6) > 0.5)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert not layer.weight[~layer.mask.dense()].any()
    assert not optimizer._maskfuse_protection._steps  # nothing waits for the end of that step
    optimizer.step(closure)
    assert not layer.weight[~layer.mask.dense()].any()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients():
    table, twin = nn.Embedding(6, 4, sparse=True), nn.Embedding(6, 4, sparse=True)
    twin.load_state_dict(table.state_dict())
    optimizer, plain = (optim.SparseAdam(t.parameters(), 0.05) for t in (table, twin))
    protect(optimizer, table)
    rows = torch.tensor([1, 3, 1, 4])

    def step(table, optimizer, mask=None):
        optimizer.zero_grad()
        table(rows).pow(2).sum().backward()
        if mask is not None:
            grad = table.weight.grad.coalesce()
            values = torch.where(mask[grad.indices()[0]], grad.values(), 0)
            table.weight.grad = torch.sparse_coo_tensor(grad.indices(), values, grad.shape)
        optimizer.step()

    for t, o in ((table, optimizer), (twin, plain)):
        step(t, o)
    mask = torch.rand(6, 4) > 0.4
    freeze(table.weight, mask)
    before = table.weight.detach().clone()
    for _ in range(STEPS):
        step(table, optimizer)
        step(twin, plain, mask)
    assert same_bits(table.weight[~mask], before[~mask])
    active = mask & (torch.arange(6)[:, None] == rows).any(1, keepdim=True)
    assert same_bits(table.weight[active], twin.weight[active]) and not (table.weight == before)[active].any()


@pytest.mark.filterwarnings("ignore:.* moves weights under a mask")  # so the plain one does
@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if takes(n, {"differentiable": True})])
def test_differentiable(name):
    """Steps can be differentiated: a masked weight is its own, whatever the gradient."""
    start = torch.randn(7, 9, requires_grad=True)
    incoming = torch.randn(7, 9, requires_grad=True)
    mask = Mask.random((7, 9), 0.5)
    active = mask.dense()

    def stepped(guarded):
        layer = MaskedLinear(9, 7, bias=False, mask=mask)
        layer._retain = True
        del layer.weight
        layer.weight = start.clone()
        optimizer = made(name, [layer.weight], {"differentiable": True})
        if guarded:
            protect(optimizer, layer)
        layer.weight.grad = incoming if guarded else torch.where(active, incoming, 0)
        optimizer.step()
        return layer.weight

    got, want = stepped(True), stepped(False)
    assert same_bits(got[~active], start[~active]) and same_bits(got[active], want[active])
    # Rprop's is zero by definition and Adam's first step the gradient's sign, so no more is asked than agreement.
    gradients = torch.autograd.grad(got.pow(2).sum(), [start, incoming], allow_unused=True)
    wanted = torch.autograd.grad(want[active].pow(2).sum(), [start, incoming], allow_unused=True)
    torch.testing.assert_close(gradients[0], torch.where(active, wanted[0], 2 * start), equal_nan=True)
    if wanted[1] is not None:
        torch.testing.assert_close(gradients[1][active], wanted[1][active], equal_nan=True)
        assert not gradients[1][~active].any()


def sharded(rank):
    """One process of `test_fully_sharded_models`; errors end the test."""
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (two_processes.PROCESSES,))
    torch.manual_seed(0)
    plain = nn.Sequential(MaskedLinear(9, 7), nn.ReLU(), nn.Linear(7, 5), MaskedLinear(5, 3))
    spread = copy.deepcopy(plain)
    masks = [torch.rand(layer.weight.shape) > 0.5 for layer in (plain[0], plain[2], plain[3])]
    x = torch.randn(4, 9)
    for layer in (*spread[::2], spread):
        fully_shard(layer, mesh=mesh)
    weights = []
    for model in (plain, spread):
        optimizer = optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
        trained(model, optimizer, 2, x)
        model[0].set_mask(masks[0])
        freeze(model[2].weight, masks[1])
        model[3].set_mask(masks[2], retain=True)
        before = [model[i].weight.detach().clone() for i in (0, 2, 3)]
        trained(model, protect(optimizer, model), 3, x)
        after = [model[i].weight.detach() for i in (0, 2, 3)]
        weights.append([[t.full_tensor() if hasattr(t, "full_tensor") else t for t in ts] for ts in (before, after)])
    for mask, before, after, want in zip(masks, *weights[1], weights[0][1], strict=True):
        assert same_bits(before[~mask], after[~mask]) and not (before == after)[mask].any()
        torch.testing.assert_close(after, want)
    assert not weights[1][1][0][~masks[0]].any() and weights[1][1][2][~masks[2]].all()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_fully_sharded_models(tmp_path):
    """FSDP2 in two processes, whose parts of a weight differ in size."""
    two_processes.run(sharded, tmp_path)


def test_every_optimizer_of_torch_is_tested():
    known = {n for n, o in vars(optim).items() if isinstance(o, type) and issubclass(o, optim.Optimizer)}
    assert known - {"Optimizer"} <= {*ELEMENTWISE, *TOGETHER, "LBFGS", "SparseAdam"}
