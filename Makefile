# Each target does its whole set-up: python3 (3.10+), a C++ compiler and a package index are all it needs.
#
#   make demo     train, prune and fine-tune on handwritten digits, and measure
#   make test     every test that this machine can run
#   make fuzz     property tests and damaged files on other examples, for MASKFUSE_FUZZ_MINUTES (10)
#   make bench    every benchmark that this machine can run; JSON and pages under bench/
#   make gpu      on a machine with a GPU: CUDA tests, compute-sanitizer and benchmarks; JSON under bench/results/
#   make wheel    dist/*.whl with the CUDA library where nvcc is found
#   make docs     these pages as HTML, in build/docs/
#   make simt       the CUDA kernels as C++, for tests on the host
#   make coverage   the lines that tests run, Python's and C++'s: build/coverage/index.html
#   make tidy       clang-tidy over the C++ sources
#   make hooks      lint before each commit
#   make lint format sanitize wheel-matrix clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
BENCH_FLAGS ?=
export MASKFUSE_CUDA ?= auto
export MAX_JOBS ?= $(shell nproc)
TEST_JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))

SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.json')
TOOLS := $(VENV)/.tools
BUILT := $(VENV)/.built-$(MASKFUSE_CUDA)

.PHONY: demo test fuzz bench gpu docs simt wheel wheel-matrix lint format tidy hooks coverage sanitize build clean

demo: build
	$(BIN)/python -m maskfuse demo

# Several processes of two threads each, more than there are cores: who waits must not spin.
test: export OMP_NUM_THREADS := 2
test: export OMP_WAIT_POLICY := passive
test: build simt build/cmake/asan/.built build/cmake/release/.built
	$(call run_ctest,asan)
	PYTHONPATH=build/cmake/release $(BIN)/python -m pytest -n $(TEST_JOBS)

# Seeds are printed: what fails can be drawn again.
fuzz: build simt
	$(BIN)/python tests/fuzz.py

# About half an hour; BENCH_FLAGS="--only masked_conv2d" or "--quick" runs a part.
bench: build build/cmake/release/.raw
	$(BIN)/python bench/run.py $(BENCH_FLAGS)

# With the machine's own Python and torch: the wheel was built elsewhere, and there may be no package index here.
gpu:
	$(PYTHON) bench/gpu.py

# API entries come from docstrings, figures from bench/results/*.json.
docs: build
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/docs

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

# Of the release build, what bench/microbench.py calls.
build/cmake/release/.raw: $(TOOLS) $(SOURCES) CMakeLists.txt CMakePresets.json
	@mkdir -p build
	$(BIN)/cmake --preset release -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > build/cmake-release.log
	$(BIN)/cmake --build build/cmake/release --target maskfuse_raw -- --quiet
	@touch $@

run_ctest = $(BIN)/ctest -j $(TEST_JOBS) --test-dir build/cmake/$(1) --output-on-failure --no-tests=error -O $(CURDIR)/build/ctest-$(1).log

sanitize: build/cmake/asan/.built build/cmake/tsan/.built
	$(call run_ctest,asan)
	$(call run_ctest,tsan)

# By instrumented copies of the libraries and of the package, in 20 minutes on two cores. The tests left out look for
# paths of this machine in libraries, and an instrumented one knows where its counts go.
COVERAGE := build/coverage
coverage: export OMP_NUM_THREADS := 1
coverage: build/cmake/coverage/.built build/cmake/release/.built
	@rm -rf $(COVERAGE)/lib $(COVERAGE)/simt $(COVERAGE)/python; mkdir -p $(COVERAGE)/python
	MASKFUSE_CUDA=0 MASKFUSE_COVERAGE=1 $(BIN)/python setup.py -q build --build-base $(COVERAGE)/base --build-temp $(COVERAGE)/objects --build-lib $(COVERAGE)/lib > $(COVERAGE)/build.log 2>&1 \
	  || { cat $(COVERAGE)/build.log; exit 1; }
	MASKFUSE_SIMT=1 MASKFUSE_COVERAGE=1 $(BIN)/python setup.py -q build_ext --build-temp $(COVERAGE)/simt-objects --build-lib $(COVERAGE)/simt > $(COVERAGE)/simt.log 2>&1 \
	  || { cat $(COVERAGE)/simt.log; exit 1; }
	find $(COVERAGE) build/cmake/coverage -name '*.gcda' -delete
	$(call run_ctest,coverage)
	PYTHONPATH=$(CURDIR)/$(COVERAGE)/lib:build/cmake/release MASKFUSE_SIMT_FOLDER=$(CURDIR)/$(COVERAGE)/simt $(BIN)/python -m pytest -n $(TEST_JOBS) --cov --cov-report= \
	  $(addprefix --deselect tests/,test_build.py::test_libraries_name_no_path_of_the_machine test_wheel.py::test_nothing_names_the_machine)
	$(BIN)/python tests/coverage_summary.py $(COVERAGE) build/cmake/coverage

wheel: export MASKFUSE_CUDA := $(if $(filter auto,$(MASKFUSE_CUDA)),1,$(MASKFUSE_CUDA))
wheel: $(TOOLS)
	@rm -rf dist build/lib.* build/bdist.* build/wheel
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel -v repair --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl > build/auditwheel.log 2>&1 \
	  || { cat build/auditwheel.log; exit 1; }
	@ls -l dist

# Installs dist/*.whl into two new environments, outside the repository, and runs the tests there.
wheel-matrix: export TEST_JOBS := $(TEST_JOBS)
wheel-matrix: wheel
	bash tests/wheel_matrix.sh

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

# Where editors look for it.
build/compile_commands.json: $(TOOLS) CMakeLists.txt CMakePresets.json csrc/sources.json
	@mkdir -p build
	$(BIN)/cmake --preset release -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > build/cmake-release.log
	@ln -sf cmake/release/compile_commands.json $@; touch $@

tidy: build/compile_commands.json
	$(BIN)/run-clang-tidy.py -clang-tidy-binary $(BIN)/clang-tidy -p build -quiet -j $(MAX_JOBS) 'csrc/.*\.cpp$$' > build/tidy.log 2>&1 \
	  || { grep -A3 -E '(error|warning):' build/tidy.log; exit 1; }

hooks: $(TOOLS)
	$(BIN)/pre-commit install

format: $(TOOLS)
	$(BIN)/ruff check --fix -q . || true
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build dist out python/*.egg-info python/maskfuse/*.so $(VENV)/.built-*
