"""`{kernels}` on a page: every kernel that `explain` may name, and what it does."""

from __future__ import annotations

import sys

import maskfuse
from records import table
from sphinx.util.docutils import SphinxDirective


class Kernels(SphinxDirective):
    """`{kernels}`."""

    def run(self):
        """The table as nodes."""
        kernels = sys.modules[maskfuse.explain.__module__]._KERNELS
        rows = [[f"`{name}`", what] for name, what in kernels.items()]
        return self.parse_text_to_nodes("\n".join(table(["kernel", "what it does"], rows)))


def setup(app):
    """Called by Sphinx."""
    app.add_directive("kernels", Kernels)
    return {"parallel_read_safe": True}
