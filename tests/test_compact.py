"""compact: what each kind of network loses, and that it returns what the masked one does."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from maskfuse import Mask, compact, convert
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch import nn
from torch.nn import functional as F


def lively(model):
    """Norms with parameters and statistics that are not those of a new one, in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            module.weight.data.normal_()
            module.bias.data.normal_()
    return model.eval()


def masked(model, **dead):
    """Masks all weights of some output channels: `layer=[...]`, dots in names written as `__`."""
    for name, channels in dead.items():
        layer = model.get_submodule(name.lstrip("_").replace("__", "."))
        out = torch.ones(len(layer.weight), dtype=torch.bool)
        out[channels] = False
        convert(model, {name.lstrip("_").replace("__", "."): Mask.channels(layer.weight.shape, out=out)})
    return model


def unread(model, name, channels):
    """Masks all weights on some input channels."""
    layer = model.get_submodule(name)
    inp = torch.ones(layer.weight.shape[1], dtype=torch.bool)
    inp[channels] = False
    convert(model, {name: Mask.channels(layer.weight.shape, inp=inp)})
    return model


def check(model, *shape, others=()):
    """The compact model, after it was seen to be equal on inputs of this shape and others."""
    before = copy.deepcopy(model.state_dict())
    small = compact(model, torch.randn(*shape))
    for other in (shape, *others):
        x = torch.randn(*other)
        with torch.no_grad():
            torch.testing.assert_close(small(x), copy.deepcopy(model).eval()(x), rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(after[key], value) for key, value in before.items())
    return small


def shapes(model):
    return {name.removesuffix(".weight"): tuple(p.shape) for name, p in model.named_parameters() if "weight" in name}


def mlp(*between, bias=True):
    return nn.Sequential(nn.Linear(6, 12, bias), *between, nn.Linear(12, 4))


@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LogSigmoid, nn.Softplus, nn.PReLU]
)
def test_a_masked_row_leaves_its_constant_in_the_next_bias(activation):
    model = masked(mlp(activation()), _0=[0, 5, 11])
    assert model[0].bias[5] != 0
    small = check(model, 3, 6, others=[(7, 6), (2, 5, 6), (6,)])
    assert shapes(small)["0"] == (9, 6) and shapes(small)["2"] == (4, 9)
    assert type(small[0]) is nn.Linear and type(small[2]) is nn.Linear
    assert (small[0].out_features, small[2].in_features) == (9, 9)
    added = (model[2].weight[:, [0, 5, 11]] @ model[1](model[0].bias[[0, 5, 11]])).detach()
    torch.testing.assert_close(small[2].bias.detach(), model[2].bias.detach() + added)


def test_a_layer_without_bias_gets_one_where_a_constant_needs_it():
    model = nn.Sequential(nn.Linear(6, 12), nn.Sigmoid(), nn.Linear(12, 4, bias=False))
    small = check(masked(model, _0=[1, 2]), 3, 6)
    assert shapes(small)["2"] == (4, 10) and small[2].bias is not None and model[2].bias is None
    model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False))
    small = check(masked(model, _0=[1, 2]), 3, 6)
    assert shapes(small)["2"] == (4, 10) and small[2].bias is None  # tanh(0) adds nothing


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


class Block(nn.Module):
    """A residual block; its sum is with the input, or with a projection of it."""

    def __init__(self, inp, out, project, bias=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inp, out, 3, padding=1, bias=bias), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1, bias=bias), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(inp, out, 1, bias=bias) if project else nn.Identity()

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.short(x)
        return F.relu(y)


def residual(project):
    out = 12 if project else 8
    blocks = [Block(8, out, project), Block(out, out, False)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(out, 5),
    )


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


def test_constants_beside_zero_padding_become_one_and_unpadded_go():
    for padding, mode, left in [(1, "zeros", 5), (0, "zeros", 4), (1, "reflect", 4), (1, "replicate", 4)]:
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=padding, padding_mode=mode)
        )
        small = check(masked(lively(model), _0=[1, 4]), 2, 3, 8, 8, others=[(1, 3, 6, 7)])
        assert shapes(small)["0"][0] == left and shapes(small)["3"][1] == left
    # Where the image is a single pixel the border cannot be seen, and still counts.
    model = masked(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1, padding=1), nn.AvgPool2d(3)), _0=[1])
    assert shapes(check(model, 2, 3, 1, 1, others=[(2, 3, 4, 4)]))["0"][0] == 6
    model[0].bias.data[1] = 0
    assert shapes(check(model, 2, 3, 1, 1, others=[(2, 3, 4, 4)]))["0"][0] == 5
    # Nor that of a row that adds up such a constant.
    rows = torch.ones(4, 6, 3, 3, dtype=torch.bool)
    rows[0, [0, 2, 3, 4, 5]] = False
    model = masked(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 2, 1)), _0=[1])
    convert(model, {"1": Mask.from_dense(rows)})
    assert shapes(check(model, 2, 3, 1, 1, others=[(2, 3, 4, 4)]))["1"] == (4, 6, 3, 3)


def test_one_constant_stands_for_others_in_a_padded_convolution():
    def model(holes=None):
        last = nn.Conv2d(4, 2, 1)
        parts = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 4, 3, 2, padding=1, dilation=2), last
        made = masked(lively(nn.Sequential(*parts)), _0=[1, 2, 5, 6])
        return made if holes is None else convert(made, {"3": Mask.from_dense(holes)})

    first = model()
    constants = torch.sigmoid(F.batch_norm(first[0].bias[None], *list(first[1].buffers())[:2], *first[1].parameters()))
    small = check(first, 2, 3, 8, 8, others=[(1, 3, 5, 6)])
    assert shapes(small)["0"][0] == 5 and shapes(small)["3"] == (4, 5, 3, 3)
    largest = max([1, 2, 5, 6], key=lambda channel: float(constants[0, channel].detach()))
    assert torch.equal(small[0].bias, first[0].bias[sorted([0, 3, 4, 7, largest])])  # none is magnified
    holes = torch.rand(4, 8, 3, 3) > 0.7
    holes[3, [1, 2, 5, 6]] = False
    first = model(holes)
    small = check(first, 2, 3, 8, 8)
    assert small[3].weight.shape == (4, 5, 3, 3) and type(small[3]) is MaskedConv2d
    carrier = next(i for i in range(5) if bool(small[0].weight[i].eq(0).all()))
    assert torch.equal(small[3].mask.dense()[:, carrier], holes[:, [1, 2, 5, 6]].any(1))

    class Shared(nn.Module):
        """A weight that another layer has too is left as it is."""

        def __init__(self):
            super().__init__()
            self.first, self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 3)
            self.other.weight = self.one.weight

        def forward(self, x):
            x = self.first(x)
            return self.one(x)[..., 1:-1, 1:-1] + self.other(x)

    assert shapes(check(masked(Shared(), first=[0, 1]), 2, 3, 6, 6))["first"][0] == 8


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


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity(), nn.Upsample(scale_factor=2), nn.AdaptiveMaxPool2d(3)]
)
def test_flatten_before_a_linear_layer(pool):
    size = pool(torch.zeros(1, 1, 4, 4)).numel()
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Sigmoid(), pool, nn.Flatten(), nn.Linear(6 * size, 4))
    small = check(masked(model, _0=[0, 4]), 2, 3, 4, 4)
    assert shapes(small) == {"0": (4, 3, 3, 3), "4": (4, 4 * size)}


def test_average_pooling_over_zeros_at_the_border():
    for include in (False, True):
        pool = nn.AvgPool2d(3, 2, 1, count_include_pad=include)
        model = nn.Sequential(nn.Conv2d(3, 6, 1), pool, nn.Conv2d(6, 4, 1))
        small = check(masked(model, _0=[0, 4]), 2, 3, 1, 1, others=[(2, 3, 7, 7), (2, 3, 6, 4)])
        assert shapes(small)["0"][0] == 6


def test_padding_by_a_number():
    model = masked(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3)), _0=[0, 4, 5])
    model[0].bias.data[[0, 4, 5]] = torch.tensor([-1.0, 0.0, 1.0])
    assert shapes(check(model, 2, 3, 5, 5))["3"] == (4, 4, 3, 3)  # the last is not 0, as what is beside it

    class Widened(nn.Module):
        """A residual block with more channels than its input, to which channels of zeros are added."""

        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(F.pad(x, (0, 0, 0, 0, 2, 2)) + self.conv(x))

    small = check(unread(masked(Widened(), stem=[1], conv=[0, 3]), "head", [5]), 2, 3, 5, 5)
    assert shapes(small) == {"stem": (3, 3, 1, 1), "conv": (7, 3, 1, 1), "head": (2, 7, 1, 1)}


def test_sums_over_images_of_any_size():
    class Summed(nn.Module):
        def __init__(self, reduce):
            super().__init__()
            self.conv, self.reduce, self.last = nn.Conv2d(3, 6, 1), reduce, nn.Linear(6, 4)

        def forward(self, x):
            return self.last(self.reduce(self.conv(x), (2, 3)))

    for reduce, left in [(torch.sum, 6), (torch.mean, 4), (torch.amax, 4)]:
        small = check(masked(Summed(reduce), conv=[0, 4]), 2, 3, 4, 4, others=[(2, 3, 7, 5)])
        assert shapes(small)["conv"][0] == left


class Computed(nn.Module):
    """A weight, or a bias, that comes from the input."""

    def __init__(self, bias):
        super().__init__()
        self.first, self.weight, self.last = nn.Linear(6, 5), nn.Linear(6, 7), nn.Linear(7, 4)
        self.bias = nn.Linear(6, 7) if bias else None
        self.image, self.flat = nn.Conv2d(1, 7, 1), nn.Conv2d(7, 4, 1)

    def forward(self, x):
        if self.bias is None:
            return self.last(self.first(x) @ self.weight(x))
        return self.flat(F.conv2d(x[:, None, None], self.image.weight, self.bias(x.mean(0, True))[0]))


def test_products_with_what_comes_from_the_input():
    model = masked(Computed(False), first=list(range(5)))
    assert shapes(check(model, 5, 6))["last"] == (4, 7)
    assert shapes(check(masked(Computed(True), image=[0, 3]), 5, 6))["flat"][1] == 7


def test_a_bias_of_two_layers_is_left_alone():
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8))
    model[4].bias = model[2].bias
    small = check(masked(model, _0=[0, 1]), 3, 6)
    assert shapes(small)["0"] == (8, 6) and small[4].bias is small[2].bias
    model[0].bias.data[0] = -200  # of which the sigmoid makes zero
    assert shapes(check(model, 3, 6))["0"] == (7, 6)


def test_transformers_lose_hidden_features():
    layer = nn.TransformerEncoderLayer(8, 2, 24, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)).eval()
    dead = {"_1__layers__0__linear1": [0, 1, 2], "_1__layers__1__linear1": [23]}
    small = check(masked(model, **dead), 2, 7, 5, others=[(3, 4, 5)])
    sizes = shapes(small)
    assert sizes["1.layers.0.linear1"] == (21, 8) and sizes["1.layers.0.linear2"] == (8, 21)
    assert sizes["1.layers.1.linear1"] == (23, 8)
    assert small[1].layers[0].activation_relu_or_gelu == 1  # the fast path, which the masks had turned off


class Gated(nn.Module):
    """A product of two hidden layers, as in many language models, and channels that are weighted by their mean."""

    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 12), nn.Linear(6, 12, bias=False), nn.Linear(12, 6)
        self.squeeze, self.excite = nn.Linear(12, 3), nn.Linear(3, 12)
        self.scale = nn.Parameter(torch.randn(12))

    def forward(self, x):
        y = F.silu(self.gate(x)) * self.up(x) * self.scale
        return self.down(y * torch.sigmoid(self.excite(F.relu(self.squeeze(y)))))


def test_products_with_zero_and_bare_parameters():
    small = check(masked(Gated(), gate=[0, 1, 7]), 4, 6)
    assert small.scale.shape == (9,) and isinstance(small.scale, nn.Parameter)
    assert shapes(small) == {
        "up": (9, 6), "gate": (9, 6), "down": (6, 9), "squeeze": (3, 9), "excite": (9, 3),
    }  # fmt: skip
    assert shapes(check(masked(Gated(), up=[0, 1]), 4, 6))["down"] == (6, 12)  # the bias times what the gate lets in


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


def test_what_is_written_in_place_is_no_constant_any_more():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            y = self.first(x)
            y.view(-1).add_(x.mean())
            return self.last(y)

    assert shapes(check(masked(Written(), first=[0, 3]), 5, 6))["first"][0] == 8


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


def test_what_stays_of_parameters_and_modes():
    from maskfuse.nn import freeze, frozen_mask

    model = masked(mlp(nn.ReLU()), _0=[0, 1]).train()
    model[1].eval()
    model[2].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    frozen = torch.rand(4, 12) > 0.5
    freeze(model[2].weight, frozen)
    small = compact(model, torch.randn(3, 6))
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [True, True, False, False]
    assert torch.equal(frozen_mask(small[2].weight).dense(), frozen[:, 2:])
    small(torch.randn(3, 6)).sum().backward()
    assert small[0].weight.grad.shape == (10, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model = masked(mlp(nn.SiLU()), _0=[0, 1, 2]).to(dtype)
    x = torch.randn(5, 6, dtype=dtype)
    small = compact(model, x)
    assert small[0].weight.shape == (9, 6) and small[2].bias.dtype == dtype
    close = {torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(small(x), model(x), rtol=close, atol=close)


def test_inputs_as_arguments_and_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x, y=None):
            return {"sum": [self.last(F.relu(self.first(x + y)))], "mean": (y.mean(), 3, None)}

    model = masked(Two(), first=[0])
    x, y = torch.randn(3, 6), torch.randn(3, 6)
    for inputs in ((x, y), [x, y], {"x": x, "y": y}):
        assert compact(model, inputs).first.weight.shape == (7, 6)


def test_inference_mode_and_packed_weights():
    model = masked(mlp(nn.Sigmoid()), _0=[0, 1]).eval()
    model[0].pack()
    with torch.inference_mode():
        x = torch.randn(3, 6)
        small = compact(model, x)
        torch.testing.assert_close(small(x), model(x))
    assert small[0].weight.shape == (10, 6) and not any(p.is_inference() for p in small.parameters())


def test_random_numbers_and_buffers_are_left_alone():
    model = masked(
        lively(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))), _0=[0]
    ).train()
    state, means = torch.get_rng_state(), model[1].running_mean.clone()
    x = torch.randn(4, 6)
    torch.set_rng_state(state)
    small = compact(model, x)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(model[1].running_mean, means)
    assert torch.equal(small[1].running_mean, means[1:])


def test_what_was_cut_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="maskfuse"):
        compact(masked(mlp(nn.ReLU()), _0=[0, 1]), torch.randn(3, 6))
    assert [record.getMessage() for record in caplog.records] == [
        "compact: 0.weight [12, 6] -> [10, 6]",
        "compact: 0.bias [12] -> [10]",
        "compact: 2.weight [4, 12] -> [4, 10]",
    ]
