# make demo: from nothing to a scored SAE on a real language model.   make check: what CI runs.
# make test: the tests, and which lines and branches they run; fails below 92%.
# make docs: the documentation as a site in build/site; a warning or a broken link is an error.
# make mutation: whether the tests notice small changes to the masks, the dense step and the position metrics (an hour).
# make test-interop: SAEs exchanged with the other libraries themselves, in the environment that the benchmarks use.
# make test-suites: SAEBench and sae-probes themselves on SAEs of ours, in an environment of their own.
# make bench: speed beside other libraries' and the machine's own limit; its parts are bench-training, bench-large,
#   bench-wide, bench-ways, bench-harvest, bench-study, bench-growth, bench-profile and bench-quality, and bench-page writes what they found
#   into the docs.
# make bench-gpu: on a machine with a GPU, whether every way is right there, and how fast, beside those peers that are installed;
#   ends by itself within 4 minutes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEV_READY := $(VENV)/.installed-dev
BENCH_VENV ?= $(HOME)/.cache/scansion/bench-venv
BENCH_READY := $(BENCH_VENV)/.installed
SUITES_VENV ?= $(HOME)/.cache/scansion/suites-venv
SUITES_READY := $(SUITES_VENV)/.installed

BENCH := $(BENCH_VENV)/bin/python -m
MEASURED := benchmarks/results
BENCH_PARTS := bench-training bench-large bench-wide bench-ways bench-harvest bench-study bench-growth bench-profile bench-quality

.PHONY: demo test mutation test-interop test-suites check lint types layers docs bench bench-gpu $(BENCH_PARTS) bench-page clean

demo: $(READY)
	$(BIN)/scansion demo

# A process for each core, at most four, for each holds a gigabyte; and one thread in each. Files go to them in the order
# of tests/conftest.py, which has the longest first.
test: $(DEV_READY)
	$(BIN)/scansion assets fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

mutation: $(DEV_READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutation]'
	$(BIN)/python -m tests.mutation

test-interop: $(DEV_READY) $(BENCH_READY)
	SCANSION_PEERS=$(BENCH_VENV)/bin/python $(BIN)/python -m pytest tests/interop tests/report/test_dashboard.py

test-suites: $(DEV_READY) $(SUITES_READY)
	SCANSION_SUITES=$(SUITES_VENV)/bin/python $(BIN)/python -m pytest tests/interop/test_suites.py

$(SUITES_READY):
	sh benchmarks/parity/environment.sh $(SUITES_VENV)
	touch $@

check: lint types layers docs test

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_READY)
	$(BIN)/pyright

layers: $(DEV_READY)
	$(BIN)/lint-imports

docs: $(DEV_READY)
	$(BIN)/zensical build --clean --strict

# torch first and by itself: no other package may choose its version.
$(READY): pyproject.toml constraints.txt $(wildcard scansion/execution/cpu/c/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Scansion needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# The tests' and checks' own needs, which are large: Triton alone is 200 MB.
$(DEV_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

bench: $(BENCH_PARTS) bench-page

bench-gpu:
	$(PYTHON) -m benchmarks.gpu --out $(MEASURED)/gpu.json

bench-training: $(BENCH_READY)
	$(BENCH) benchmarks.training --out $(MEASURED)/training.json

bench-large: $(BENCH_READY)
	$(BENCH) benchmarks.training --out $(MEASURED)/training_large.json --kinds topk --batch-tokens 8192 --rounds 5

# One architecture after another, and each peer once: all at once would not fit in 24 GB.
bench-wide: $(BENCH_READY)
	$(BENCH) benchmarks.training --out $(MEASURED)/training_wide.json --d-in 2304 --d-sae 16384 --batch-tokens 1024 --rounds 3 --apart --no-keeping

bench-ways: $(BENCH_READY)
	$(BENCH) benchmarks.ways --out $(MEASURED)/ways.json

bench-harvest: $(BENCH_READY)
	$(BENCH) benchmarks.harvest --out $(MEASURED)/harvest.json

bench-study: $(BENCH_READY)
	$(BENCH) benchmarks.study --out $(MEASURED)/study.json

bench-growth: $(BENCH_READY)
	$(BENCH) benchmarks.growth --out $(MEASURED)/growth.json

bench-profile: $(BENCH_READY)
	$(BENCH) benchmarks.profile --out $(MEASURED)/profile.json

# Half an hour on one thread. Run it again to resume.
bench-quality: $(BENCH_READY)
	$(BENCH) benchmarks.quality --out $(MEASURED)/quality.json

bench-page: $(BENCH_READY)
	$(BENCH) benchmarks.figures
	$(BENCH) benchmarks.table --into docs/speed.md

# The libraries compared bring much along that the project does not need: they have an environment of their own.
$(BENCH_READY): constraints.txt
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable . sae-lens dictionary-learning eai-sparsify
	$(BENCH_VENV)/bin/python -m pip install --quiet --no-deps sae-dashboard==0.8.0  # its reader of JSON needs none of the rest
	$(BENCH_VENV)/bin/python -m pip uninstall --quiet --yes torchvision  # it may be built for another torch, and none needs it
	touch $@

clean:
	rm -rf $(VENV) runs
