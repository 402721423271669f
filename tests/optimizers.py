"""Every optimizer of torch.optim with the options that switch its code on, and what their tests share."""

from __future__ import annotations

import inspect

import torch
from torch import optim

# Optimizers that update each weight by its own gradient and state, and what switches their code on.
ELEMENTWISE = {
    "SGD": [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    "Adam": [{}, {"weight_decay": 0.1, "amsgrad": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "AdamW": [{}, {"weight_decay": 0.5, "amsgrad": True}, {"lr": "tensor"}],
    "NAdam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RMSprop": [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"centered": True, "momentum": 0.5}],
    "Adagrad": [{}, {"weight_decay": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}],
    "Adadelta": [{}, {"weight_decay": 0.1}],
    "Adamax": [{}, {"weight_decay": 0.1}],
    "ASGD": [{}, {"weight_decay": 0.1, "t0": 2}],
    "Rprop": [{}, {"etas": (0.4, 1.3)}],
}
TOGETHER = {  # optimizers whose update of a weight depends on others
    "Adafactor": [{}, {"weight_decay": 0.1}, {"foreach": False}, {"foreach": True}, {"maximize": True}],
    "Muon": [{}, {"nesterov": False, "weight_decay": 0.5}],
}


def takes(name, options):
    return set(options) <= set(inspect.signature(getattr(optim, name)).parameters)


def made(name, parameters, options):
    options = dict(options)
    if options.get("lr") == "tensor":
        options["lr"] = torch.tensor(0.05)
    return getattr(optim, name)(parameters, **{"lr": 0.05, **options})


def bits(t):
    t = t.detach().contiguous()
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def same_bits(a, b):
    return torch.equal(bits(a), bits(b))


def take_state(optimizer, source):
    """Gives an optimizer another one's state as it is; load_state_dict would cast some of it."""
    for theirs, ours in zip(source.param_groups, optimizer.param_groups, strict=True):
        for p, q in zip(theirs["params"], ours["params"], strict=True):
            optimizer.state[q] = {
                key: value.clone() if isinstance(value, torch.Tensor) else value
                for key, value in source.state[p].items()
            }


def trained(model, optimizer, steps=3, x=None):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 9) if x is None else x).pow(2).sum().backward()
        optimizer.step()
