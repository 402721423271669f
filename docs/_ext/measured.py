"""Tables of bench/results/*.json on a page: `{measured} linear` is the function of that name in `figures.py`.

So no figure is written by hand, and none is older than its file. Under a table stand the command that measures it,
the machine and the date, from the file too.
"""

from __future__ import annotations

import json

import figures
from records import RESULTS, command_of, conditions, date_of, machine_of, on_gpu
from sphinx.util.docutils import SphinxDirective


def source(result: dict) -> str:
    """Where figures come from, as a line of Markdown."""
    if on_gpu(result):
        machine = f"{machine_of(result)}, torch {result['versions']['torch']}"
    else:
        info = result["machine"]
        machine = f"{info['processor']} ({info['processors']} virtual processors), {conditions(result)}"
    return f"*`{command_of(result)}`, {date_of(result)}: {machine}.*"


class Measured(SphinxDirective):
    """`{measured} NAME`."""

    required_arguments = 1

    def run(self):
        """The table as nodes."""
        table = getattr(figures, self.arguments[0].replace("-", "_"), None)
        if table is None or not hasattr(table, "file"):
            raise self.error(f"figures.py has no table {self.arguments[0]!r}")
        path = RESULTS / f"{table.file}.json"
        self.env.note_dependency(str(path))
        self.env.note_dependency(figures.__file__)
        result = json.loads(path.read_text())
        lines = [*table(result), "", source(result)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    """Called by Sphinx."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
