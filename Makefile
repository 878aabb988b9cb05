# The commands of this project. They need Python 3.11 or newer and make; everything else they set up themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OTHERS := 3.12 3.13
# Most tests wait for processes: five at a time, each fifth with services of its own. What measures time runs alone.
WORKERS ?= 5
SHARD ?= 1/1
MESSAGES ?= 200000
KILLS ?= 100
# Tests start a thousand processes: what these import is compiled once, also where the environment says otherwise.
unexport PYTHONDONTWRITEBYTECODE
TOGETHER := -n $(WORKERS) --dist worksteal
FAILED := --last-failed --last-failed-no-failures none

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-again unit test-crash test-random check format bench lock clean

help: ## Print this message
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/ready ## Make the environment from the locked versions

$(VENV)/ready: requirements/dev.lock pyproject.toml
	@$(PYTHON) tools/make_venv.py $(VENV) requirements/dev.lock
	@touch $@

demo: venv ## Watch orders flow through a real Kafka into a real Postgres while workers are killed
	@$(BIN)/eventflow demo

test: venv ## Run the whole suite, on real services
	@$(BIN)/pytest $(TOGETHER) -m "not long and not large and not alone"
	@$(BIN)/pytest -m "alone and not long and not large"

test-again: venv ## Run what failed in `make test` again, one at a time, and what measures time
	@$(BIN)/pytest $(FAILED) -m "not long and not large"
	@$(BIN)/pytest -m "alone and not long and not large" || $(BIN)/pytest $(FAILED) -m "not long and not large"

unit: venv ## Run the unit tests: seconds, no services
	@$(BIN)/pytest tests/unit -q

test-crash: venv ## Run the long form of the crash tests: 20 seeds; again after Ctrl-C: what is left; SHARD=2/4: a part
	@EVENTFLOW_CRASH_SEEDS=$${EVENTFLOW_CRASH_SEEDS:-20} \
	  $(BIN)/pytest -p tests.long_run --shard $(SHARD) $(TOGETHER) tests -m "(crash or long) and not large"

test-random: venv ## Kill at random under load: MESSAGES=200000 KILLS=100; SEED=7 repeats a run, which says its seed
	@EVENTFLOW_TEST_SEED=$(SEED) EVENTFLOW_TEST_MESSAGES=$(MESSAGES) EVENTFLOW_TEST_KILLS=$(KILLS) \
	  $(BIN)/pytest -q -m large -o faulthandler_timeout=0 tests/integration/test_at_random.py

check: venv ## Formatter, linter, type checker, import layers, unit tests on other Pythons
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/pyright -p tests/typing
	@$(BIN)/lint-imports
	@$(PYTHON) tools/other_pythons.py $(BIN) $(OTHERS)

format: venv ## Format the code, and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: venv ## Measure, beside the rivals, in one run; memory over 2,000,000 messages
	@$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	@$(BIN)/python -m benchmarks --memory 2000000
	@$(BIN)/python -m benchmarks.workflows
	@$(BIN)/python -m benchmarks.schedules
	@$(BIN)/python -m benchmarks.publishing
	@$(BIN)/python -m benchmarks.telemetry

lock: venv ## Resolve the locked versions anew
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev -o requirements/dev.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra bench -c requirements/dev.lock -o requirements/bench.lock pyproject.toml

clean: ## Remove the environment and what local services have stored
	@rm -rf $(VENV) .venv-* .eventflow build dist
