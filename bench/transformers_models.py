"""Whole models of the transformers package, random weights, dense and converted: forward and training step.

- An encoder: BERT's layers at their base size (Devlin et al. 2019: 768 wide, 12 heads, 3072 between), 4 of them unless
  `--layers` says otherwise, batch 1, 128 tokens. Masked are the six linear layers of each, 90 % of every one.
- ResNet-18 (He et al. 2016) on an image of 224 x 224, batch 1. Masked are all convolutions but the stem, 90 % of each.

`maskfuse.convert` makes the masked models of copies of the dense one; `maskfuse.pack` makes them ready for inference.
`--compile` adds `torch.compile` of both, which takes minutes. Contenders take turns; ratios above 1 mean that maskfuse
is faster than the dense model, the better of NCHW and channels_last of ResNets.

The last two columns say what bounds a ratio: `share` is the part of the dense model's time that the layers which
`convert` masks take when they are called alone, one behind another, on the inputs that they have in the model; `bound`
is the ratio if they took none (Amdahl's law). `--check` exits with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
from collections.abc import Callable, Iterable

import timing  # first: it pins the threads before torch starts them

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded

import maskfuse
import torch
import transformers
from torch import Tensor, nn

DENSITY = 0.1
TOKENS = 128
TARGETS = {("encoder", "forward", "packed"): 1.8}


def encoder(options: argparse.Namespace) -> tuple[nn.Module, Tensor, maskfuse.Policy]:
    """BERT without a head, token numbers `[1, TOKENS]`, and what is masked."""
    config = transformers.BertConfig(num_hidden_layers=options.layers, vocab_size=1000)
    model = transformers.BertModel(config, add_pooling_layer=False)
    return model, torch.randint(1000, (1, TOKENS)), maskfuse.Policy(names="encoder.*", density=DENSITY)


def resnet(options: argparse.Namespace) -> tuple[nn.Module, Tensor, maskfuse.Policy]:
    """ResNet-18, an image `[1, 3, 224, 224]`, and what is masked."""
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    policy = maskfuse.Policy(types=(nn.Conv2d,), exclude="*embedder*", density=DENSITY)
    return transformers.ResNetModel(config), torch.randn(1, 3, 224, 224), policy


MODELS = {"encoder": encoder, "ResNet-18": resnet}


def inference(model: nn.Module, x: Tensor) -> Callable[[], object]:
    model.eval()
    return torch.no_grad()(functools.partial(model, x))


def step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward, backward and a step of plain SGD, which no mask needs to be kept from."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def run() -> None:
        optimizer.zero_grad()
        model(x).last_hidden_state.square().mean().backward()
        optimizer.step()

    return run


def layers_alone(model: nn.Module, x: Tensor, names: Iterable[str]) -> Callable[[], object]:
    """Calls the named layers one behind another, on the inputs that they get in the model."""
    model.eval()
    calls: list[Callable[[], object]] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args: calls.append(functools.partial(layer.forward, args[0].clone()))
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def run() -> None:
        for call in calls:
            call()

    return run


def measured(name: str, made: tuple[nn.Module, Tensor, maskfuse.Policy], options: argparse.Namespace) -> list[dict]:
    """Rows of one model."""
    dense, x, policy = made
    convolutional = x.dim() == 4
    converted = maskfuse.convert(copy.deepcopy(dense), policy).eval()
    packed = maskfuse.pack(copy.deepcopy(converted))
    models = {"dense": dense, "converted": converted, "packed": packed}
    names = [n for n, module in converted.named_modules() if hasattr(module, "mask_bits")]
    weights = sum(converted.get_submodule(n).weight.numel() for n in names)
    torch.testing.assert_close(  # what is timed is right
        packed(x).last_hidden_state, maskfuse.fold(copy.deepcopy(converted))(x).last_hidden_state, rtol=1e-3, atol=1e-3
    )

    formats = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last} if convolutional else {"": None}
    calls: dict[tuple[str, str, str], Callable[[], object]] = {}
    for form, memory_format in formats.items():
        placed = x if memory_format is None else x.to(memory_format=memory_format)
        for label, model in models.items():
            if memory_format is torch.channels_last:
                model = copy.deepcopy(model).to(memory_format=memory_format)
                model = maskfuse.pack(model) if label == "packed" else model
            calls["forward", label, form] = inference(model, placed)
            if options.compile and label != "converted":
                calls["forward", f"{label}, compiled", form] = inference(torch.compile(model), placed)
            if label != "packed":
                calls["step", label, form] = step(model, placed)
            if memory_format is not torch.channels_last and label != "converted":
                calls["layers alone", label, form] = layers_alone(model, placed, names)

    rows = []
    for section in ("forward", "step"):
        chosen = {key: call for key, call in calls.items() if key[0] == section}
        alone = {key: call for key, call in calls.items() if key[0] == "layers alone" and section == "forward"}
        times = timing.compare(chosen | alone, options.budget * len(chosen), min_rounds=7)
        best = min((times[key] for key in chosen if key[1] == "dense"), key=lambda t: t.median)
        for key in chosen:
            _, label, form = key
            row = {"model": name, "section": section, "is": label, "format": form, "masked layers": len(names)}
            row |= {"masked weights": weights, "density": DENSITY, "ms": times[key].median * 1e3}
            row |= {"vs dense": timing.ratio(best, times[key]), "spread": times[key].spread}
            if ("layers alone", label, form) in alone:
                share = 1 / timing.ratio(times[key], times["layers alone", label, form])
                row |= {"share": share} | ({"bound": 1 / (1 - share)} if label == "dense" else {})
            rows.append(row)
    return rows


def main() -> int:
    parser = timing.arguments(__doc__, "one layer of the encoder alone")
    parser.add_argument("--layers", type=int, default=4, help="layers of the encoder (4)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which ones (all)")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the models too")
    parser.set_defaults(budget=4.0)
    options = timing.parsed(parser)
    if options.quick:
        options.models, options.layers = ["encoder"], 1
    rows = []
    for name in timing.progress(options.models):
        rows += measured(name, MODELS[name](options), options)
    columns = {"model": "s", "section": "s", "is": "s", "format": "s", "masked layers": "d"}
    columns |= {"ms": ".1f", "vs dense": ".2f", "spread": ".0%", "share": ".0%", "bound": ".1f"}
    timing.table(f"transformers, float32, {options.threads} threads (vs dense: above 1 is faster)", rows, columns)
    checked = [
        (f"{model}, {section}, {what}", row["vs dense"], least)
        for (model, section, what), least in TARGETS.items()
        for row in rows
        if (row["model"], row["section"], row["is"]) == (model, section, what)
    ]
    lines = timing.verdicts(checked)
    about = {"layers": options.layers, "tokens": TOKENS, "transformers": transformers.__version__}
    path = timing.write("transformers_models", rows, options.output, **about, targets=lines)
    return timing.report(lines, path, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
