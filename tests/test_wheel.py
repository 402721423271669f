"""Audit of a built wheel: what is in it, what it needs of a machine, what it says of itself.

MASKFUSE_WHEEL names the wheel, as `.ci/run` does; without it, one is packed of the package as it stands here.
"""

from __future__ import annotations

import base64
import csv
import email
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import maskfuse
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python/maskfuse"
pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the repository around it"),
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="reads x86-64 ELF files"),
]
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")

MOST_BYTES = 40 * 2**20
NEWEST_GLIBC = (2, 34)  # of the machines that wheels are meant for


def version():
    """That of pyproject.toml: a package in place has none of its own."""
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def packed(folder):
    """A wheel of the package in this folder, by the project's own metadata, without compiling anything."""
    source = folder / "source"
    source.mkdir()
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    project = (ROOT / "pyproject.toml").read_text()
    # The libraries are there already, as data; extensions are what makes a wheel one for a platform.
    with_libraries = project.replace('"gpu_passes.json"]', '"gpu_passes.json", "_C*.so"]')
    assert with_libraries != project
    (source / "pyproject.toml").write_text(with_libraries)
    (source / "setup.py").write_text(
        "from setuptools import setup\n"
        "from setuptools.dist import Distribution\n"
        "Distribution.has_ext_modules = lambda self: True\n"
        "setup(options={'bdist_wheel': {'py_limited_api': 'cp310'}})\n"
    )
    shutil.copytree(PACKAGE, source / "python/maskfuse", ignore=shutil.ignore_patterns("__pycache__"))
    for library in Path(maskfuse.__file__).parent.glob("_C*.so"):
        shutil.copy(library, source / "python/maskfuse" / library.name)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder)]
    process = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    given = os.environ.get("MASKFUSE_WHEEL")
    return Path(given).resolve() if given else packed(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel(path):
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def libraries(wheel, tmp_path_factory):
    """The shared libraries of the wheel, unpacked."""
    folder = tmp_path_factory.mktemp("libraries")
    names = [name for name in wheel.namelist() if name.endswith(".so")]
    assert "maskfuse/_C.abi3.so" in names and {Path(name).name for name in names} <= {"_C.abi3.so", "_C_cuda.abi3.so"}
    return [Path(wheel.extract(name, folder)) for name in names]


def info(wheel, name):
    (found,) = (entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(found).decode()


def readelf(option, library):
    return subprocess.run(
        ["readelf", "-W", option, str(library)], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def wanted(library):
    """(name, version or '') of every symbol that the library takes from others, weak ones aside."""
    for line in readelf("--dyn-syms", library):
        fields = line.split()
        if len(fields) >= 8 and fields[6] == "UND" and fields[4] == "GLOBAL":
            name, _, version = fields[7].partition("@")
            yield name, version.lstrip("@")


def test_files(wheel):
    """The package's sources, its libraries, and what describes it; no tests, caches or C++ sources."""
    sources = {
        f"maskfuse/{file.relative_to(PACKAGE).as_posix()}"
        for file in PACKAGE.rglob("*")
        if file.suffix == ".py" or file.name in ("py.typed", "gpu_passes.json")
    }
    names = {name for name in wheel.namelist() if not name.endswith("/")}
    described = {
        f"maskfuse-{version()}.dist-info/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    }
    compiled = {name for name in names if name.endswith(".so")}
    assert names - compiled == sources | described
    assert "maskfuse/py.typed" in sources
    for name in sources:
        assert wheel.read(name) == (ROOT / "python" / name).read_bytes(), f"{name} is not the repository's"


def test_record(wheel):
    """RECORD lists every file once, with its size and hash."""
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(info(wheel, "RECORD")))}
    names = [name for name in wheel.namelist() if not name.endswith("/")]
    assert len(names) == len(set(names)) and set(rows) == set(names)
    for name, (digest, size) in rows.items():
        if name.endswith(".dist-info/RECORD"):
            assert (digest, size) == ("", "")
            continue
        content = wheel.read(name)
        want = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert digest == f"sha256={want}" and int(size) == len(content), name


def test_tags(path, wheel):
    """One wheel for every CPython from 3.10 on, and the file's name says what WHEEL says."""
    said = email.message_from_string(info(wheel, "WHEEL"))
    name, number, python, abi, tag = path.stem.split("-")
    assert (name, number, python, abi) == ("maskfuse", version(), "cp310", "abi3")
    assert said["Root-Is-Purelib"] == "false"
    assert said.get_all("Tag") == [f"cp310-abi3-{one}" for one in tag.split(".")]
    if os.environ.get("MASKFUSE_WHEEL"):
        assert tag.startswith("manylinux_2_")


@needs_readelf
def test_what_the_tag_promises(path, libraries):
    """No symbol is of a newer glibc than the platform tag, or the oldest machine meant, allows."""
    found = re.search(r"manylinux_(\d+)_(\d+)_x86_64", path.name)
    allowed = (int(found[1]), int(found[2])) if found else NEWEST_GLIBC
    assert allowed <= NEWEST_GLIBC
    for library in libraries:
        versions = {
            tuple(map(int, version.removeprefix("GLIBC_").split(".")))
            for _, version in wanted(library)
            if version.startswith("GLIBC_")
        }
        assert versions and max(versions) <= allowed, f"{library.name} needs glibc {max(versions)}, the tag {allowed}"


@needs_readelf
def test_symbols_are_of_stable_interfaces(libraries):
    """Torch's C shims without a version; libc, libm, libstdc++ and libgcc with one. Nothing of CPython or ATen."""
    # Parts of libstdc++ whose versions auditwheel and older compilers leave out are inline, or std's own.
    standard = re.compile(r"_ZN?K?R?O?S[tsaodi]|_ZT[ISTV]N?K?St|_ZN?K?O?St|_Z(nw|na|dl|da)|__cxa_|__gxx_")
    for library in libraries:
        symbols = dict(wanted(library))
        shims = {name for name, version in symbols.items() if not version and not standard.match(name)}
        allowed = re.compile(r"aoti_torch_|torch_|cuda[A-Z]" if "cuda" in library.name else r"aoti_torch_|torch_")
        foreign = sorted(name for name in shims if not allowed.match(name))
        assert not foreign, f"{library.name}: {foreign}"
        assert any(name.startswith("torch_call_dispatcher") for name in shims)
        versions = {version.partition("_")[0] for version in symbols.values() if version}
        assert versions <= {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}


@needs_readelf
def test_libraries_are_found_by_name_alone(libraries):
    """No RPATH or RUNPATH: torch has loaded its libraries before, and the rest is the system's."""
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    system |= {"libpthread.so.0", "libdl.so.2", "librt.so.1"}
    for library in libraries:
        lines = readelf("-d", library)
        assert not [line for line in lines if "RPATH" in line or "RUNPATH" in line]
        needed = {re.search(r"\[(.*)\]", line)[1] for line in lines if "(NEEDED)" in line}
        torch = {"libc10.so", "libtorch.so", "libtorch_cpu.so"} | ({"libtorch_cuda.so"} & needed)
        assert "libtorch_cpu.so" in needed and needed <= system | torch
        assert ("libtorch_cuda.so" in needed) == ("cuda" in library.name)


def test_nothing_names_the_machine(wheel):
    """Neither folders of the build nor home directories, in libraries, sources or metadata."""
    own = {str(ROOT), str(Path.home())} - {"/"}
    # Short ones only as the beginning of a path: a home of /root would be in many words.
    patterns = [re.compile(re.escape(folder.encode()) + rb"/") for folder in own] + [re.compile(rb"/home/\w+/")]
    for name in wheel.namelist():
        content = wheel.read(name)
        for pattern in patterns:
            found = pattern.search(content)
            assert not found, f"{name} has {content[found.start() : found.start() + 80]!r}"


def test_size(path):
    assert path.stat().st_size <= MOST_BYTES


def test_metadata(wheel):
    said = email.message_from_string(info(wheel, "METADATA"))
    assert (said["Name"], said["Version"]) == ("maskfuse", version())
    assert (said["Requires-Python"], said["License-Expression"]) == (">=3.10", "BSD-3-Clause")
    assert said.get_all("License-File") == ["LICENSE"] and said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert info(wheel, "entry_points.txt").split() == ["[console_scripts]", "maskfuse", "=", "maskfuse.__main__:main"]
    assert info(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_requirements(wheel):
    """torch alone is required; extras name packages that exist, and are those that the package asks for."""
    requirements = pytest.importorskip("packaging.requirements")
    said = email.message_from_string(info(wheel, "METADATA"))
    found = [requirements.Requirement(line) for line in said.get_all("Requires-Dist")]
    always = [r for r in found if r.marker is None]
    assert [str(r) for r in always] == ["torch>=2.11"]
    extras = {name: set() for name in said.get_all("Provides-Extra")}
    for requirement in found:
        for name, packages in extras.items():
            if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                packages.add(requirement.name)
    assert extras == {
        "checkpoint": {"safetensors", "numpy"},
        "demo": {"rich", "scikit-learn", "matplotlib"},
        "report": {"rich", "matplotlib"},
    }
    listed = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {re.match(r"[\w-]+", line)[0] for line in listed if re.match(r"\w", line)}
    assert set().union(*extras.values()) <= listed


def test_installed_it_works(wheel, tmp_path):
    """Unpacked elsewhere, it loads and computes without the repository."""
    wheel.extractall(tmp_path)
    code = (
        "import sys, torch, maskfuse\n"
        "assert maskfuse.__file__.startswith(sys.argv[1]), maskfuse.__file__\n"
        "layer = maskfuse.nn.MaskedLinear(8, 4, mask=maskfuse.Mask.random((4, 8), 0.5))\n"
        "x = torch.ones(2, 8)\n"
        "torch.testing.assert_close(layer(x), layer.to_dense()(x))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
