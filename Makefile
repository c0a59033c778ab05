# Every chore of the project, the same here and in CI. `make help` lists them.

BIN := .venv/bin
RUN := .venv/installed-all
DEV := .venv/installed-dev

# Arguments reach the demo only when they are set: its own defaults are the ones documented.
DEMO_ARGS = $(if $(PORT),--port $(PORT)) $(if $(NODES),--nodes $(NODES))
ARGS ?=
BENCH ?= tests/benchmarks/bench_all.py

# What runs a second time on our own WebSocket protocol: everything that starts a plain uvicorn.
FAST := --ws socketspec.adapters.uvicorn:WebSocketProtocol
ON_FAST := $(addprefix tests/e2e/test_,bad_input.py slow_client.py how_to_page.py mounting.py sessions.py)

# An environment whose Python is gone, or whose folder was moved, is made anew.
ifneq ($(shell test -x $(BIN)/python && grep -qsF "$(CURDIR)/.venv" $(BIN)/activate && echo usable),usable)
.PHONY: $(RUN) $(DEV)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
export PYTHON

.PHONY: help run test lint ruff-check ruff-format format types mypy pyright verify-types contracts docs docs-serve \
	wheel deploy-tools bench mutation check clean

help: ## List the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(RUN): pyproject.toml scripts/setup
	@scripts/setup all

$(DEV): pyproject.toml scripts/setup
	@scripts/setup dev
	@touch $(RUN)

run: $(RUN) ## Set up, then run the demo chat on 127.0.0.1:8000 (PORT=9000 NODES=3)
	$(BIN)/socketspec demo $(DEMO_ARGS)

test: $(DEV) ## Set up, then run the tests (ARGS="-k rooms -x")
	$(BIN)/python -m pytest -q --durations=10 $(ARGS)
	$(if $(ARGS),,SOCKETSPEC_TEST_UVICORN="$(FAST)" $(BIN)/python -m pytest -q -m "not asgi_only" $(ON_FAST))

deploy-tools: $(DEV) ## Fetch Helm, promtool, checkov and the proxies that tests of deploy/ and helm/ use
	$(BIN)/python scripts/deploy_tools.py

lint: ruff-check ruff-format ## Check style and formatting

ruff-check: $(DEV)
	$(BIN)/ruff check .

ruff-format: $(DEV)
	$(BIN)/ruff format --check .

format: $(DEV) ## Format, and fix what can be fixed by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: mypy pyright verify-types ## Check types: mypy, pyright, and that the public API is fully typed

mypy: $(DEV)
	$(BIN)/mypy

# pyright takes the environment to look into from PATH; --verifytypes heeds nothing else.
pyright verify-types: export PATH := $(CURDIR)/$(BIN):$(PATH)

pyright: $(DEV)
	pyright

verify-types: $(DEV)
	pyright --verifytypes socketspec --ignoreexternal

contracts: $(DEV) ## Check who may import whom
	$(BIN)/lint-imports

docs: $(DEV) ## Build the documentation into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(DEV) ## Serve the documentation while you write it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel: $(DEV) ## Build sdist and wheel into dist/, and try the wheel in a clean environment
	$(BIN)/python scripts/wheel_smoke.py

bench: $(DEV) ## Measure against peers: one table (ARGS="--quick", ARGS="idle leak", BENCH=tests/benchmarks/bench_cluster.py)
	@$(BIN)/python $(BENCH) $(ARGS)

mutation: $(DEV) ## Change the code and see what the tests notice (ARGS="socketspec/hub.py --all")
	@$(BIN)/python -m tests.mutation.mutate $(ARGS)

check: ## Everything CI runs
	@.ci/run

clean: ## Remove all that was built or installed, .venv included
	rm -rf .venv dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
