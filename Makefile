# The two commands of a new user: `make demo` trains, `make test` checks everything. Both create .venv first.
PYTHON ?= python3
RANKS ?= 4
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node=$(RANKS) -m sidpar.train --config configs/digits.yaml

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf .venv

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch .venv/installed $@
