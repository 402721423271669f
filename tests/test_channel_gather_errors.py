"""Bad input of channel_gather and channel_scatter, and of the ops below them."""

from __future__ import annotations

import pytest
import torch
from maskfuse import channel_gather, channel_scatter

X, Y = torch.randn(3, 8, 2), torch.randn(3, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: channel_gather([1], torch.tensor([0])), TypeError, "input must be a tensor, got list"),
        (lambda: channel_gather(X[0, 0], torch.tensor([0])), ValueError, r"input must have shape \[N, C, ...\].*\[2\]"),
        (lambda: channel_gather(X, [0, 1]), TypeError, "channels must be a slice, a range or a tensor, got list"),
        (lambda: channel_gather(X, None), TypeError, "channels must be a slice.*NoneType"),
        (lambda: channel_gather(X, 3), TypeError, "channels must be a slice.*int"),
        (
            lambda: channel_gather(X, torch.tensor([0.5])),
            TypeError,
            r"channels must be bool or integers.*float32.*\[1\]",
        ),
        (lambda: channel_gather(X, torch.tensor(1)), ValueError, r"channels must have shape \[K\] or \[B, K\].*\[\]"),
        (lambda: channel_gather(X, torch.zeros(1, 1, 1).long()), ValueError, r"channels must have.*\[1, 1, 1\]"),
        (
            lambda: channel_gather(X, torch.ones(7, dtype=torch.bool)),
            ValueError,
            r"bool channels must have shape \[8\], got bool tensor \[7\]$",
        ),
        (lambda: channel_gather(X, torch.ones(3, 8, dtype=torch.bool)), ValueError, "channel_select takes a mask"),
        (
            lambda: channel_gather(X, torch.tensor([0, 8])),
            IndexError,
            r"channels has index 8, out of range for size 8: channels is int64 tensor \[2\], "
            r"input is float32 tensor \[3, 8, 2\]",
        ),
        (lambda: channel_gather(X, torch.tensor([0, -9], dtype=torch.int32)), IndexError, "index -9.*int32"),
        (lambda: channel_gather(X, torch.tensor([-(2**63)])), IndexError, "index -9223372036854775808"),
        (lambda: channel_gather(X, torch.tensor([2**63 + 1], dtype=torch.uint64)), IndexError, "channels has index"),
        (lambda: channel_gather(X, torch.tensor([2**32])), IndexError, "index 4294967296"),
        (lambda: channel_gather(X, torch.tensor([0]), torch.tensor([3])), IndexError, "batch has index 3.*size 3"),
        (lambda: channel_gather(X, torch.tensor([0]), torch.zeros(1, 1).long()), ValueError, r"batch must.*\[B\]"),
        (lambda: channel_gather(X, torch.tensor([0]), 1), TypeError, "batch must be a slice, a range or a tensor"),
        (lambda: channel_gather(X, torch.zeros(2, 1).long()), ValueError, r"\[K\] or \[3, K\] for 3 samples.*\[2, 1\]"),
        (
            lambda: channel_gather(X, torch.zeros(3, 1).long(), torch.tensor([0])),
            ValueError,
            r"\[K\] or \[1, K\] for 1 samples.*\[3, 1\]",
        ),
        (lambda: channel_gather(X, range(9)), IndexError, r"channels is range\(0, 9\), out of range for size 8"),
        (lambda: channel_gather(X, range(-9, -1)), IndexError, "out of range for size 8"),
        (lambda: channel_gather(X, range(-1, 2)), ValueError, "must not run from negative"),
        (lambda: channel_gather(X, range(3, 0, -1)), ValueError, "channels must have a positive step"),
        (lambda: channel_gather(X, slice(None, None, -1)), ValueError, "channels must have a positive step"),
        (lambda: channel_gather(X, slice(None, None, 0)), ValueError, "channels must have a positive step"),
        (lambda: channel_gather(X, slice(None), slice(3, 0, -1)), ValueError, "batch must have a positive step"),
        (
            lambda: channel_gather(X, torch.zeros(1, device="meta").long()),
            ValueError,
            "channels and input.*meta and cpu",
        ),
        (lambda: channel_scatter(Y, torch.tensor([1, 1]), 8), ValueError, "channels must name each.*index 1 twice"),
        (lambda: channel_scatter(Y, torch.tensor([7, -1]), 8), ValueError, "channels must name each.*index 7 twice"),
        (lambda: channel_scatter(Y, torch.tensor([[1, 2], [0, 1], [3, 3]]), 8), ValueError, "index 3 twice"),
        (lambda: channel_scatter(Y, torch.tensor([1, 8]), 8), IndexError, "channels has index 8"),
        (lambda: channel_scatter(Y, torch.tensor([1]), 8), ValueError, "channels must name as many channels.*2, got 1"),
        (lambda: channel_scatter(Y, slice(0, 3), 8), ValueError, "as many channels as input has, 2, got 3"),
        (lambda: channel_scatter(Y, torch.ones(8).bool(), 8), ValueError, "as many channels as input has, 2, got 8"),
        (lambda: channel_scatter(Y, torch.ones(7).bool(), 8), ValueError, r"bool channels must have shape \[8\]"),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), 8.0), TypeError, "num_channels must be an int, got float"),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), True), TypeError, "num_channels must be an int, got bool"),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), -8), ValueError, "num_channels must be at least 0, got -8"),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, batch_size=4),
            ValueError,
            "batch_size without batch.*3.*4",
        ),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1, 2, 0])),
            ValueError,
            "batch_size is needed",
        ),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, slice(3)), ValueError, "batch_size is needed.*slice"),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1, 2, 1]), 5),
            ValueError,
            r"batch must name each entry once, got index 1 twice: batch is int64 tensor \[3\], input is "
            r"float32 tensor \[3, 2, 2\]",
        ),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1, 2, 5]), 5),
            IndexError,
            "batch has index 5",
        ),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1]), 5),
            ValueError,
            "as many samples.*3, got 1",
        ),
    ],
)
def test_bad_input(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()


OPS = torch.ops.maskfuse


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPS.channel_gather(X, torch.tensor([0]), 7, None, 3), r"3 samples of 7 channels, got \[3, 8, 2\]"),
        (lambda: OPS.channel_gather(X, torch.tensor([0.0]), 8, None, 3), "channels must be Int or Long, got Float"),
        (lambda: OPS.channel_gather(X[0, 0], torch.tensor([0]), 8, None, 3), r"shape \[samples, channels, ...\]"),
        (lambda: OPS.channel_gather(X, torch.zeros(2, 1).long(), 8, None, 3), r"\[3, channels\], got \[2, 1\]"),
        (lambda: OPS.channel_gather(X, torch.tensor(0), 8, None, 3), r"channels must have shape.*got \[\]"),
        (lambda: OPS.channel_gather(X, torch.tensor([0]), 8, torch.tensor(0), 3), r"batch must have shape.*got \[\]"),
        (lambda: OPS.channel_gather(X, torch.tensor([0]), 8, torch.tensor([3]), 3), r"batch \[1\] has index 3"),
        (
            lambda: OPS.channel_scatter(Y, torch.tensor([0]), 8, None, 3, True),
            r"\[3, 2, 2\] does not fit channels \[1\]",
        ),
        (lambda: OPS.channel_scatter(Y, torch.tensor([0, 1]), 8, None, 4, True), r"4 samples, got \[3, 2, 2\]"),
        (lambda: OPS.channel_scatter(Y, torch.tensor([0, 1]), -1, None, 3, True), "num_channels must be at least 0"),
        (lambda: OPS.channel_scatter(Y, torch.tensor([0, 0]), 8, None, 3, True), r"channels \[2\] has an index twice"),
        (
            lambda: OPS.channel_scatter(Y, torch.tensor([0, 1]), 8, torch.tensor([1]), 3, True),
            r"batch must have shape \[3\]",
        ),
    ],
)
def test_bad_input_of_the_ops(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
