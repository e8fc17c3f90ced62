# Every target sets up what it needs, in a fresh clone too: a virtual environment in .venv with pinned dependencies.
# One stamp says that citrus is in it, the other that the developers' tools are, too; each is renewed when pyproject.toml
# or constraints.txt changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed
# test processes side by side; tests compute with one thread each
WORKERS ?= 2

.PHONY: help install develop demo test coverage test-slow soundness mutation gpu-check lint format docs dist clean

help:
	@echo "make install | demo"
	@echo "make develop | test | coverage | test-slow | soundness | mutation | gpu-check | lint | format | docs | dist | clean"

install: $(INSTALLED)

develop: $(DEVELOPED)

# Both wheels of onnxruntime hold the same files, so that taking one away breaks the other: where both are, both go first.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'citrus needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import importlib.metadata as m; exit({'onnxruntime', 'onnxruntime-gpu'} <= {d.name for d in m.distributions()})" \
		|| $(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $(INSTALLED)

# vnnlib-satisfactory, the suite of tests/queries/test_satisfactory.py, comes without its dependencies: see pyproject.toml
$(DEVELOPED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps vnnlib-satisfactory --constraint constraints.txt
	touch $(DEVELOPED)

demo: install
	$(BIN)/citrus demo

test: develop
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# the default tests with line and branch coverage, which slows Python down: a test of speed is left out
coverage: develop
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term --deselect \
		tests/queries/test_vnnlib1.py::test_thirty_thousand_assertions_in_two_seconds

test-slow: develop
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

# random networks, crafted files and planted bugs: about 15 minutes, two processes
soundness: develop
	$(BIN)/python -m tests.soundness

# small changes to the code of bounds and of the checker, each of which a test has to notice: about 40 minutes
mutation: develop
	$(BIN)/python -m tests.mutation

gpu-check: develop
	PYTHON=$(BIN)/python sh benchmarks/gpu.sh

lint: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: develop
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# site/index.html; a broken link or a page that the navigation lacks is an error
docs: develop
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# wheel and sdist in dist/, checked
dist: develop
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
