"""A file shows its outline at a glance: how long files are, and how many definitions one has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
in_repository = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the repository around it")

# Folder -> file endings, most lines, most functions, classes and methods.
RULES = {
    "python": ([".py"], 300, 30),
    "csrc": ([".h", ".cpp", ".cu"], 300, None),
    "tests": ([".py"], 360, 40),
    "bench": ([".py"], 300, 30),
}


def files(folder: str) -> list[Path]:
    endings = RULES[folder][0]
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in endings)


def definitions(text: str) -> int:
    """Functions, classes and methods that an outline lists: not what is inside of functions."""
    body = ast.parse(text).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    nodes = body + [node for one in classes for node in one.body]
    return sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in nodes)


def too_long(text: str, most: int) -> str | None:
    lines = text.count("\n")
    return f"{lines} lines, and should have at most {most}" if lines > most else None


@in_repository
@pytest.mark.parametrize("folder", RULES)
def test_outlines(folder):
    _, most, most_definitions = RULES[folder]
    assert files(folder)
    odd = []
    for path in files(folder):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        why = too_long(text, most)
        if why is None and most_definitions is not None and definitions(text) > most_definitions:
            why = f"{definitions(text)} definitions, and should have at most {most_definitions}"
        odd += [f"{name} has {why}"] if why else []
    assert not odd, "split by what they are about: " + "; ".join(odd)


def test_what_counts():
    assert definitions("class A:\n def f(self):\n  def g(): pass\nasync def h(): pass\nx = 1\n") == 3
    assert too_long("\n\n", 1) and not too_long("\n", 1)
