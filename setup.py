"""Builds maskfuse: `_C` (schemas, CPU kernels) and, where asked for, `_C_cuda`.

MASKFUSE_CUDA=0|1|auto   build the CUDA library: never, where nvcc is found, or only beside a GPU (default)
MASKFUSE_SIMT=1          build instead of all this `_C_simt`, the CUDA implementations on the host, for tests
MASKFUSE_COVERAGE=1      count the lines that run, for gcovr (make coverage), with little optimisation
CUDA_HOME                where nvcc is, when it is neither on the path nor in the usual prefix
CXX                      the C++ compiler
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    raise SystemExit(
        f"maskfuse: building needs torch >= 2.11 in this environment ({error}).\n"
        "  pip install torch==2.13.0 ninja setuptools wheel\n"
        "  pip install --no-build-isolation .\n"
        "(an isolated build environment would not see it; `make` does all of this in .venv)"
    ) from None

if not shutil.which(os.environ.get("CXX", "c++").split()[0]):
    raise SystemExit("maskfuse: no C++ compiler found: install g++ >= 11 or clang++ >= 14, or set CXX")
if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
    raise SystemExit(f"maskfuse: torch {torch.__version__} is too old: its stable ABI is used from 2.11 on")

SOURCES = json.loads((ROOT / "csrc/sources.json").read_text())
X86 = platform.machine() in {"x86_64", "AMD64"}
CUDA_PREFIX = Path("/usr/local/cuda")
PTXAS_LOG = ROOT / "build/ptxas.log"
ABI_MAJOR, ABI_MINOR = (int(part) for part in SOURCES["abi_target"].split("."))
ABI_DEFINES = [  # as torch/csrc/stable/version.h reads it, and as a text
    f"-DTORCH_TARGET_VERSION={ABI_MAJOR << 56 | ABI_MINOR << 48:#x}",
    f'-DMASKFUSE_ABI_TARGET="{SOURCES["abi_target"]}"',
]
COVERAGE = ["-O1", "-g0", "--coverage"] if os.environ.get("MASKFUSE_COVERAGE") == "1" else []
CXX_FLAGS = ["-std=c++20", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
CXX_FLAGS += ["-DMASKFUSE_X86"] if X86 else []
CXX_FLAGS += [] if COVERAGE else [f"-ffile-prefix-map={ROOT}/="]  # messages name no path of this machine
CXX_FLAGS += COVERAGE
CUDA_ARCHITECTURES = {
    "sm_80 ptx_80": "arch=compute_80,code=[sm_80,compute_80]",
    "sm_90a": "arch=compute_90a,code=sm_90a",
}


def depends(*folders):
    """What a build of sources in these folders of csrc depends on."""
    files = [path for folder in folders for path in Path("csrc", folder).iterdir()]
    return ["setup.py", "csrc/sources.json", *sorted(str(p) for p in files if p.suffix in {".h", ".cpp", ".cu"})]


def source_paths(names):
    return [f"csrc/{name}" for name in names]


def find_nvcc():
    """Path of nvcc: CUDA_HOME, then the path, then /usr/local/cuda. None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home, "bin/nvcc")] if home else []
    on_path = shutil.which("nvcc")
    # A launcher script on the path may stand apart from the toolkit: prefer the prefix that has headers.
    candidates += [Path(on_path).resolve()] if on_path else []
    candidates += [CUDA_PREFIX / "bin/nvcc"]
    for nvcc in candidates:
        if nvcc.is_file() and (nvcc.parent.parent / "include/cuda_runtime_api.h").is_file():
            return nvcc
    return None


def wants_cuda():
    """nvcc when the CUDA library is to be built, else None; says why not in one line."""
    choice = os.environ.get("MASKFUSE_CUDA", "auto")
    if choice not in {"0", "1", "auto"}:
        raise SystemExit(f"maskfuse: MASKFUSE_CUDA={choice}: expected 0, 1 or auto")
    if choice == "0":
        return None
    if choice == "auto" and not Path("/dev/nvidiactl").exists():
        print("maskfuse: no GPU here, building the CPU library alone (MASKFUSE_CUDA=1 builds both)")
        return None
    nvcc = find_nvcc()
    if nvcc is None:
        print(
            f"maskfuse: CUDA library not built: no nvcc in CUDA_HOME, on the path or in {CUDA_PREFIX}",
            file=sys.stderr,
        )
    return nvcc


def simt_extension():
    """The CUDA library's sources as C++, with csrc/simt in the place of the device."""
    folder = Path("build/simt/sources")
    folder.mkdir(parents=True, exist_ok=True)
    sources = source_paths(SOURCES["simt"])
    for name in SOURCES["cuda"]:
        if name.endswith(".cu"):  # a compiler asks the file's name for its language
            wrapper = folder / f"{Path(name).stem}.cpp"
            text = f'#include "../../../csrc/{name}"\n'
            if not wrapper.exists() or wrapper.read_text() != text:
                wrapper.write_text(text)
            sources.append(str(wrapper))
        elif name != SOURCES["cuda_info"]:
            sources.append(f"csrc/{name}")
    return cpp_extension.CppExtension(
        "_C_simt",
        sources,
        include_dirs=[],
        py_limited_api=True,
        depends=depends("cpu", "cuda", "simt", "torch"),
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *(COVERAGE or ["-O2"]), *ABI_DEFINES, "-DMASKFUSE_SIMT", "-Wno-unknown-pragmas"]
        },
        extra_link_args=["-Wl,-s", *COVERAGE],
    )


@contextlib.contextmanager
def output_to(path):
    """Everything that this process and its children print, in a file; printed as well where the block fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(path, "w+") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(kept[1], log.read().encode())
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, stream)
                os.close(descriptor)


class BuildExtension(cpp_extension.BuildExtension):
    """Adds the stub that stands in for libtorch_cuda.so while linking (csrc/cuda/torch_cuda_stub.cpp), and keeps what
    the device compiler says of registers and spills in build/ptxas.log (tests/kernel_resources.py reads it)."""

    def build_extension(self, ext):
        if ext.name.endswith("_C_cuda"):
            folder = Path(self.build_temp).resolve() / "stub"
            folder.mkdir(parents=True, exist_ok=True)
            compiler = os.environ.get("CXX", "c++").split()
            stub = f"csrc/{SOURCES['cuda_stub']}"
            target = folder / "libtorch_cuda.so"
            subprocess.run(
                [*compiler, "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", stub, "-o", str(target)], check=True
            )
            ext.library_dirs.insert(0, str(folder))
            with output_to(PTXAS_LOG):
                super().build_extension(ext)
        else:
            super().build_extension(ext)


def extensions():
    link = ["-Wl,--exclude-libs,ALL", "-Wl,-s", *COVERAGE]
    common = {"include_dirs": [], "py_limited_api": True}
    built = [
        cpp_extension.CppExtension(
            "maskfuse._C",
            source_paths(SOURCES["torch"]),
            extra_compile_args={"cxx": CXX_FLAGS + ABI_DEFINES},
            extra_link_args=link,
            depends=depends("cpu", "torch"),
            **common,
        )
    ]
    nvcc = wants_cuda()
    if nvcc is not None:
        home = nvcc.parent.parent
        cpp_extension.CUDA_HOME = str(home)  # None beside a CPU-only torch
        gencode = [flag for architecture in CUDA_ARCHITECTURES.values() for flag in ("-gencode", architecture)]
        architectures = f'-DMASKFUSE_CUDA_ARCHITECTURES="{" ".join(CUDA_ARCHITECTURES)}"'
        cuda_flags = [
            "-std=c++20",
            "-O3",
            "--expt-relaxed-constexpr",
            "-Xptxas=-v",
            "-Xcompiler",
            "-fvisibility=hidden",
            "-DUSE_CUDA",
            *gencode,
        ]
        built.append(
            cpp_extension.CppExtension(
                "maskfuse._C_cuda",
                source_paths(SOURCES["cuda"]),
                **{**common, "include_dirs": [str(home / "include")]},
                library_dirs=[str(home / "lib64")],
                libraries=["cudart_static", "rt", "dl", "pthread"],
                extra_compile_args={
                    "cxx": [*CXX_FLAGS, *ABI_DEFINES, "-DUSE_CUDA", architectures],
                    "nvcc": [*cuda_flags, *ABI_DEFINES],
                },
                extra_link_args=[*link, "-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"],
                depends=depends("cpu", "cuda", "torch"),
            )
        )
    return built


def cpu_libraries():
    """One archive an instruction set, because BuildExtension has one set of flags for all its sources."""
    libraries = []
    for level, entry in SOURCES["cpu"].items():
        if level != "baseline" and not X86:
            continue
        sources = source_paths(entry["sources"])
        libraries.append(
            (
                f"maskfuse_cpu_{level}",
                {
                    "sources": sources,
                    "cflags": [*CXX_FLAGS, "-fPIC", *entry["flags"]],
                    "obj_deps": {"": depends("cpu"), **{source: [] for source in sources}},
                },
            )
        )
    # The linker takes archives in order: the baseline asks for the others.
    return libraries


if __name__ == "__main__":
    simt = os.environ.get("MASKFUSE_SIMT") == "1"
    setup(
        ext_modules=[simt_extension()] if simt else extensions(),
        libraries=[] if simt else cpu_libraries(),
        cmdclass={"build_ext": BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
