# Every target makes .venv and installs what it lacks; when nothing is missing it starts at once. Python compiles what
# it imports on its own: all 19,000 files would take over a minute.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ACTIVE := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help repro test test-slow fuzz bench lint audit install clean
help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

repro: $(VENV)/.run ## run the pipeline in params.yaml, then print metrics and the report's place
	@$(ACTIVE) deepcluster run
	@$(ACTIVE) deepcluster summary

test: $(VENV)/.dev ## the tests, without the slow ones
	@$(ACTIVE) pytest -n 2

test-slow: $(VENV)/.dev ## the slow tests
	@$(ACTIVE) pytest -m slow

fuzz: $(VENV)/.dev  ## the fuzz tests with 10,000 inputs each; what became of them goes to docs/reliability/fuzz.json
	@rm -f docs/reliability/fuzz.json
	@$(ACTIVE) FUZZ_INPUTS=10000 FUZZ_RECORD=docs/reliability/fuzz.json pytest -q $(wildcard tests/test_fuzz_*.py) tests/test_invariances.py

bench: $(VENV)/.dev ## the benchmarks
	@$(ACTIVE) python -m benchmarks

lint: $(VENV)/.dev ## formatting, lint, types, direction of imports
	@$(ACTIVE) ruff format --check .
	@$(ACTIVE) ruff check .
	@$(ACTIVE) mypy
	@$(ACTIVE) lint-imports --no-cache

audit: $(VENV)/.dev ## known vulnerabilities of what is installed; needs the network
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[audit]'
	@$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audit.txt
	@$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/audit.txt

install: $(VENV)/.dev ## everything, for development

$(VENV)/.run: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.run $@

clean:           ## remove the environment and tool caches; data stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
