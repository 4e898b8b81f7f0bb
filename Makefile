# make train | test | lint | format | benchmark | sanitize | clean. Each sets up what it needs in .venv first; that is done again
# only when a file that decides it has changed. `make setup PYTHON=python3.12` chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
TRAIN_ARGS ?=
BENCHMARK_ARGS ?= build/figures
SANITIZE_ARGS ?= -q -x -k "native and not compiles and not cuda and not neither and not thousand"
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist worksteal

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* csrc/*/*)

.PHONY: setup train test lint format benchmark sanitize clean

setup: $(STAMP)

# torch comes first and alone: whatever it is built for settles what the rest may need.
$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,video,text,dev]'
	touch $@

train: $(STAMP)
	$(BIN)/python -m bgs.train $(TRAIN_ARGS)

# One thread a process: the processes share the cores already.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Goes on where the last call ended; BENCHMARK_ARGS names a folder, a time and steps (benchmarks/run_all.sh).
benchmark: $(STAMP)
	PYTHON=$(abspath $(BIN))/python benchmarks/run_all.sh $(BENCHMARK_ARGS)

# The tests of csrc's CPU part on a build with the address and undefined behaviour sanitizers. Python and torch are not
# built with them, so their runtime is loaded first and leaks are left to a test that counts memory.
SANITIZED := build/sanitize
sanitize: $(STAMP)
	$(BIN)/cmake -G Ninja -S . -B $(SANITIZED) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DBGS_CUDA=OFF -DBGS_SANITIZE=ON \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build $(SANITIZED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 BGS_TEST_NATIVE=$(SANITIZED) \
	  $(BIN)/python -m pytest tests/bgs_kernels $(SANITIZE_ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .benchmarks
