# `make quickstart` trains and evaluates a small model, `make test` runs all checks, `make dense` installs what detection
# and segmentation need, `make test-dense` checks them. All make .venv first.
.DELETE_ON_ERROR:
.PHONY: quickstart test test-dense dense lint clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

quickstart: .venv/train
	$(BIN)/saccade train classification/quickstart
	$(BIN)/saccade evaluate classification/quickstart

test: lint
	$(BIN)/python -m pytest -n 2 -m "not speed"
	$(BIN)/python -m pytest -m speed

test-dense: .venv/test .venv/dense
	$(BIN)/python -m pytest -n 2 tests/tools/dense

dense: .venv/dense

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "saccade needs Python 3.11 or newer; none is on the PATH (make PYTHON=/path/to/python names one)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/train: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[train]"
	touch $@

# NATTEN serves as an oracle; with no GPU in sight it installs as pure Python instead of compiling its kernels.
.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[test]"
	CUDA_VISIBLE_DEVICES= $(PIP) --no-build-isolation natten
	touch $@ .venv/train

# mmcv compiles its operators against the torch in .venv: about 10 minutes on 2 cores, once; pip keeps the wheel.
# Of the two OpenCVs that the toolboxes ask for, the one that needs no display is installed last and stays.
.venv/dense: .venv/train
	$(PIP) "setuptools>=80,<82" wheel ninja psutil
	$(PIP) --no-build-isolation --editable ".[dense]"
	$(PIP) --force-reinstall --no-deps opencv-python-headless
	touch $@
