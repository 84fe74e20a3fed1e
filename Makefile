# make run     the gateway and a PostgreSQL of its own, ready to be asked
# make help    everything else

PYTHON ?= python3
PORT ?= 8080
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin

# A home that is missing or cannot be written to must not stop anything.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export UV_CACHE_DIR ?= $(CURDIR)/.tools/cache
export PIP_CACHE_DIR ?= $(CURDIR)/.tools/pip-cache
export MYPY_CACHE_DIR ?= $(CURDIR)/.mypy_cache
endif
export UV_PYTHON_DOWNLOADS ?= never
export UV_NO_PROGRESS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# $(1): a file of pinned requirements. Leaves a complete $(VENV), or says what is missing.
# uv if it is there; else uv, fetched into .tools by pip; else Python's own venv. What uv
# cannot fetch (from an index that only pip knows), pip fetches into the environment uv made.
define environment
	@set -eu; \
	sum() { cat $$1 pyproject.toml client/pyproject.toml 2>/dev/null | cksum; }; \
	holds() { [ "$$(cat $(VENV)/.stamp-$$1 2>/dev/null)" = "$$(sum $$1)" ]; }; \
	if [ -x $(BIN)/python ] && { holds $(1) || holds requirements-dev.txt; }; then exit 0; fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "pgsluice needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	uv="$$(command -v uv || true)"; \
	if [ -z "$$uv" ]; then \
	  [ -x .tools/bin/uv ] || $(PYTHON) -m pip install --quiet --target .tools uv >/dev/null 2>&1 || true; \
	  if .tools/bin/uv --version >/dev/null 2>&1; then uv=.tools/bin/uv; fi; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "making $(VENV)"; \
	  if [ -n "$$uv" ]; then "$$uv" venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); \
	  elif ! $(PYTHON) -m venv $(VENV); then \
	    rm -rf $(VENV); \
	    echo "cannot make $(VENV): install uv, or Debian's python3-pip or python3-venv" >&2; exit 1; \
	  fi; \
	fi; \
	echo "installing $(1)"; \
	index="$${PIP_INDEX_URL:-$$($(PYTHON) -m pip config get global.index-url 2>/dev/null || true)}"; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
	packages="-e ."; if [ -f client/pyproject.toml ]; then packages="-e . -e ./client"; fi; \
	fill() { \
	  "$$@" install --quiet --require-hashes -r $(1) \
	  && "$$@" install --quiet --no-deps --no-build-isolation $$packages; \
	}; \
	if [ -n "$$uv" ] && VIRTUAL_ENV="$(CURDIR)/$(VENV)" fill "$$uv" pip 2>$(VENV)/uv.log; then :; \
	elif $(BIN)/python -m pip --version >/dev/null 2>&1; then fill $(BIN)/python -m pip; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then fill $(PYTHON) -m pip --python $(BIN)/python; \
	else cat $(VENV)/uv.log >&2; exit 1; fi; \
	sum $(1) > $(VENV)/.stamp-$(1)
endef

.PHONY: help run dev deps test test-full test-faults test-nodes fuzz check bench bench-fanin bench-client lock clean

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-16s %s\n", $$1, $$2 }'

run:  ## the gateway on PORT (8080) with a PostgreSQL of its own
	$(call environment,requirements.txt)
	@exec $(BIN)/pgsluice dev --port $(PORT)

dev: deps  ## the same with everything installed that the tests need
	@exec $(BIN)/pgsluice dev --port $(PORT)

deps:  ## the environment for tests and checks, in .venv
	$(call environment,requirements-dev.txt)

test: deps  ## all tests but the slow ones
	@$(BIN)/python -m pytest -n $(WORKERS) -q -m "not slow" tests

test-full: deps  ## all tests
	@$(BIN)/python -m pytest -n $(WORKERS) -q tests

test-faults: deps  ## a load of writes under every fault; OPERATIONS (200000) and SEED
	@PGSLUICE_TEST_INSTALL=1 $(BIN)/python -m tests.faults --operations $(or $(OPERATIONS),200000) \
	  $(if $(SEED),--seed $(SEED))

fuzz: deps  ## what reads callers' bytes, fuzzed for SECONDS (600) each
	@PGSLUICE_TEST_INSTALL=1 FUZZ_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -q -s tests/faults/test_fuzz.py

test-nodes: deps  ## three nodes behind HAProxy: load, faults, figures
	@PGSLUICE_TEST_INSTALL=$${PGSLUICE_TEST_INSTALL:-1} $(BIN)/python -m pytest -q -s -rs tests/nodes/test_house.py

check: deps  ## style, types, floors, dead code, what is deployed, and the tests of core
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy gateway $(wildcard client/pgsluice)
	@$(BIN)/lint-imports
	@$(BIN)/vulture gateway $(wildcard client/pgsluice)
	@$(BIN)/python -m pytest -q -rs -m "not slow" tests/deploy/test_validators.py tests/deploy/test_watching.py \
	  tests/observe/test_metrics.py::test_promtool_finds_no_fault
	@$(BIN)/python -m pytest -q tests/core

bench-client: deps  ## a cold start with pgsluice and with other clients
	@exec $(BIN)/python -m benchmarks.bench_client

bench: deps  ## statements and large results against their peers, with figures
	@exec $(BIN)/python -m benchmarks

bench-fanin: deps  ## ten thousand callers: the gateway, PgBouncer, PostgreSQL itself
	@$(BIN)/python -m benchmarks.bench_fanin --keep
	@$(BIN)/python -m benchmarks.bench_fairness --keep
	@$(BIN)/python -m benchmarks.plot

lock: deps  ## pin the newest allowed versions again (needs uv)
	@set -eu; uv="$$(command -v uv || echo .tools/bin/uv)"; \
	pin="$$uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  pyproject.toml --extra local --group pyproject.toml:build"; \
	$$pin -o requirements.txt >/dev/null; \
	$$pin --extra dev -c requirements.txt -o requirements-dev.txt >/dev/null

clean:  ## remove .venv, .tools, .pgsluice and all caches
	@for file in $$(find .pgsluice -name postmaster.pid 2>/dev/null); do \
	  if kill -0 "$$(head -n 1 $$file)" 2>/dev/null; then \
	    echo "the development server is running: stop it first (Ctrl-C where it was started)" >&2; exit 1; \
	  fi; \
	done
	rm -rf .pgsluice $(VENV) .tools build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
