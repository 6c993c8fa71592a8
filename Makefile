# Every target builds .venv itself, once, from pinned requirements. ARGS go to the command that the target runs:
#   make demo ARGS="--for 120s --report demo.json"
# PIP_ARGS go to pip: where a CPU-only torch lies on another index, name it with --extra-index-url for a far smaller download.
PYTHON ?= python3
ARGS ?=
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help demo test lint format bench chaos e2e docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    everything on this machine, MovieLens-1M flowing, a live table    ARGS=\"--for 90s --report FILE\""
	@echo "make test    all tests, on every broker that is available                      ARGS=\"-k words\""
	@echo "make lint    ruff, mypy --strict, import contracts"
	@echo "make format  let ruff write the layout"
	@echo "make bench   speed, memory and quality, one JSON report                        ARGS=\"--report FILE\""
	@echo "make chaos   the demo for 180 s with a process killed (-9) every 20 s          ARGS=\"--report FILE\""
	@echo "make e2e     build the image, run docker-compose.yml, see metrics and a score"
	@echo "make docs    write docs/configuration.md anew"
	@echo "make clean   remove .venv, caches and compiled kernels"

$(VENV)/.runtime: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or later is needed, this is {v.major}.{v.minor}; make PYTHON=python3.12 names another")'
	@echo "installing pinned requirements into $(VENV) (the first time takes minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(PIP_ARGS) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@if [ -f thousandfold/warm.py ]; then echo "compiling kernels once"; $(BIN)/python -m thousandfold.warm; fi
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	$(PIP) $(PIP_ARGS) -r requirements-dev.txt
	@touch $@

# Peers that this machine cannot have do not keep the other benchmarks from running.
$(VENV)/.peers: $(VENV)/.dev requirements-peers.txt
	@$(PIP) $(PIP_ARGS) --no-deps -r requirements-peers.txt && touch $@ || echo "peers of bench training: not installed, so not measured"

demo: $(VENV)/.runtime
	$(BIN)/thousandfold demo $(ARGS)

chaos: $(VENV)/.runtime
	$(BIN)/thousandfold demo --chaos --for 180s $(ARGS)

test: $(VENV)/.dev
	bash ops/test.sh $(BIN)/python $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.peers
	$(BIN)/thousandfold bench all $(ARGS)

e2e:
	bash ops/e2e.sh $(ARGS)

docs: $(VENV)/.runtime
	$(BIN)/thousandfold config document --out docs/configuration.md

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name '*.nb[ic]' -delete
