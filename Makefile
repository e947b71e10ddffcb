# Everything below needs Python 3.11+ and make, nothing else: servers and tools come from the lock file.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help install run test lint format bench chaos chaos-producers sabotage lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv and install the locked packages into it

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"usage-worker needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

run: install ## Start everything on embedded servers; ARGS="--events 20000 --exit" checks the books and leaves
	@exec $(BIN)/usage-worker dev $(ARGS)

test: install ## Run the whole test suite on real servers; ARGS is passed to pytest
	@exec $(BIN)/python -m pytest $(ARGS)

lint: install ## Format check, lint, strict types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Rewrite the sources the way lint wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: install ## Measure; ARGS names a benchmark (none: list them)
	@exec $(BIN)/python -m benchmarks $(ARGS)

chaos: install ## Kill, cut and fill everything while events flow, then check the books; ARGS="--events 1000000 --seed 7"
	@exec $(BIN)/python -m tests.chaos $(ARGS)

chaos-producers: install ## The same for those who emit, with a spool; ARGS="--events 200000 --seed 7"
	@exec $(BIN)/python -m tests.chaos.producers $(ARGS)

sabotage: install ## Plant known bugs in a copy, one at a time: the suite must notice each
	@exec $(BIN)/python -m tests.sabotage $(ARGS)

lock: install ## Resolve pyproject.toml again into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file requirements.lock

clean: ## Remove .venv and every cache
	rm -rf $(VENV) .venv-peers dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
