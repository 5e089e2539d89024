PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow lint format parity clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv with the pinned versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "genvis needs Python 3.11 or newer, as in: make install PYTHON=python3.12" >&2; exit 1; }
	@echo "installing into $(VENV): about two minutes and 5 GB"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	@touch $@

quickstart: $(STAMP) ## the main job on real digits: train, search, quantize, evaluate, report
	$(RUN) sampling/quickstart.py

test: $(STAMP) ## the tests that need neither patience nor a GPU
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 -m "not slow and not gpu"

test-slow: $(STAMP) ## the slow tests
	$(RUN) -m pytest -m "slow and not gpu"

lint: $(STAMP) ## formatting, lint rules and types, without changing anything
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(STAMP) ## rewrite the sources in the house format
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

parity: $(STAMP) ## compare with recorded outputs: make parity GOLDEN=dir
	$(RUN) -m pytest tests/parity $(if $(GOLDEN),--golden "$(GOLDEN)")

clean: ## remove caches and build output; .venv and runs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
