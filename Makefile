# Every chore of the project, the same here and in CI. `make help` lists them.

# A Python that is named has an environment of its own, beside that of the others: make test PYTHON=python3.13
VENV := .venv$(if $(PYTHON),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
RUN := $(VENV)/installed-all
DEV := $(VENV)/installed-dev

# Arguments reach the demo only when they are set: its own defaults are the ones documented.
DEMO_ARGS = $(if $(PORT),--port $(PORT)) $(if $(NODES),--nodes $(NODES))
ARGS ?=
BENCH ?= tests/benchmarks/bench_all.py

# An environment whose Python is gone, or whose folder was moved, is made anew.
ifneq ($(shell test -x $(BIN)/python && grep -qsF "$(CURDIR)/$(VENV)" $(BIN)/activate && echo usable),usable)
.PHONY: $(RUN) $(DEV)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
export PYTHON VENV

.PHONY: help setup run test test-fast tools lint ruff-check ruff-format format types mypy pyright verify-types contracts docs docs-serve \
	wheel deploy-tools bench bench-guard mutation torture check clean

help: ## List the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(RUN): pyproject.toml scripts/setup
	@scripts/setup all

$(DEV): pyproject.toml scripts/setup
	@scripts/setup dev
	@touch $(RUN)

setup: $(DEV) ## Make or refresh the environment that every chore uses

run: $(RUN) ## Set up, then run the demo chat on 127.0.0.1:8000 (PORT=9000 NODES=3)
	$(BIN)/socketspec demo $(DEMO_ARGS)

test: $(DEV) $(if $(ARGS),,tools) ## Set up, get the tools, then run the tests on all cores (ARGS="-k rooms -x" for some)
	@rm -f .pytest_cache/v/cache/lastfailed
	$(BIN)/python -m pytest -q -n auto --durations=10 $(ARGS) $(if $(ARGS),,|| scripts/again $$?)

test-fast: $(DEV) ## Set up, then run the tests of a moment each: unit/ and contract/, a few minutes
	$(BIN)/python -m pytest -q -n auto tests/unit tests/contract $(ARGS)

tools: $(DEV) ## Get what the tests run: Debian's Redis, proxies and Chromium, and the tools of deploy-tools
	@scripts/tools
	@$(BIN)/python scripts/deploy_tools.py

deploy-tools: $(DEV) ## Fetch Helm, promtool, checkov and the proxies that tests of deploy/ and helm/ use
	@$(BIN)/python scripts/deploy_tools.py

lint: ruff-check ruff-format ## Check style and formatting

ruff-check: $(DEV)
	$(BIN)/ruff check .

ruff-format: $(DEV)
	$(BIN)/ruff format --check .

format: $(DEV) ## Format, fix what can be fixed by itself, and draw docs/assets/architecture.svg anew
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/architecture.py

types: mypy pyright verify-types ## Check types: mypy, pyright, and that the public API is fully typed

mypy: $(DEV)
	$(BIN)/mypy
	cd docs/examples/orders && MYPYPATH=$(CURDIR) $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --explicit-package-bases .

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

bench-guard: $(DEV) ## Count instructions, and fail where they have become more (ARGS="event accept", ARGS=--write)
	@$(BIN)/python tests/benchmarks/guard.py $(ARGS)

mutation: $(DEV) ## Change the code and see what the tests notice (ARGS="socketspec/fanout/hub.py --all")
	@$(BIN)/python -m tests.mutation.mutate $(ARGS)

torture: $(DEV) ## Torture a cluster with faults drawn from a seed (SECONDS=1200 SEED=7 MODE=sentinel; see CONTRIBUTING.md)
	@$(BIN)/python -m tests.cluster.torture.run $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(MODE),--mode $(MODE)) $(ARGS)

check: ## Everything CI runs
	@.ci/run

clean: ## Remove all that was built or installed, the environments included
	rm -rf .venv .venv-* dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
