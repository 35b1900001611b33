# make demo: install and run on handwritten digits.  make test: install what tests need and run them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint benchmark clean

demo: .venv/installed
	$(BIN)/nacre run

test: .venv/tested
	$(BIN)/python -m pytest -n auto

slow: .venv/tested
	$(BIN)/python -m pytest -m slow

lint: .venv/tested
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

benchmark: .venv/tested
	$(BIN)/python benchmarks/loop.py

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "nacre needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)."; \
	  echo "Install one and name it: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "'$(PYTHON)' lacks venv: install it (Debian: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,lint]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
