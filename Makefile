# What people and CI type; `make` alone prints it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Which requirements are installed is remembered by stamps, so that a second call costs nothing.
DEV    := $(VENV)/.installed-dev
DEMO   := $(VENV)/.installed-demo
# The demo is content with the development environment where there is one.
READY  := $(if $(wildcard $(DEV)),$(DEV),$(DEMO))

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --annotation-style line

# All tests: one process more than there are processors, for many tests wait more than they compute. A file stays whole, and
# they begin in the order in which they stand, which ends with the unit tests: few and long ones at the end would be waited for.
AT_ONCE = --numprocesses $(shell expr 1 + `getconf _NPROCESSORS_ONLN`) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format protos constraints bench soak clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  PYTHON=python3.12 chooses another Python for the first install, ARGS='-k mean' is handed to test and demo."

install: $(DEV) ## make .venv with everything that development needs

demo: $(READY) ## run a whole network on this machine and watch it train
	@$(BIN)/runnel demo $(ARGS)

test: $(DEV) ## run all tests, some at once; with ARGS those that it names, one by one
	@$(BIN)/pytest $(or $(ARGS),$(AT_ONCE))

lint: $(DEV) ## check style, types and the direction of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy common compute_package reducer combiner client sdk tools tests benchmarks
	@$(BIN)/lint-imports --no-logo

format: $(DEV) ## format all code
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format

protos: $(DEV) ## write protos/gen anew from protos/runnel
	@$(BIN)/python tools/generate_stubs.py

constraints: $(DEV) ## pin the newest versions that fit, with hashes; ARGS='--upgrade-package X' moves only X
	@$(COMPILE) pyproject.toml requirements/build.in --extra all --group dev \
		--output-file requirements/dev.txt $(or $(ARGS),--upgrade)
	@$(COMPILE) pyproject.toml requirements/build.in --extra demo \
		--constraints requirements/dev.txt --output-file requirements/demo.txt $(or $(ARGS),--upgrade)
	@# Those of the images: what builds the wheel, what every component needs, and what each needs beside that.
	@$(COMPILE) requirements/build.in --constraints requirements/dev.txt --output-file requirements/build.txt
	@$(COMPILE) pyproject.toml --extra combiner --constraints requirements/dev.txt --output-file requirements/combiner.txt
	@$(COMPILE) pyproject.toml --extra client --extra data --extra mariadb --extra metrics --extra postgresql \
		--constraints requirements/dev.txt --output-file requirements/client.txt
	@$(COMPILE) pyproject.toml --extra reducer --extra postgresql --extra s3 --extra people \
		--constraints requirements/dev.txt --output-file requirements/reducer.txt

bench: $(DEV) ## run all benchmarks and keep what they found; ARGS=--quick only shows that they work
	@$(BIN)/python -m benchmarks.run $(ARGS)

soak: $(DEV) ## draw faults at random for MINUTES=10 and see that the ledger balances
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),10) $(ARGS)

clean: ## remove everything that was made, also .venv
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV): requirements/dev.txt pyproject.toml
	$(call install,$<)
	@touch $(DEV) $(DEMO)

$(DEMO): requirements/demo.txt pyproject.toml
	$(call install,$<)
	@touch $@

# The hashes are those of the index's files, whichever index pip is configured for.
define install
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Runnel needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
		echo "Name one that is, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(1) into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(1)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
endef
