"""How Sphinx builds these pages: `make docs`."""

import dataclasses
import re
import sys
import typing
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "python"), str(HERE.parent / "bench")]

import maskfuse  # noqa: E402

project = "maskfuse"
author = "the maskfuse authors"
copyright = author
release = maskfuse.build_info()["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "commands",
    "diagram",
    "kernels",
    "measured",
]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# `Mask` in a docstring is code, as it is on a Markdown page.
default_role = "literal"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Of bases: what this package adds to torch's classes, not what those have.
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module, Linear, Conv2d, Sequential, tuple",
    "show-inheritance": True,
}
python_maximum_signature_line_length = 100
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Returns, from a call", "returns_style")]
add_module_names = False

# Types in signatures that have no entry here: torch's, and names that annotations give to unions of them.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|os|collections)\..*"),
    ("py:.*", r"(maskfuse\.[\w.]+\.)?[A-Z]\w*"),
]

html_theme = "furo"
html_title = "maskfuse"
html_static_path = ["_static"]
html_css_files = ["maskfuse.css"]
html_copy_source = html_show_sourcelink = False


_written: dict[str, list[str]] = {}


def _before_napoleon(app, what, name, obj, options, lines):
    _written[name] = list(lines)


def _after_napoleon(app, what, name, obj, options, lines):
    """Napoleon takes what stands before a colon in a property's first line for its type: undone."""
    if what in ("property", "attribute"):
        lines[:] = _written[name]


def _public_bases(app, name, obj, options, bases):
    """Bases from this package are how a class is made, not what it is: a class of torch's that they are made of is."""
    own = [base for base in bases if base.__module__.startswith("maskfuse.")]
    others = [base for base in bases if base not in own]
    torchs = [cls for base in own for cls in base.__mro__ if cls.__module__.startswith("torch.")][:1]
    bases[:] = others or torchs or [object]


def _classes(app, what, name, obj, options, signature, returns):
    """A default that is a layer's class, as one would write it."""
    return (signature and re.sub(r"<class 'torch\.nn\.[\w.]+\.(\w+)'>", r"nn.\1", signature)), returns


def _own_members(app, what, name, obj, skip, options):
    """A layer's `plain` and `masked` are classes that have entries of their own."""
    return (
        True
        if what == "class" and isinstance(obj, type) and name in ("compact", "hardened", "masked", "plain")
        else skip
    )


# What they return has entries by itself.
ENTRIES = (maskfuse.explain, maskfuse.report, maskfuse.self_test)


def _records(cls):
    """A class, and the records that its fields hold."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from _records(part)


def _results(app, docname, source):
    """Entries of what functions return and of what that holds, wherever it is defined."""
    if docname == "api/results":
        made = (typing.get_type_hints(function)["return"] for function in ENTRIES)
        for result in dict.fromkeys(record for one in made for record in _records(one)):
            source[0] += f"\n```{{eval-rst}}\n.. autoclass:: {result.__module__}.{result.__qualname__}\n```\n"


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=900)
    app.connect("autodoc-process-bases", _public_bases)
    app.connect("autodoc-process-signature", _classes)
    app.connect("autodoc-skip-member", _own_members)
    app.connect("source-read", _results)
