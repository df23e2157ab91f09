# Set variables on the command line, e.g. `make train PORT=4300 PIP_OPTIONS="--index-url …"`.
PYTHON ?= python3.11
VENV ?= .venv
# Options for uv and pip, e.g. `--extra-index-url https://download.pytorch.org/whl/cpu` on a host without a GPU.
PIP_OPTIONS ?=
PORT ?= 4200
DEPLOYMENT ?= sample

BIN := $(VENV)/bin
INSTALL = $(PIP_OPTIONS) --constraint constraints.txt --editable '.[dev]'
RUN_ID := $(shell date -u +%Y%m%d-%H%M%S)
INSTALLED := $(VENV)/.installed
# Without the theme's advertisement of its successor.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.DEFAULT_GOAL := help
.PHONY: help install train up down test check docs bench

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv and install the project into it
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# uv takes a sixth of pip's time, but does not read pip's settings, which may name the only index of a host.
	$(BIN)/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt uv && \
		$(BIN)/python -m uv pip install --python $(BIN)/python --index-strategy unsafe-best-match $(INSTALL) || \
		$(BIN)/python -m pip install $(INSTALL)
	@touch $@

up: install ## start the Prefect server and a worker, and deploy prefect.yaml
	$(BIN)/honeybee up --port $(PORT)

train: up ## run the deployment train-honeybee/$(DEPLOYMENT) and print its scores
	$(BIN)/honeybee submit train-honeybee/$(DEPLOYMENT) --run-id $(RUN_ID) --port $(PORT)

down: ## stop the server and the worker that `up` started
	@if test -x $(BIN)/honeybee; then $(BIN)/honeybee down; fi

test: install ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install ## run ruff, mypy and import-linter, and build the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports
	$(MKDOCS) build --strict --quiet

docs: install ## build the documentation into site/
	$(MKDOCS) build --strict

bench: install ## rerun the benchmarks that the documentation reports; ONLY=dedup for a subject
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))
