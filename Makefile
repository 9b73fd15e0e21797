# Every target sets up what it needs by itself. `make` alone lists the targets.

VENV_PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format faults bench pins clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

setup: ## make .venv with everything in it (nothing to do when it is up to date)
	@.ci/setup

demo: setup ## run the onboarding example end to end (ONCE=1: one round, then end)
	@$(VENV_PYTHON) -m examples.onboarding.demo $(if $(filter 1 yes true,$(ONCE)),--once)

test: setup ## run all tests (ARGS="-k words" goes to pytest)
	@$(VENV_PYTHON) -m pytest $(ARGS)

check: setup ## format, lint, types and layers, in seconds
	@.ci/check

format: setup ## format the code and mend what the linter can mend
	@$(VENV_PYTHON) -m ruff check --quiet --fix --exit-zero .
	@$(VENV_PYTHON) -m ruff format .

faults: setup ## kill everything at random under load, then check every promise (SECONDS=60 SEED=random)
	@$(VENV_PYTHON) -m tests.faults.long_run $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

bench: setup ## measure (ONLY=name: one benchmark; JSON=path: write the numbers there; SMALL=1: only see that all work)
	@$(VENV_PYTHON) -m benchmarks.run $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json $(JSON)) $(if $(filter 1 yes true,$(SMALL)),--small)

pins: ## take the newest versions of all packages and write them to constraints.txt
	@.ci/pin

clean: ## remove .venv and all caches
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
