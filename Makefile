# Everything a developer runs. `make help` lists the targets.

# The oldest supported Python comes first: it is the one that the tests are pinned to.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.gateway-installed
DEV_STAMP := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.PHONY: help setup dev run test test-unit test-vllm lint format docs lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install what the gateway needs into .venv (quick when it is up to date)

dev: $(DEV_STAMP) ## Add the tools and packages that development and tests need

$(STAMP): pyproject.toml requirements/gateway.txt requirements/uv.txt requirements/install
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: name one with make PYTHON=/path/to/python" >&2; exit 1; }
	@requirements/install gateway $(abspath $(VENV)) $(PYTHON)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): $(STAMP) requirements/dev.txt requirements/torch-cpu.txt requirements/torch.txt
	@requirements/install dev $(abspath $(VENV)) $(PYTHON)
	@touch $@

run: setup ## Run the gateway on two simulated engines (ARGS="--port 9000" is passed on)
	@echo "Starting the gateway, an embedded PostgreSQL and two simulated engines: magnus demo $(ARGS)"
	@$(BIN)/magnus demo $(ARGS)

test: lint ## Lint, then run every test that needs no real engine
	$(BIN)/python -m pytest -m "not vllm"

test-unit: dev ## Run the tests that touch no network and no database
	$(BIN)/python -m pytest tests/unit tests/property

test-vllm: dev ## Run the tests against a real vLLM on the CPU (the first run downloads about 1 GB)
	$(BIN)/python bench/vllm_environment/install.py
	$(BIN)/python -m pytest -m vllm

lint: dev ## Check style, types and architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: dev ## Rewrite the code in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: dev ## Write docs/settings.md anew from the docstrings of the settings
	$(BIN)/python -m tests.unit.docs.settings_page

lock: setup ## Write the lock files anew from pyproject.toml (ARGS=--upgrade moves to the newest releases)
	PATH=$(abspath $(BIN)):$$PATH requirements/lock $(ARGS)

clean: ## Remove what the other targets made in this folder
	rm -rf $(VENV) dist build htmlcov .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
