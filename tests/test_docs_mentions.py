"""What pages name is there: files, links, targets of make, commands."""

from __future__ import annotations

import fnmatch
import re

import docs_pages
import pytest
from maskfuse.__main__ import main

pytestmark = pytest.mark.skipif(not docs_pages.pages(), reason="the pages are not here")
PAGES = pytest.mark.parametrize("page", docs_pages.pages(), ids=docs_pages.name)
# A path begins with a folder at the top of the tree, or is a file there.
TOP = {path.name for path in docs_pages.ROOT.iterdir() if not path.name.startswith(".")} - {"build", "dist", "out"}
SOURCES = ("csrc", "python", "tests", "bench", "examples", "docs")
MADE = re.compile(r"(build|dist|out)/|\.so$")


def braced(text: str) -> list[str]:
    """`a_{b,c}.h` as a_b.h and a_c.h."""
    found = re.fullmatch(r"(.*)\{([^{}]*,[^{}]*)\}(.*)", text)
    return (
        [path for part in found[2].split(",") for path in braced(found[1] + part.strip() + found[3])]
        if found
        else [text]
    )


def paths(text: str) -> list[str]:
    """What looks like a path among backticked words, with commands' arguments."""
    words = [word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()]
    words = [path for word in words for path in braced(word.replace("...", "*").rstrip(",;:.)"))]
    return [word for word in words if word.split("/")[0] in TOP and not MADE.search(word) and re.search(r"[/.]", word)]


def file_names(text: str) -> list[str]:
    """Sources that are named without a folder, or by the end of their name alone."""
    words = [path for code in re.findall(r"`([^`\n ]+)`", text) for path in braced(code.replace("...", "*"))]
    return [word for word in words if re.fullmatch(r"[\w*-]+\.(py|h|cpp|cu|sh|toml)", word)]


@PAGES
def test_files_exist(page):
    text = page.read_text()
    missing = [path for path in paths(text) if not list(docs_pages.ROOT.glob(path.rstrip("/")))]
    sources = {path.name for folder in SOURCES for path in (docs_pages.ROOT / folder).rglob("*.*")} | TOP
    missing += [name for name in file_names(text) if not fnmatch.filter(sources, f"*{name}")]
    assert not missing


def test_a_file_that_is_not_there_is_found_missing():
    text = "`python bench/no_such.py --quick` and `csrc/cpu/{mask,isa}.cpp`, `F.linear`, `_no_such.h`, `ptx_*.h`"
    assert paths(text) == ["bench/no_such.py", "csrc/cpu/mask.cpp", "csrc/cpu/isa.cpp"]
    assert file_names(text) == ["_no_such.h", "ptx_*.h"]


def anchors(page) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", docs_pages.prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@PAGES
def test_links_within_the_repository_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", docs_pages.prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert not broken


@PAGES
def test_targets_of_make_exist(page):
    known = set(re.findall(r"^([a-z][\w-]*):", (docs_pages.ROOT / "Makefile").read_text(), re.MULTILINE))
    blocks = re.findall(r"^```(?:sh|console)?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    named = re.findall(r"`(?:\w+=\S+ )*make ([^`\n]+)`", docs_pages.prose(page))
    named += [line for block in blocks for line in re.findall(r"^(?:\$ )?make ([^#\n]+)", block, re.MULTILINE)]
    words = {word for targets in named for word in targets.split() if "=" not in word}
    assert words <= known


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    printed = capsys.readouterr()
    assert left.value.code == 0, printed.err
    return printed.out


@PAGES
def test_commands_and_their_options_exist(page, capsys):
    for line in re.findall(r"python -m maskfuse ([a-z][\w-]*[^`\n|&#]*)", page.read_text()):
        command, *rest = line.split()
        known = set(re.findall(r"--[\w-]+", help_of(capsys, command)))
        assert {word for word in rest if word.startswith("--")} <= known, line
