# Everything from a fresh clone with Python >= 3.11 and make. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test properties lint format wheel data chaos peers bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PYTHON=$(PYTHON) VENV=$(VENV) ARGS='overrides for train, options for test'"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==26.3
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP) ## make .venv with the pinned dependencies

train: $(STAMP) ## fine-tune MiniLM on movie reviews, end to end (ARGS="peft=lora seed=2")
	$(BIN)/whet train $(ARGS)

test: $(STAMP) ## run all tests (ARGS="-k tokens")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

properties: $(STAMP) ## the whole product of methods, objectives and architectures, and other long tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow or not slow" tests/properties $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow --ignore tests/properties $(ARGS)

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP) ## build dist/whet-*.whl
	$(BIN)/python -m build --wheel

data: $(STAMP) ## show what the default task's data holds (ARGS="task=imdb")
	$(BIN)/whet data $(ARGS)

chaos: $(STAMP) ## kill, interrupt and damage runs; all must end the same (ARGS="--scale 0.1")
	$(BIN)/python benchmarks/chaos.py $(ARGS)

peers: $(STAMP) ## 32 peers start at once on a new study, 8 peers with 4 kills (SQLite, PostgreSQL)
	WHET_STARTERS=32 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v tests/sweep/test_peers.py

bench: $(STAMP) ## measure whet beside the alternatives, takes long (ARGS="startup --pairs 7", ARGS=--quick)
	$(BIN)/python benchmarks/run_all.py $(ARGS)

clean: ## remove .venv, caches and build outputs (runs in outputs/ stay)
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
