"""compact: channels that hold a constant, and where they only seem to."""

from __future__ import annotations

import pytest
import torch
from compacts import check, lively, masked, mlp, shapes, unread
from maskfuse import Mask, convert
from maskfuse._compact.trace import Trace
from maskfuse.nn import MaskedConv2d
from torch import nn
from torch.nn import functional as F


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


def test_constants_are_read_where_they_are_one_value():
    trace = Trace(nn.Linear(1, 1), {})
    one = torch.tensor(1.0)
    after = torch.nextafter(one, one + 1)  # a kernel's last lanes may round otherwise
    out = torch.tensor([[1.0, 1.0, 2.0, 0.0, 0.0, torch.inf, 5.0], [1.0, after, 3.0, 1e-30, -0.0, torch.inf, 5.0]])
    still = torch.tensor([True] * 6 + [False])
    values = trace.observed(out, 1, still).values
    assert torch.equal(values.nan_to_num(-1), torch.tensor([1.0, 1.0, -1, -1, 0, -1, -1], dtype=torch.float64))
    assert trace.observed(out, 1, ~still & False) is None and trace.observed(out[:0], 1, still) is None
