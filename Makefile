# `make help` lists the targets; each makes .venv on its first use and reuses it. tests/README.md says more about the
# tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Some of the tested versions are not made for Python 3.10, which gets the newest that are.
TESTED = $$($(PYTHON) -c 'import sys; print("--constraint requirements-tested.txt" if sys.version_info >= (3, 11) else "")')

# Two processes, each with an embedded Ray of its own where it needs one; a file's tests stay together, and begin
# in the order in which they are collected.
SHARED := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-slow test-alone test-all lint bench clean
.DEFAULT_GOAL := test

# Reinstalled when the project's requirements change, not when its code does (the install is editable).
$(READY): pyproject.toml requirements-tested.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python >= 3.10 is needed"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TESTED) --editable '.[dev]'
	touch $@

help:  ## this list; plain `make` is `make test`
	@awk -F ':.*## +' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY)  ## .venv, with this package (editable) and what develops it

demo: $(READY)  ## draw pictures, train a detector on them, measure it
	$(BIN)/spp demo

test: $(READY)  ## what is neither slow nor alone: minutes
	$(BIN)/python -m pytest $(SHARED) -m "not slow and not alone"

# What `make test` leaves out, in two parts: what can share the machine, and what cannot.
test-slow: $(READY)  ## what is slow and can share the machine
	$(BIN)/python -m pytest $(SHARED) -m "slow and not alone"

test-alone: $(READY)  ## what must have the machine to itself
	$(BIN)/python -m pytest -m alone

test-all: test test-slow test-alone  ## every test

lint: $(READY)  ## ruff, mypy, and the floors (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## the benchmarks that fit into 15 minutes; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks.suite --write docs/benchmarks.md

clean:  ## drop .venv and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
