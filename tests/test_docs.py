"""The documentation builds, and the Python on its pages runs. CONTRIBUTING.md has the rule for blocks."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import inspect
import io
import os
import re
import subprocess
import sys
import zlib

import docs_pages
import maskfuse
import pytest
import torch
from docstrings import RETURNED

HAS_SPHINX = all(importlib.util.find_spec(name) for name in ("sphinx", "myst_parser", "furo"))
MODULES = [maskfuse, *filter(inspect.ismodule, (getattr(maskfuse, name) for name in maskfuse.__all__))]


def run(block: docs_pages.Block, page: str, namespace: dict) -> None:
    """Runs a block as if it stood alone in its file, and compares what it prints or raises with what the page shows."""
    code = compile("\n" * block.line + block.code, page, "exec")
    printed = io.StringIO()
    if block.raises:
        with pytest.raises(Exception) as caught:
            exec(code, namespace)
        assert type(caught.value).__name__ == block.raises
        printed.write(f"{caught.value}\n")
    else:
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
    if block.output is not None and not doctest.OutputChecker().check_output(
        block.output, printed.getvalue(), doctest.ELLIPSIS
    ):
        pytest.fail(f"{page}:{block.line + 1} shows\n{block.output}\nbut gives\n{printed.getvalue()}", pytrace=False)


@pytest.mark.parametrize("page", [page for page in docs_pages.pages() if docs_pages.blocks(page)], ids=docs_pages.name)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    namespace = {"__name__": page.stem}
    for block in docs_pages.blocks(page):
        run(block, docs_pages.name(page), namespace)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages as HTML, built as `make docs` does."""
    if not docs_pages.pages() or not HAS_SPHINX:
        pytest.skip("needs docs/ and sphinx, myst-parser and furo")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    # Without Triton's interpreter, which conftest.py turns on: pages are about compiled kernels.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    built = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(docs_pages.DOCS), str(folder / "html")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-4000:]
    return folder / "html"


@pytest.mark.slow
def test_site_builds_without_warnings(site):
    assert (site / "index.html").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(site, module):
    # Four lines of text, then compressed ones: "name domain:kind ...".
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    known = {line.split()[0] for line in inventory.splitlines() if line.split()[1].startswith("py:")}
    missing = [name for name in module.__all__ if f"{module.__name__}.{name}" not in known]
    assert not missing, f"docs/api/ has no entry of {missing} in {module.__name__}"


@pytest.mark.slow
def test_entries_say_what_there_is(site):
    """Fields of what functions return; a layer is a module; defaults as one writes them."""
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    missing = [record.__name__ for record in RETURNED if f".{record.__name__} py:class" not in inventory]
    assert not missing
    text = {path.stem: re.sub(r"<[^>]*>", "", path.read_text()) for path in (site / "api").glob("*.html")}
    assert "Bases: object" not in text["nn"] and text["nn"].count("Bases: Module") >= 4
    assert "types: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)" in text["maskfuse"]
