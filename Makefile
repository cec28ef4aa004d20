# make demo: from nothing to a scored SAE on a real language model.   make test: the tests.   make check: what CI runs.
# make bench: training speed beside other libraries'.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
BENCH_VENV ?= $(HOME)/.cache/scansion/bench-venv
BENCH_READY := $(BENCH_VENV)/.installed

.PHONY: demo test check lint types layers bench clean

demo: $(READY)
	$(BIN)/scansion demo

test: $(READY)
	$(BIN)/scansion assets fetch
	$(BIN)/python -m pytest

check: lint types layers test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

layers: $(READY)
	$(BIN)/lint-imports

# torch first and by itself: no other package may choose its version.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Scansion needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

bench: $(BENCH_READY)
	$(BENCH_VENV)/bin/python -m benchmarks.training --out benchmarks/results/training.json

# The libraries compared bring much along that the project does not need: they have an environment of their own.
$(BENCH_READY): constraints.txt
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable . sae-lens dictionary-learning eai-sparsify
	$(BENCH_VENV)/bin/python -m pip uninstall --quiet --yes torchvision  # it may be built for another torch, and none needs it
	touch $@

clean:
	rm -rf $(VENV) runs
