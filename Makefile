# Each target sets up .venv by itself when it is missing or older than requirements.txt.
PYTHON ?= python3
BIN := .venv/bin
SCALE ?= laptop

.PHONY: run test check report pdf record bench lint

run: .venv/ready
	$(BIN)/python -m replib serve

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile --no-loadscope-reorder

check: .venv/ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

report: .venv/ready
	$(BIN)/python -m replib report

pdf: .venv/ready
	$(BIN)/python -m replib report --pdf

record: .venv/ready
	$(BIN)/python -m replib record all --scale $(SCALE)

bench: .venv/ready
	$(BIN)/python -m benchmarks

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/marimo -l ERROR check --strict notebooks

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
