"""What runs before a commit: hooks whose configuration is valid and whose tools are here; and forms for issues."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / ".pre-commit-config.yaml"
TOOLS = Path(sys.executable).parent
CHECK_FILES = ROOT / ".ci/check_files.py"
pytestmark = pytest.mark.skipif(not CONFIG.exists(), reason="needs the repository around it")


def read(path):
    return pytest.importorskip("yaml").safe_load(path.read_text())


def test_configuration_is_valid():
    pytest.importorskip("pre_commit")
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", str(CONFIG)], check=True)


def test_hooks_need_no_network_and_their_tools_are_here():
    (repository,) = read(CONFIG)["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        tool, *arguments = shlex.split(hook["entry"])
        assert Path(tool).parent == Path(".venv/bin")  # where make installs; tests may run in another environment
        if (ROOT / ".venv/bin").exists():
            assert (ROOT / tool).exists()
        else:
            assert shutil.which(Path(tool).name, path=str(TOOLS))
        assert all((ROOT / a).is_file() for a in arguments if a.endswith(".py"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a\nb\n", None),
        (b"", None),
        (b"  a\n", None),
        (b"\0 \n ", None),  # no text
        (b"a \nb\n", "text:1: space"),
        (b"a\n\tb\t\n", "text:2: space"),
        (b"a\r\n", "text:1: space"),
        (b"a\nb", "no newline"),
        (b"\0" * (600 << 10), "614400 bytes"),
    ],
)
def test_check_files(tmp_path, content, fault):
    (tmp_path / "text").write_bytes(content)
    process = subprocess.run([sys.executable, CHECK_FILES, "text"], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == (fault is not None)
    assert process.stderr == "" if fault is None else fault in process.stderr


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_issue_forms(path):
    form = read(path)
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0 and all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.skipif(not (TOOLS / "clang-tidy").exists(), reason="needs clang-tidy")
@pytest.mark.parametrize("folder", ["csrc", "csrc/torch"])
def test_clang_tidy_knows_its_checks(folder):
    source = next((ROOT / folder).rglob("*.cpp"))
    process = subprocess.run(
        [TOOLS / "clang-tidy", "--verify-config", source], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0 and "No config errors" in process.stdout + process.stderr
