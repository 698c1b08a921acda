# `make demo` and `make test` work as the first command on a machine with Python 3.11+, pip and make.
PYTHON ?= python3
BIN := .venv/bin
# Versions that were tested together; torch's build (CPU or CUDA) is pip's choice by its own settings.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint bench clean

demo: .venv/.installed-demo
	$(BIN)/omniopd demo

test: .venv/.installed-dev
	$(BIN)/pytest

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.installed-dev
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv runs

.venv/.installed-demo: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing into .venv; the first time takes a few minutes"
	$(INSTALL) '.[train]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing into .venv; the first time takes a few minutes"
	$(INSTALL) '.[train,dev]'
	@touch $@ .venv/.installed-demo

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "omniopd needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
