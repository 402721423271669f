"""`{commands}` on a page: what `python -m maskfuse` and each of its commands say of themselves with --help."""

from __future__ import annotations

import contextlib
import io
import os
import re
from unittest import mock

from docutils import nodes
from maskfuse.__main__ import main
from sphinx.util.docutils import SphinxDirective


def help_of(*command: str) -> str:
    """The text of --help."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*command, "--help"])
    return printed.getvalue()


class Commands(SphinxDirective):
    """`{commands}`."""

    def run(self):
        """A section for each command."""
        listed = re.search(r"\{([\w,-]+)\}", help_of())
        if listed is None:
            raise self.error("python -m maskfuse --help lists no commands")
        sections = []
        for command in listed[1].split(","):
            section = nodes.section(ids=[nodes.make_id(command)], names=[command])
            section += nodes.title("", "", nodes.literal(text=command))
            section += nodes.literal_block("", help_of(command), language="text")
            sections.append(section)
        return sections


def setup(app):
    """Called by Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
