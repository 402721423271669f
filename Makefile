# Each target does its whole set-up: python3 (3.10+), a C++ compiler and a package index are all it needs.
#
#   make demo     train, prune and fine-tune on handwritten digits, and measure
#   make test     every test that this machine can run
#   make fuzz     property tests and damaged files on other examples, for MASKFUSE_FUZZ_MINUTES (10)
#   make bench    benchmarks against torch; JSON under bench/results/
#   make gpu      on a machine with a GPU: CUDA tests, compute-sanitizer and benchmarks; JSON under bench/results/
#   make wheel    dist/*.whl with the CUDA library where nvcc is found
#   make simt       the CUDA kernels as C++, for tests on the host
#   make lint format sanitize wheel-matrix clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
export MASKFUSE_CUDA ?= auto
export MAX_JOBS ?= $(shell nproc)

SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.json')
TOOLS := $(VENV)/.tools
BUILT := $(VENV)/.built-$(MASKFUSE_CUDA)

.PHONY: demo test fuzz bench gpu simt wheel wheel-matrix lint format sanitize build clean

demo: build
	$(BIN)/python -m maskfuse demo

test: build simt build/cmake/asan/.built build/cmake/release/.built
	$(call run_ctest,asan)
	PYTHONPATH=build/cmake/release $(BIN)/python -m pytest

# Seeds are printed: what fails can be drawn again.
fuzz: build simt
	$(BIN)/python tests/fuzz.py

bench: build
	$(BIN)/python bench/bench_masked_linear.py
	$(BIN)/python bench/bench_masked_conv2d.py
	$(BIN)/python bench/bench_channel_gather.py
	$(BIN)/python bench/models.py
	$(BIN)/python bench/transformers_models.py

# With the machine's own Python and torch: the wheel was built elsewhere, and there may be no package index here.
gpu:
	$(PYTHON) bench/gpu.py

# In place, and found from the environment's Python.
build: $(BUILT)
$(BUILT): $(TOOLS) $(SOURCES)
	@rm -f $(VENV)/.built-* python/maskfuse/_C*.so
	$(BIN)/python setup.py -q build_clib build_ext --inplace > build.log 2>&1 || { cat build.log; exit 1; }
	@grep '^maskfuse:' build.log || true; mkdir -p build; mv build.log build/build.log
	@$(BIN)/python -c "import site; open(site.getsitepackages()[0] + '/maskfuse-in-place.pth', 'w').write('$(CURDIR)/python\n')"
	@touch $@

$(TOOLS): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "maskfuse needs Python 3.10 or newer: set PYTHON=")'
	@command -v $(or $(firstword $(CXX)),c++) > /dev/null || { echo "maskfuse needs a C++ compiler: install g++ or set CXX="; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -r requirements.txt
	@touch $@

# The CUDA implementations as C++ on a stand-in for the device.
simt: build/simt/.built
build/simt/.built: $(TOOLS) $(SOURCES)
	@mkdir -p build/simt; rm -f build/simt/*.so
	MASKFUSE_SIMT=1 $(BIN)/python setup.py -q build_ext --build-temp build/simt/objects --build-lib build/simt > build/simt.log 2>&1 || { cat build/simt.log; exit 1; }
	@touch $@

# The raw kernels by CMake: release (with the pybind11 module), asan (and undefined behaviour), tsan.
build/cmake/%/.built: $(TOOLS) $(SOURCES) CMakeLists.txt CMakePresets.json
	@mkdir -p build
	$(BIN)/cmake --preset $* -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > build/cmake-$*.log
	$(BIN)/cmake --build build/cmake/$* -- --quiet
	@touch $@

run_ctest = $(BIN)/ctest --test-dir build/cmake/$(1) --output-on-failure --no-tests=error -O $(CURDIR)/build/ctest-$(1).log

sanitize: build/cmake/asan/.built build/cmake/tsan/.built
	$(call run_ctest,asan)
	$(call run_ctest,tsan)

wheel: export MASKFUSE_CUDA := $(if $(filter auto,$(MASKFUSE_CUDA)),1,$(MASKFUSE_CUDA))
wheel: $(TOOLS)
	@rm -rf dist build/lib.* build/bdist.* build/wheel
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel -v repair --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl > build/auditwheel.log 2>&1 \
	  || { cat build/auditwheel.log; exit 1; }
	@ls -l dist

# Installs dist/*.whl into two new environments, outside the repository, and runs the tests there.
wheel-matrix: wheel
	bash tests/wheel_matrix.sh

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(TOOLS)
	$(BIN)/ruff check --fix -q . || true
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build dist out python/*.egg-info python/maskfuse/*.so $(VENV)/.built-*
