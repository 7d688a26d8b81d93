# Every target works on a fresh clone: it makes .venv first, and installs nothing where .venv is up to date.
#   make run ARGS="--data manifest.csv"     PYTHON=python3.12 picks the Python that .venv is made from
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs-installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SLOW := slow or cluster or browser
EXHAUSTIVE := exhaustive

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install run test test-slow test-faults test-all coverage lint types check bench docs clean

help:
	@echo "make run        the study over all bones; ARGS=... is appended to the command"
	@echo "make test       the fast tests"
	@echo "make test-all   the fast tests, then those with several nodes, a browser or minutes to spend"
	@echo "make test-faults  every fault of the fault harness, for an hour"
	@echo "make coverage   the fast tests, and the lines that they do not reach"
	@echo "make check      lint, types and the fast tests"
	@echo "make bench      how fast whole networks are trained, against the same step on tensors in memory"
	@echo "make docs       build the documentation site in site/"
	@echo "make clean      remove .venv and caches; runs/ stays"

install: $(INSTALLED)

run: $(INSTALLED)
	$(BIN)/python run_study.py --all-bones $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not ($(SLOW))" $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "($(SLOW)) and not $(EXHAUSTIVE)" $(ARGS)

test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m "$(EXHAUSTIVE)" $(ARGS)

test-all: test test-slow

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -m "not ($(SLOW))" --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED)
	$(BIN)/mypy

check: lint types test

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.finetune_throughput $(ARGS)

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself, so that a torch that is already there (another build, say) is kept.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "PYTHON=$(PYTHON): must be Python 3.11 or newer; name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "PYTHON=$(PYTHON): has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Making .venv (once, some minutes)"
	@$(PYTHON) -m venv .venv
	@echo "Installing torch and torchvision"
	@$(PIP_INSTALL) torch torchvision
	@echo "Installing the project and what else it needs"
	@$(PIP_INSTALL) -e ".[train,dev]"
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	@echo "Installing the documentation tools"
	@$(PIP_INSTALL) -e ".[docs]"
	@touch $@
