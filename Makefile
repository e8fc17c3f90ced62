# Every target sets up what it needs, in a fresh clone too: a virtual environment in .venv with the pinned
# dependencies. The stamp makes that happen once, and again when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# test processes side by side; tests compute with one thread each
WORKERS ?= 2

.PHONY: help install demo test test-slow gpu-check lint format docs clean

help:
	@echo "make install | demo | test | test-slow | gpu-check | lint | format | docs | clean"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'citrus needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]" --constraint constraints.txt
	touch $(STAMP)

demo: install
	$(BIN)/citrus demo

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

gpu-check: install
	PYTHON=$(BIN)/python sh benchmarks/gpu.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# site/index.html; a broken link or a page that the navigation lacks is an error
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
