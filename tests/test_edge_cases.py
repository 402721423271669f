"""Cases that are right but rare: nothing to mask, sizes left out, statistics that are not kept."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
from maskfuse import Mask
from maskfuse.nn import ChannelGate, CompactSequential, MaskedConv2d, MaskedLinear
from torch import nn


def test_n_of_m_nothing():
    mask = Mask.n_m(torch.empty(0, 8), 2, 4)
    assert mask.shape == (0, 8) and mask.active == 0


def test_scatter_into_the_samples_that_a_bool_names():
    batch, x = torch.tensor([True, False, True]), torch.randn(2, 3, 4)
    channels = torch.tensor([3, 0, 1])
    got = maskfuse.channel_scatter(x, channels, 5, batch=batch)
    want = torch.zeros(3, 5, 4)
    want[[[0], [2]], channels] = x
    assert torch.equal(got, want)


@pytest.mark.parametrize("none", [range(0), slice(2, 2)])
def test_gather_no_channels(none):
    assert maskfuse.channel_gather(torch.randn(2, 3, 4), none).shape == (2, 0, 4)


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_without_statistics_between_compact_layers(training):
    torch.manual_seed(0)
    flags = torch.tensor([True, False, True, True, False, True])
    first = MaskedConv2d(3, 6, 3, mask=Mask.channels((6, 3, 3, 3), out=flags))
    second = MaskedConv2d(6, 4, 3, mask=Mask.channels((4, 6, 3, 3), inp=flags))
    masked = nn.Sequential(first, nn.BatchNorm2d(6, track_running_stats=False), second).train(training)
    compact = CompactSequential(*copy.deepcopy(masked)).train(training)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(compact(x), masked(x))


def test_layers_that_do_not_fit_say_so():
    flags = torch.tensor([True, False, True])
    first = MaskedLinear(4, 3, mask=Mask.channels((3, 4), out=flags))
    second = MaskedLinear(5, 2, mask=Mask.channels((2, 5), inp=torch.arange(5) > 1))
    model = CompactSequential(first, second)
    with pytest.raises(ValueError, match="input"):
        model(torch.randn(6, 4))


def test_a_gate_loads_a_mask_without_values():
    gate = ChannelGate(torch.tensor([True, False, True]))
    gate.load_state_dict({key: value.to("meta") for key, value in gate.state_dict().items()}, assign=True)
    assert gate.mask.tolist() == [True, False, True]
