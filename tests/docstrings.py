"""Public names of the package, and docstrings in Google's style taken apart, for `test_docstrings.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import maskfuse
from maskfuse import distributed, functional, nn, optim, reference, schedule
from maskfuse._report.report import Report
from maskfuse._report.rows import Bytes, Call, LayerReport, Mention, Totals
from maskfuse._self_test.run import Outcome, SelfTest
from maskfuse.info import Explanation

MODULES = (maskfuse, nn, functional, optim, schedule, distributed, reference)
# Not in `__all__`, but what public functions return, and what that holds.
RETURNED = (Explanation, Report, LayerReport, Bytes, Call, Mention, Totals, SelfTest, Outcome)

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Warns)\b[^:]*:$")
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.+)", re.DOTALL)


@dataclass(frozen=True)
class Docstring:
    """Prose, and sections: of `Args`, `Attributes`, `Raises` and `Warns` an entry a name, of others text."""

    text: str
    prose: str
    sections: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The sentence that says what it is."""
        return re.split(r"(?<=[.:;])\s|\n\n", self.text, maxsplit=1)[0]

    def entries(self, section: str) -> dict[str, str]:
        """What a section says of each name in it; a name's text is indented further than the name."""
        found = {}
        for block in re.split(r"\n(?=\S)", self.sections.get(section, "")):
            match = _ENTRY.match(block)
            if match:
                found.update((name.lstrip("*"), match[2]) for name in match[1].split(", "))
        return found


def parse(text: str) -> Docstring:
    """Takes a docstring apart."""
    prose, sections, current = [], {}, None
    for line in inspect.cleandoc(text).split("\n"):
        header = _SECTION.match(line)
        if header:
            current = sections.setdefault(header[1], [])
        elif current is not None and line and not line.startswith(" "):
            current = None
            prose.append(line)
        elif current is not None:
            current.append(line[4:])
        else:
            prose.append(line)
    return Docstring(inspect.cleandoc(text), "\n".join(prose), {k: "\n".join(v).strip() for k, v in sections.items()})


@dataclass(frozen=True)
class Public:
    """A public name: a function, a class (whose docstring speaks of its constructor), a method or a property."""

    name: str
    kind: str
    of: Any
    text: str | None

    @property
    def doc(self) -> Docstring:
        """Its docstring, taken apart."""
        return parse(self.text or "")

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What it is called with, without `self`."""
        if self.kind == "property":
            return {}
        found = inspect.signature(self.of).parameters
        return {name: p for name, p in found.items() if not (self.kind == "method" and name in ("self", "cls"))}

    @property
    def returns(self) -> str:
        """The annotation of what it returns; "" for a class."""
        function = self.of.fget if self.kind == "property" else self.of
        return "" if self.kind == "class" else str(getattr(function, "__annotations__", {}).get("return", "None"))

    def __str__(self) -> str:
        return self.name


def _members(cls: type, name: str) -> Iterator[Public]:
    """What this package defines of a class: what is torch's own is torch's to document."""
    for attribute in dir(cls):
        if attribute.startswith("_"):
            continue
        owner = next(base for base in cls.__mro__ if attribute in vars(base))
        value = vars(owner)[attribute]
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not (isinstance(function, Callable) and getattr(function, "__module__", "").startswith("maskfuse")):
            continue
        if inspect.isclass(function):
            continue
        kind = "property" if isinstance(value, property) else "static" if isinstance(value, staticmethod) else "method"
        of = value if kind == "property" else function
        yield Public(f"{name}.{attribute}", kind, of, value.__doc__ if kind == "property" else function.__doc__)


def _all() -> Iterator[Public]:
    seen: set[Any] = set()
    named = [(f"{m.__name__}.{n}", getattr(m, n)) for m in reversed(MODULES) for n in m.__all__]
    named += [(cls.__name__, cls) for cls in RETURNED]
    for name, value in named:
        if isinstance(value, ModuleType) or value in seen:
            continue
        seen.add(value)
        name = name.removeprefix("maskfuse.")
        yield Public(name, "class" if inspect.isclass(value) else "function", value, value.__doc__)
        if inspect.isclass(value):
            for member in _members(value, name):
                if member.of not in seen:  # an inherited one is documented where it is defined
                    seen.add(member.of)
                    yield member


PUBLIC = list(_all())
