"""What setup.py says when something is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parent.parent / "setup.py"
pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="needs the repository around it")


def run(**environment):
    return subprocess.run(
        [sys.executable, str(SETUP), "--name"],
        capture_output=True,
        text=True,
        env={**os.environ, "MASKFUSE_CUDA": "0", **environment},
        timeout=300,
    )


def test_everything_there():
    assert run().stdout.split()[-1] == "maskfuse"


def test_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    process = run(PYTHONPATH=str(tmp_path))
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "building needs torch >= 2.11" in process.stderr and "--no-build-isolation" in process.stderr


def test_old_torch(tmp_path):
    package = tmp_path / "torch"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.9.1+cu128'")
    (package / "utils/__init__.py").write_text("")
    (package / "utils/cpp_extension.py").write_text("")
    process = run(PYTHONPATH=str(tmp_path))
    assert process.returncode == 1 and "torch 2.9.1+cu128 is too old" in process.stderr


def test_no_compiler():
    process = run(CXX="no-such-compiler")
    assert process.returncode == 1 and "no C++ compiler found" in process.stderr and "CXX" in process.stderr


def test_bad_choice():
    assert "MASKFUSE_CUDA=yes: expected 0, 1 or auto" in run(MASKFUSE_CUDA="yes").stderr


@pytest.fixture
def module(monkeypatch):
    before = Path.cwd()
    spec = importlib.util.spec_from_file_location("maskfuse_setup", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    os.chdir(before)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return module


def toolkit(folder):
    for name in ("bin/nvcc", "include/cuda_runtime_api.h"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    return folder / "bin/nvcc"


def test_nvcc_is_found_in_order(module, monkeypatch, tmp_path):
    home, on_path, prefix = (toolkit(tmp_path / name) for name in ("home", "path", "prefix"))
    monkeypatch.setattr(module, "CUDA_PREFIX", tmp_path / "prefix")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert module.find_nvcc() == home
    monkeypatch.delenv("CUDA_HOME")
    assert module.find_nvcc() == on_path
    on_path.unlink()
    assert module.find_nvcc() == prefix


def test_no_nvcc_is_one_line(module, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "CUDA_PREFIX", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MASKFUSE_CUDA", "1")
    assert module.wants_cuda() is None
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "CUDA library not built: no nvcc" in text and "nowhere" in text
