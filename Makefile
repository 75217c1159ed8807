# Everything a developer runs. `make help` lists the targets.

# The oldest supported Python comes first: it is the one that the tests are pinned to.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run test test-unit test-vllm lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Build the virtual environment (quick when it is up to date)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: name one with make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Building $(VENV) with $(PYTHON): about a minute"
	@$(PYTHON) -m venv $(VENV)
	@# Dependency groups need pip 25.1; the pip that comes with Python 3.11 is older.
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable . --group dev --constraint constraints.txt
	@touch $@

run: setup ## Run the gateway on two simulated engines (ARGS="--port 9000" is passed on)
	$(BIN)/magnus demo $(ARGS)

test: lint ## Lint, then run every test that needs no real engine
	$(BIN)/python -m pytest -m "not vllm"

test-unit: setup ## Run the tests that touch no network and no database
	$(BIN)/python -m pytest tests/unit tests/property

test-vllm: setup ## Run the tests against a real vLLM on the CPU (the first run downloads about 1 GB)
	$(BIN)/python tests/vllm/install.py
	$(BIN)/python -m pytest -m vllm

lint: setup ## Check style, types and architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Rewrite the code in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove what the other targets made in this folder
	rm -rf $(VENV) dist build htmlcov .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
