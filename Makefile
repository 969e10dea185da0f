# Everything a person types, from a bare machine: `make demo`, `make test`. The environment is .venv; `make clean` removes it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev

# Small models on few cores: one computing thread for each test worker is fastest.
WORKERS ?= 2
# What `make check-gpu` checks: auto, cpu, cuda, cuda:N or mps.
DEVICE  ?= auto
TRUST   = tests/trust tests/tui/test_terminal.py tests/pipeline/users/test_consent.py tests/commands/test_traces.py \
  tests/store/test_erase.py
PYTEST  = OMP_NUM_THREADS=1 MTA_TEST_MODELS="$$($(BIN)/mta model path)" $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install models demo test test-fast test-slow nightly trust versions lint types format docs docs-tour screens bench check-gpu dist clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

install: $(RUN)  ## make .venv with mta in it

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mta needs Python 3.11 or newer; this is " \
	  + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $(RUN)

$(DEV): $(RUN)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(DEV)

models: $(RUN)  ## fetch the embedded default models (about 180 MB to fetch, 360 MB on disk, once)
	$(BIN)/mta model pull smollm2-135m-instruct
	$(BIN)/mta model pull minilm-l6

demo: models  ## every stage on the carried sample, three minutes; longer: .venv/bin/mta demo --full
	$(BIN)/mta demo

test: lint types models $(DEV)  ## lint, types, and every test, the real model's too
	$(PYTEST) -q -n $(WORKERS) --dist worksteal

test-fast: $(DEV)  ## the tests on tiny models only
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: models $(DEV)  ## the tests on the real model only
	$(PYTEST) -q -m slow

nightly: trust versions  ## both of the next two

trust: models $(DEV)  ## 200 kills, every fault of the disk, 400 flipped bits, 20 drawn trials of each kind
	MTA_TEST_KILLS=200 MTA_TEST_FLIPS=400 MTA_TEST_TRIALS=20 $(PYTEST) -q -n $(WORKERS) --dist worksteal $(TRUST)

versions: models $(DEV)  ## the fast tests with the oldest libraries that are declared, then with the newest
	$(BIN)/python -m pip install --quiet uv
	@for resolution in lowest-direct highest; do \
	  environment=$(VENV)-$$resolution; echo "== $$resolution"; $(PYTHON) -m venv $$environment \
	  && $(BIN)/uv pip install --quiet --python $$environment/bin/python --resolution $$resolution --editable '.[dev]' \
	  && OMP_NUM_THREADS=1 $$environment/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow" \
	  || exit 1; done

lint: $(DEV)  ## style, format and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(DEV)  ## strict types
	$(BIN)/mypy

format: $(DEV)  ## put the source in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV)  ## write the generated pages of docs/, and the man page docs/mta.1
	$(BIN)/python docs/generate.py

docs-tour: models  ## run the commands of docs/tour.md and write their output into it (minutes)
	GOMP_SPINCOUNT=10000 OMP_NUM_THREADS=2 $(BIN)/python docs/tour.py

screens: demo  ## draw the window's rooms on the demo's store into docs/screens
	$(BIN)/python docs/screens.py "$$($(BIN)/mta demo --json | $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["store"])')"

bench: models $(DEV)  ## the benchmarks beside PEFT and TRL, one after another (about 40 minutes on two cores)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench,ray]'
	@for script in $(filter-out %/bench_population.py %/bench_stacks.py,$(wildcard benchmarks/bench_*.py)); do echo "== $$script"; \
	  GOMP_SPINCOUNT=10000 $(BIN)/python -W ignore -m benchmarks.$$(basename $$script .py) || exit 1; done

check-gpu: $(DEV)  ## whether all is computed right on this machine's GPU, and how fast; ends in one JSON document
	@$(BIN)/python -m tests.check_gpu --device $(DEVICE)

dist: $(BIN)/python  ## wheel and sdist in dist/, their metadata checked by twine
	$(BIN)/python -m pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove .venv, caches and what was built
	rm -rf $(VENV) $(VENV)-lowest-direct $(VENV)-highest build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
