# make train | test | lint | format | benchmark | clean. Each sets up what it needs in .venv first; that is done again
# only when a file that decides it has changed. `make setup PYTHON=python3.12` chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
TRAIN_ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist worksteal

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* csrc/*/*)

.PHONY: setup train test lint format benchmark clean

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

benchmark: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=min,median,iqr,rounds

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .benchmarks
