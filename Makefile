# Everything happens in .venv; nothing is installed elsewhere.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint format dev install clean

quickstart: $(VENV)/pipeline.installed  ## environment, install, and the whole graph on the embedded data
	$(BIN)/neuroranker run

install: $(VENV)/dev.installed  ## the environment with all that development needs

test: $(VENV)/dev.installed  ## every test
	$(BIN)/python -m pytest

lint: $(VENV)/dev.installed  ## format, lint and types, as CI checks them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy neuroranker_pipeline

format: $(VENV)/dev.installed  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dev: $(VENV)/pipeline.installed  ## the Dagster UI on the profile's persistent instance
	$(BIN)/neuroranker dev

clean:  ## remove the environment and caches; the data lake stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
		{ echo "Python 3.11 is needed: install it, or name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/%.installed: $(VENV)/bin/python setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
