"""compact: what each kind of network loses, and that it returns what the masked one does."""

from __future__ import annotations

import copy

import pytest
import torch
from compacts import check, lively, masked, mlp, residual, shapes, unread
from maskfuse import Mask, compact, convert
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch import nn
from torch.nn import functional as F


def test_channels_that_nobody_reads_go_and_take_others_with_them():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    unread(model, "4", [0, 1, 2])
    only = torch.ones(8, 8, dtype=torch.bool)
    only[3:, 5:] = False  # inputs 5, 6 and 7 are read by rows that nobody reads
    convert(model, {"2": Mask.from_dense(only)})
    assert shapes(check(model, 5, 6)) == {"0": (5, 6), "2": (5, 5), "4": (4, 5)}


def test_holes_stay_masked():
    model = mlp(nn.ReLU())
    holes = torch.rand(12, 6) > 0.5
    holes[3] = False
    holes[4, 0], holes[4, 1] = True, False
    convert(model, {"0": Mask.from_dense(holes), "2": 0.5})
    small = check(model, 3, 6)
    assert type(small[0]) is MaskedLinear and small[0].mask.shape == small[0].weight.shape
    kept = [i for i in range(12) if bool(holes[i].any()) and bool(model[2].mask.dense()[:, i].any())]
    assert torch.equal(small[0].mask.dense(), holes[kept]) and len(kept) < 12
    assert torch.equal(small[2].mask.dense(), model[2].mask.dense()[:, kept])
    assert not small[0].weight[~small[0].mask.dense()].any()


@pytest.mark.parametrize("project", [False, True])
def test_inside_residual_blocks(project):
    model = lively(residual(project))
    with torch.no_grad():  # what batch norm makes of a masked channel is not above 0, so it ends at the ReLU
        model[2].norm1.bias.copy_(-3 - model[2].norm1.bias.abs())
        model[2].norm1.weight.abs_()
        model[2].norm1.running_mean.abs_()
    small = check(masked(model, _2__conv1=[0, 3, 4], _3__conv1=[1]), 2, 3, 8, 8, others=[(1, 3, 5, 9)])
    out = 12 if project else 8
    assert shapes(small)["2.conv1"] == (out - 3, 8, 3, 3) and shapes(small)["2.conv2"] == (out, out - 3, 3, 3)
    assert small[2].norm1.num_features == out - 3 and small[2].norm1.running_mean.shape == (out - 3,)
    assert small[2].conv1.out_channels == small[2].conv2.in_channels == out - 3


@pytest.mark.parametrize("project", [False, True])
def test_a_channel_dead_in_one_branch_alone_stays(project):
    model = nn.Sequential(residual(project).eval())  # new norms: masked channels are 0
    with torch.no_grad():
        model[0][0].bias.zero_()
    masked(model, _0__2__conv2=[0, 1, 2], _0__3__conv2=[0, 1, 2])
    out = 12 if project else 8
    assert shapes(check(model, 2, 3, 8, 8))["0.2.conv2"][0] == out
    assert shapes(compact(model, torch.zeros(2, 3, 8, 8)))["0.2.conv2"][0] == out  # where all looks constant
    stem = "_0__2__short" if project else "_0__0"
    if project:
        model[0][2].short.bias = None
    masked(model, **{stem: [0, 1, 5]})
    small = check(model, 2, 3, 8, 8)  # 0 and 1 are dead wherever they meet, 2 and 5 in one place
    assert shapes(small)["0.2.conv2"][0] == shapes(small)["0.3.conv2"][0] == out - 2
    assert shapes(small)["0.6"] == (5, out - 2) and shapes(small)["0.3.conv1"] == (out, out - 2, 3, 3)
    if not project:
        assert shapes(small)["0.0"][0] == out - 2


class Dense(nn.Module):
    """Layers that read the outputs of all before them."""

    def __init__(self, layers=3, growth=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + i * growth) for i in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(6 + i * growth, growth, 1, bias=False) for i in range(layers))
        self.head = nn.Linear(6 + layers * growth, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


def test_concatenation():
    model = masked(lively(Dense()), stem=[5], convs__0=[0, 2], convs__1=[3])
    small = check(model, 2, 3, 6, 6, others=[(1, 3, 4, 4)])
    assert shapes(small) | {} == {
        "stem": (5, 3, 1, 1),
        "norms.0": (5,),
        "norms.1": (7,),
        "norms.2": (10,),
        "convs.0": (2, 5, 1, 1),
        "convs.1": (3, 7, 1, 1),
        "convs.2": (4, 10, 1, 1),
        "head": (5, 14),
    }


def test_depthwise_and_pointwise():
    def block(inp, wide, out):
        return nn.Sequential(
            nn.Conv2d(inp, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, out, 1),
        )

    model = block(4, 12, 6).eval()
    small = check(masked(copy.deepcopy(model), _0=[0, 7, 8]), 2, 4, 8, 8)
    assert [shapes(small)[name][:2] for name in "036"] == [(9, 4), (9, 1), (6, 9)]
    assert small[3].groups == small[3].in_channels == small[3].out_channels == 9
    # Masked in the middle: a constant behind it, which the pointwise convolution takes; nobody reads what is before.
    small = check(masked(lively(copy.deepcopy(model)), _3=[2, 3]), 2, 4, 8, 8)
    assert shapes(small)["0"][0] == shapes(small)["3"][0] == 10
    small = check(unread(lively(copy.deepcopy(model)), "6", [1]), 2, 4, 8, 8)
    assert shapes(small)["0"][0] == shapes(small)["3"][0] == shapes(small)["4"][0] == 11
    # A constant that is not zero, before the depthwise convolution's padding, stays; one that ReLU6 makes zero goes.
    with torch.no_grad():
        model[1].bias[0], model[1].bias[7] = 1.0, -1.0
    assert shapes(check(masked(model, _0=[0, 7]), 2, 4, 8, 8))["3"][0] == 11


def grouped():
    first = nn.Conv2d(3, 12, 1, bias=False)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 1))


def test_convolutions_in_groups():
    # The inputs of a group all masked, and its outputs unread: the group goes.
    model = unread(masked(grouped(), _0=[3, 4, 5]), "3", [2, 3])
    small = check(model, 2, 3, 6, 6)
    assert small[2].groups == 3 and shapes(small)["0"][0] == 9 and shapes(small)["2"] == (6, 3, 3, 3)
    # One input of each group, another one in each: as many go everywhere.
    small = check(masked(grouped(), _0=[1, 5, 6, 9, 10]), 2, 3, 6, 6)
    assert small[2].groups == 4 and shapes(small)["0"][0] == 8 and shapes(small)["2"] == (8, 2, 3, 3)
    # One input of three groups: none can go.
    assert shapes(check(masked(grouped(), _0=[1, 5, 6]), 2, 3, 6, 6))["0"][0] == 12
    # One output of each group.
    small = check(unread(grouped(), "3", [0, 3, 4, 7]), 2, 3, 6, 6)
    assert shapes(small)["2"] == (4, 3, 3, 3) and small[2].groups == 4
    # A group that is masked is a constant, and goes with the inputs that nobody else reads.
    small = check(masked(grouped(), _2=[0, 1]), 2, 3, 6, 6)
    assert small[2].groups == 3 and shapes(small)["0"][0] == 9 and shapes(small)["3"] == (2, 6, 1, 1)


def test_masks_inside_convolutions_in_groups_are_sliced():
    model = grouped()
    convert(model, {"2": Mask.random((8, 3, 3, 3), 0.8)})
    small = check(masked(model, _0=[0, 1, 2, 4, 6, 10]), 2, 3, 6, 6)
    assert type(small[2]) is MaskedConv2d and small[2].groups == 3
    whole = model[2].mask.dense()
    kept = {1: [0, 2], 2: [1, 2], 3: [0, 2]}  # the first group is a constant
    assert torch.equal(small[2].mask.dense(), torch.cat([whole[2 * g : 2 * g + 2, kept[g]] for g in kept]))


def test_around_transposed_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    small = check(unread(masked(model, _0=[0, 1]), "4", [2]), 2, 3, 4, 4)
    assert shapes(small) == {"0": (6, 3, 1, 1), "2": (6, 5, 2, 2), "4": (2, 5, 1, 1)}
    assert (small[2].in_channels, small[2].out_channels) == (6, 5)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 3, padding=1), nn.Conv2d(6, 2, 1))
    assert shapes(check(masked(model, _0=[0, 1]), 2, 3, 1, 1, others=[(2, 3, 4, 4)]))["1"] == (8, 6, 3, 3)
    model = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.ConvTranspose2d(8, 8, 2, groups=2), nn.Conv2d(8, 2, 1))
    assert shapes(check(masked(model, _0=[0, 4]), 2, 4, 3, 3))["0"][0] == 8


def test_batch_norm_behind_linear_layers():
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.SiLU(), nn.Linear(12, 4))
    small = check(masked(lively(model), _0=[2, 3, 9]), 5, 6)
    assert shapes(small) == {"0": (9, 6), "1": (9,), "3": (4, 9)} and small[1].num_features == 9


def test_channels_under_a_layer_norm_stay():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 4))
    small = check(masked(lively(model), _0=[1, 2], _2=[0, 4]), 5, 6)
    assert shapes(small) == {"0": (8, 6), "1": (8,), "2": (10, 8), "4": (4, 10)}


def test_whole_groups_of_a_group_norm_go():
    def normed():
        return lively(nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.Tanh(), nn.Conv2d(12, 2, 1)))

    small = check(masked(normed(), _0=[3, 4, 5, 6]), 2, 3, 5, 5)
    assert shapes(small) == {"0": (9, 3, 1, 1), "1": (9,), "3": (2, 9, 1, 1)}
    assert (small[1].num_groups, small[1].num_channels) == (3, 9)
    assert shapes(compact(masked(normed(), _0=[3, 4]), torch.zeros(2, 3, 5, 5)))["0"][0] == 12
    small = check(unread(normed(), "3", [0, 1, 2, 11]), 2, 3, 5, 5)
    assert small[1].num_groups == 3 and shapes(small)["0"][0] == 9


def test_transformers_lose_hidden_features():
    layer = nn.TransformerEncoderLayer(8, 2, 24, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)).eval()
    dead = {"_1__layers__0__linear1": [0, 1, 2], "_1__layers__1__linear1": [23]}
    small = check(masked(model, **dead), 2, 7, 5, others=[(3, 4, 5)])
    sizes = shapes(small)
    assert sizes["1.layers.0.linear1"] == (21, 8) and sizes["1.layers.0.linear2"] == (8, 21)
    assert sizes["1.layers.1.linear1"] == (23, 8)
    assert small[1].layers[0].activation_relu_or_gelu == 1  # the fast path, which the masks had turned off
    convert(model, {"1.layers.1.linear2": 0.5})
    small = check(model, 2, 7, 5)
    assert [layer.activation_relu_or_gelu for layer in small[1].layers] == [1, 0]  # on and off


class Rigid(nn.Module):
    """A module that asks for the sizes it was made with, and a layer that is not called."""

    def __init__(self, inner):
        super().__init__()
        self.first, self.inner, self.spare = nn.Linear(6, 8, bias=False), inner, nn.Linear(8, 8)

    def forward(self, x):
        y = self.first(x)
        return (self.inner(y, y, y) if isinstance(self.inner, nn.MultiheadAttention) else self.inner(y))[0]


@pytest.mark.parametrize("inner", [nn.MultiheadAttention(8, 2, batch_first=True), nn.LSTM(8, 4), nn.GRU(8, 4)])
def test_what_asks_for_its_sizes_or_is_not_called_stays(inner):
    model = masked(Rigid(inner), first=[0, 3], spare=[1, 2])
    assert shapes(check(model, 2, 5, 6)) == shapes(model)


class Embedded(nn.Module):
    """Tokens and their places, as buffers number them."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 8), nn.Embedding(5, 8)
        self.register_buffer("numbers", torch.arange(5)[None])
        self.wide, self.narrow = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, ids):
        return self.narrow(F.gelu(self.wide(self.tokens(ids) + self.places(self.numbers))))


def test_embeddings():
    model = unread(unread(Embedded(), "narrow", [0, 4]), "wide", [2, 3])
    ids = torch.randint(0, 20, (2, 5))
    small = compact(model, ids)
    torch.testing.assert_close(small(ids), model(ids))
    assert shapes(small)["tokens"] == (20, 6) and shapes(small)["places"] == (5, 6) and small.numbers.shape == (1, 5)
    assert shapes(small)["wide"] == (10, 6) and small.tokens.embedding_dim == 6


class Odd(nn.Module):
    """A hidden layer, and something done to it."""

    def __init__(self, operation):
        super().__init__()
        self.first, self.operation, self.last = nn.Linear(6, 8), operation, nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.operation(self.first(x)))


@pytest.mark.parametrize(
    ("operation", "left"),
    [
        (lambda y: y.softmax(1), 8),
        (lambda y: y / y.norm(dim=1, keepdim=True), 8),
        (lambda y: y - y.mean(1, keepdim=True), 8),
        (lambda y: y.flip(1), 8),
        (lambda y: y.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8), 8),
        (lambda y: torch.cat(y.chunk(2, 1)[::-1], 1), 8),
        (lambda y: y.cumsum(1), 8),
        (lambda y: y * torch.arange(8.0), 8),
        (lambda y: y + 0 * torch.rand_like(y), 8),
        (lambda y: y.clamp(-1, 1) * 2 + 1, 6),
        (lambda y: torch.where(y > 0, y, y * 0.1), 6),
        (lambda y: y.softmax(0), 8),  # a constant, but another one for each batch size
        (lambda y: y.unsqueeze(1).expand(-1, 3, -1).transpose(1, 2).permute(0, 2, 1).squeeze(1).amax(1), 6),
        (lambda y: torch.stack([y, y]).mean(0), 8),
        (lambda y: y.abs().sqrt().exp().to(torch.float64).float(), 6),
        (lambda y: F.dropout(y, training=False).clone().add_(1).relu_(), 6),
    ],
)
def test_operations_that_are_followed_and_others(operation, left):
    small = check(masked(Odd(operation), first=[0, 3]), 5, 6)
    assert shapes(small)["first"][0] == left


def test_layers_that_are_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.same, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            y = F.relu(self.first(x))
            return self.last(self.same(self.same(y)))

    dead = masked(Twice(), first=[0, 3], same=[0, 4])
    with torch.no_grad():
        dead.same.bias[[0, 4]] = 0
    small = check(dead, 5, 6)  # 0 is zero in both calls, 3 and 4 in one
    assert shapes(small) == {"first": (7, 6), "same": (7, 7), "last": (4, 7)}
    dead.same.bias.data[0] = 1.0  # a constant in the second call alone
    assert shapes(check(dead, 5, 6))["same"] == (8, 8)


def test_where_all_channels_are_dead_one_stays():
    small = check(masked(mlp(nn.Sigmoid()), _0=list(range(12))), 3, 6)
    assert shapes(small) == {"0": (1, 6), "2": (4, 1)}
    model = masked(
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)),
        _0=list(range(4)),
        _2=list(range(4)),
    )
    assert shapes(check(model, 2, 2, 3, 3))["2"][0] <= 2
