# The two commands of a new user: `make demo` trains, `make test` checks everything. `make check` is the part of the
# tests that takes no ranks. `make docs` builds the site into site/, `make docs-serve` shows it at http://127.0.0.1:8000
# and builds it again after every change. Each creates .venv first.
PYTHON ?= python3
RANKS ?= 4
WORKERS ?= 2
BIN := .venv/bin
# A worker takes whole files, since tests of one file share trainings, and those that conftest.py puts first at first.
# One thread each: the ranks that tests start are as many as the cores or more.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test check lint format docs docs-serve clean

demo: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node=$(RANKS) -m sidpar.train --config configs/digits.yaml

test: lint
	$(PYTEST)

check: lint
	$(PYTEST) -m "not processes"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-docs
	$(BIN)/mkdocs build

docs-serve: .venv/installed-docs
	$(BIN)/mkdocs serve

clean:
	rm -rf .venv site

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-docs: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch .venv/installed $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch .venv/installed .venv/installed-docs $@
