# One command each, on a fresh machine with Python 3.10 or newer: make demo, make test.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PACKAGES := runtime targets calibration exporter
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint typecheck unit bench clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED)  ## the demo ensemble in PyTorch, float32 and int8, decisions side by side
	$(BIN)/python examples/demo/run.py

test: lint typecheck unit  ## everything CI runs

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(INSTALLED)  ## mypy, strict
	@# The packages lie in top-level folders and install under one namespace; mypy sees them through links.
	@mkdir -p build/typecheck/trunkline
	@for package in $(PACKAGES); do ln -sfn ../../../$$package build/typecheck/trunkline/$$package; done
	MYPYPATH=build/typecheck $(BIN)/mypy $(PACKAGES:%=-p trunkline.%)

unit: $(INSTALLED)  ## pytest
	$(BIN)/pytest -n $(JOBS) -m "not slow"

bench: $(INSTALLED)  ## full scale against PyTorch; about 15 minutes and 10 GB of disk
	$(BIN)/python benchmarks/full_scale.py --work build/full_scale --write docs/benchmarks.md

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

clean:  ## remove the environment and everything that was built
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
