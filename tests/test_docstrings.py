"""Every public name says what it takes, in which shapes and dtypes, what it returns and raises, and its source."""

from __future__ import annotations

import io
import re
from dataclasses import is_dataclass

import pytest
from bad_calls import BAD
from docstrings import MODULES, PUBLIC, Public, parse

BY_NAME = {public.name: public for public in PUBLIC}

# A shape, or in words which other argument's it is.
SHAPE = re.compile(r"`\[[^\]]*\]`|any (other )?shape|(the |whose )?(weight|mask|input|parameter)'s shape|\bscalar\b")
DTYPE = re.compile(r"\b(dtype|float(32|ing)?|bool|int(32|64|egers)?|`?Mask`?)\b")

# How the first sentence of something short says what it returns: it names the thing.
NAMES_A_THING = re.compile(
    r"^(`|\(|(A|An|The|What|Which|Whether|Where|How|Who|Number|Share|Size|Bytes|Bool|Plain|Text|True|Active|Masked)\b)"
)
IMPERATIVE = re.compile(r"^(Returns?|Gets?|Computes?|Gives?|Finds?|Makes?)\b")

# Methods that take arguments and check none, or leave that to what they hand them to.
UNCHECKED = {
    "schedule.SET.drop_fraction_at": "any number of steps has a share",
    "schedule.CubicSchedule.density_at": "any number of steps has a density",
    "nn.CompactSequential.forward": "its modules check",
    "Report.to_json": "any number of spaces will do",
    "optim.is_protected": "whatever was not protected is not",
    "nn.frozen_mask": "whatever was not frozen is not",
}

# What a name's docstring must have: the paper, by authors and year and where it has one its number, or the formula.
SOURCES = {
    "schedule.CubicSchedule": r"Zhu & Gupta 2017.*arXiv:1710\.01878.*Evci et al\. 2020",
    "schedule.SET": r"Mocanu et al\. 2018.*arXiv:1707\.04780",
    "schedule.SET.drop_fraction_at": r"1 \+ cos\(pi \* step / end\)",
    "schedule.RigL": r"cos\(pi \* step / end\).*Evci et al\. 2020.*arXiv:1911\.11134",
    "nn.Bypass": r"Huang et al\. 2016.*arXiv:1603\.09382.*Bengio et al\. 2013.*arXiv:1308\.3432",
    "nn.ChannelGate": r"Bengio et al\. 2013.*arXiv:1308\.3432.*Hua et al\. 2019.*Gao et al\. 2019",
    "nn.GatedLinear": r"Savarese et al\. 2020.*1912\.04427.*Bengio et al\. 2013.*Louizos et al\. 2018.*1712\.01312",
    "nn.GatedConv2d": r"`weight \* gate`.*`GatedLinear`'s",
    "nn.GatedConv2d.l1_penalty": r"Louizos et al\. 2018.*sum\(sigmoid\(scores - temperature \* log\(0\.1 / 1\.1\)\)\)",
    "functional.gated_linear": r"input @ \(weight \* sigmoid\(scores\)\)\.T \+ bias.*Savarese et al\. 2020",
    "functional.gated_conv2d": r"weight \* sigmoid\(scores\).*Savarese et al\. 2020",
    "functional.masked_linear": r"input @ where\(mask, weight, 0\)\.T \+ bias.*input @ \(weight \* mask\)\.T \+ bias",
    "functional.masked_conv2d": r"F\.conv2d\(input, where\(mask, weight, 0\).*F\.conv2d\(input, weight \* mask",
    "functional.mask_gradient": r"multiplies its gradient by the mask",
    "functional.channel_gather": r"input\[batch\]\[:, channels\]",
    "Mask.threshold": r"\|t\| > value.*Han et al\. 2015.*arXiv:1506\.02626",
    "Mask.topk": r"round\(density \* numel\)",
    "Mask.random": r"round\(density \* numel\)",
    "Mask.n_m": r"Mishra et al\. 2021.*arXiv:2104\.08378",
    "sync_masks": r"Izmailov et al\. 2018.*arXiv:1803\.05407.*Tarvainen & Valpola 2017",
}


def names(publics: list[Public]) -> list:
    return [pytest.param(public, id=public.name) for public in publics]


def is_checked(public: Public) -> bool:
    """Whether it takes arguments, which it may find bad: a record of what was found does not, nor the reference."""
    record = public.kind == "class" and (is_dataclass(public.of) or issubclass(public.of, tuple))
    if public.name.startswith("reference.") or public.name in UNCHECKED:
        return False
    return bool(public.parameters) and (not record or public.name == "Policy") and public.name != "Mask"


def tensors(public: Public) -> list[str]:
    """The arguments that may be tensors."""
    annotations = {name: str(parameter.annotation) for name, parameter in public.parameters.items()}
    return [name for name, text in annotations.items() if "Tensor" in text and "list" not in text]


def described(public: Public) -> dict[str, str]:
    """What is said of each argument, or attribute of a record."""
    return public.doc.entries("Args") | public.doc.entries("Attributes")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_modules(module):
    assert module.__doc__ and parse(module.__doc__).first.endswith((".", ":", ";"))
    assert sorted(set(module.__all__)) == sorted(module.__all__)


@pytest.mark.parametrize("public", names(PUBLIC))
def test_first_sentence(public):
    assert public.text, f"{public} has no docstring"
    assert len(public.doc.first.split()) > 1 and public.doc.first.rstrip()[-1] in ".:;", f"{public}: {public.doc.first}"
    assert public.text.count("`") % 2 == 0, f"{public} has a backtick without its other"


@pytest.mark.parametrize("public", names(PUBLIC))
def test_markup(public):
    """As the pages of the documentation are made of it: a warning there is a failure here."""
    napoleon, core = pytest.importorskip("sphinx.ext.napoleon"), pytest.importorskip("docutils.core")
    text = str(napoleon.GoogleDocstring(public.doc.text, napoleon.Config(napoleon_use_ivar=True)))
    said = io.StringIO()
    core.publish_doctree(text, settings_overrides={"report_level": 2, "halt_level": 5, "warning_stream": said})
    assert not said.getvalue(), f"{public}: {said.getvalue()}"


@pytest.mark.parametrize("public", names(PUBLIC))
def test_arguments(public):
    said = described(public)
    silent = [name for name in public.parameters if name not in said]
    assert not silent, f"{public} does not describe {silent}"
    unknown = [name for name in public.doc.entries("Args") if name not in public.parameters]
    assert not unknown, f"{public} describes {unknown}, which it does not take"


@pytest.mark.parametrize("public", names([p for p in PUBLIC if p.kind != "class" and p.returns != "None"]))
def test_returns(public):
    """A section; or of something short the first sentence: of a property, or what names the thing that it is."""
    if public.doc.sections.get("Returns") or "Iterator" in public.returns:
        return
    first = public.doc.first
    if public.kind == "property":
        assert not IMPERATIVE.match(first), f"{public} is read like an attribute: {first}"
    else:
        assert NAMES_A_THING.match(first) or "eturns " in public.doc.text, (
            f"{public} does not say what it returns: {first}"
        )


@pytest.mark.parametrize(
    "public", names([p for p in PUBLIC if any("Tensor" in str(q.annotation) for q in p.parameters.values())])
)
def test_shapes_and_dtypes(public):
    """Of each tensor; of results, where there is a section for them."""
    everything = public.doc.text
    for name, parameter in public.parameters.items():
        if "Tensor" not in str(parameter.annotation) or "list" in str(parameter.annotation):
            continue
        said = described(public)[name]
        assert SHAPE.search(said), f"{public} does not say the shape of {name}: {said}"
        assert DTYPE.search(said) or public.name.startswith("reference."), f"{public}: no dtype of {name}: {said}"
    if public.returns.startswith("Tensor") and public.doc.sections.get("Returns"):
        assert SHAPE.search(public.doc.sections["Returns"] + everything), (
            f"{public} does not say the shape of its result"
        )
        assert DTYPE.search(public.doc.sections["Returns"]), f"{public} does not say the dtype of its result"


@pytest.mark.parametrize("public", names([p for p in PUBLIC if is_checked(p)]))
def test_raises(public):
    """It says what it raises, and a bad call does raise it and names the argument."""
    said = {name for entry in public.doc.entries("Raises") for name in entry.split(", ")}
    assert said, f"{public} does not say what it raises"
    assert public.name in BAD, f"{public} has no bad call in bad_calls.py"
    call, message = BAD[public.name]
    with pytest.raises(Exception, match=message) as error:
        call()
    assert error.type.__name__ in said, f"{public} raises {error.type.__name__}, and says {sorted(said)}"


def test_bad_calls_are_of_public_names():
    assert set(BAD) == {public.name for public in PUBLIC if is_checked(public)}
    assert set(UNCHECKED) <= set(BY_NAME)


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name):
    text = " ".join(BY_NAME[name].doc.text.split())
    assert re.search(SOURCES[name], text), f"{name} must name {SOURCES[name]}"


def test_the_parser():
    doc = parse(
        """Does it: at once.

        Args:
            a, b: two
                lines.
            *c: more.

        Returns, from a call:
            `[N]`.

        Raises:
            ValueError: bad.
        """
    )
    assert doc.first == "Does it:"
    assert doc.entries("Args") == {"a": "two\n    lines.", "b": "two\n    lines.", "c": "more."}
    assert doc.sections["Returns"] == "`[N]`." and doc.entries("Raises") == {"ValueError": "bad."}
