"""Ways to copy what can be copied, for tests of what the copies are."""

from __future__ import annotations

import copy
import io
import pickle

import torch


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def through_a_file(value, weights_only=False):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


COPIES = (copy.deepcopy, pickled, through_a_file)
