"""`{kernels}` on a page: every kernel that `explain` may name, and what it does. `{explained} OUT IN DENSITY BATCH`:
what it says of a random mask."""

from __future__ import annotations

import sys

import maskfuse
import torch
from docutils import nodes
from records import table
from sphinx.util.docutils import SphinxDirective


class Kernels(SphinxDirective):
    """`{kernels}`."""

    def run(self):
        """The table as nodes."""
        kernels = sys.modules[maskfuse.explain.__module__]._KERNELS
        rows = [[f"`{name}`", what] for name, what in kernels.items()]
        return self.parse_text_to_nodes("\n".join(table(["kernel", "what it does"], rows)))


class Explained(SphinxDirective):
    """`{explained} OUT IN DENSITY BATCH`."""

    required_arguments = 4

    def run(self):
        """What it prints on the machine that builds the page."""
        out, inp, density, batch = self.arguments
        generator = torch.Generator().manual_seed(0)
        mask = maskfuse.Mask.random((int(out), int(inp)), float(density), generator=generator)
        text = str(maskfuse.explain(mask, batch=int(batch)))
        return [nodes.literal_block(text, text, language="text")]


def setup(app):
    """Called by Sphinx."""
    app.add_directive("kernels", Kernels)
    app.add_directive("explained", Explained)
    return {"parallel_read_safe": True}
