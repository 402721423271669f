"""`{diagram} NAME` on a page is the picture of that name in `drawings.py`; its content is the caption."""

from __future__ import annotations

import drawings
from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Diagram(SphinxDirective):
    """`{diagram} NAME`."""

    required_arguments = 1
    has_content = True

    def run(self):
        """The picture in the page itself, where the theme's colours reach it."""
        draw = drawings.ALL.get(self.arguments[0])
        if draw is None:
            raise self.error(f"drawings.py has no picture {self.arguments[0]!r}")
        self.env.note_dependency(drawings.__file__)
        picture = draw().svg(draw.__doc__.strip().splitlines()[0])
        around = [nodes.raw("", end, format="html") for end in (f'<figure class="diagram">{picture}', "</figure>")]
        caption = self.parse_content_to_nodes()
        return [around[0], *caption, around[1]]


def setup(app):
    """Called by Sphinx."""
    app.add_directive("diagram", Diagram)
    return {"parallel_read_safe": True}
