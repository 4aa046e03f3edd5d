# make demo   a real reranking job on this machine, in about a minute
# make test   the tests
# make chaos  faults of every kind, and whether every row is there once; an hour (ROUNDS=1: minutes)
# make soak   does anything grow in an hour (MINUTES=5: in five minutes)
# All set everything up first, in .venv, under constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test check format bench chaos soak clean

help:
	@sed -n 's/^# //p' Makefile

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "rankmill needs Python 3.11 to 3.13; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,demo,japanese,lora,quantize,notebooks,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/rankmill demo

# Two processes, a Ray cluster each: most of a test's time is waiting for one. Files in their order:
# xdist would keep those with few tests for the end, and they are the longest.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
		--durations 30

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python benchmarks/ceiling.py

ROUNDS ?= 10
SEED ?= 7
chaos: $(READY)
	$(BIN)/python benchmarks/chaos.py --rounds $(ROUNDS) --seed $(SEED)

MINUTES ?= 60
soak: $(READY)
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
