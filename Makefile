# Everything is installed into .venv; nothing outside this folder changes. POSIX sh, GNU make 3.81 or later.
# pip's own settings apply: an index or a proxy set in pip's configuration or environment is used.

PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test slow lint types dev clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:  ## list the targets
	@echo "make [PYTHON=python3.12] [ARGS='more arguments'] TARGET"
	@sed -n 's/^\([a-z]*\):.*## */  \1	/p' Makefile

demo: $(VENV)/.zoo  ## install, then zoo demo
	$(BIN)/zoo demo $(ARGS)

test: $(VENV)/.test  ## the quick test suite
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

slow: $(VENV)/.test  ## the slow truths; none is fine too
	$(BIN)/python -m pytest -m slow $(ARGS) || test $$? -eq 5

lint: $(VENV)/.dev  ## ruff: rules and format
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

types: $(VENV)/.dev  ## mypy
	$(BIN)/python -m mypy

dev: $(VENV)/.dev  ## only install what the other targets need

clean:  ## remove .venv, caches and builds; your results stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# A stamp per set of packages: a target installs once, and again when pyproject.toml has changed.
$(VENV)/.zoo: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(PIP) install --editable ".[test]"
	@touch $@ $(VENV)/.zoo

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable ".[dev]"
	@touch $@ $(VENV)/.zoo $(VENV)/.test

# Empty if the interpreter does not run, or cannot make a virtual environment.
version = $(shell "$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
recent  = $(shell "$(PYTHON)" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)
venv    = $(shell "$(PYTHON)" -c 'import ensurepip, venv; print("here")' 2>/dev/null)

$(BIN)/python:
	$(if $(version),,$(error $(PYTHON) does not run; install Python 3.11 or later, or name one: make PYTHON=/path/to/python $(MAKECMDGOALS)))
	$(if $(filter True,$(recent)),,$(error $(PYTHON) is Python $(version), but 3.11 or later is needed; name one: make PYTHON=/path/to/python $(MAKECMDGOALS)))
	$(if $(filter here,$(venv)),,$(error $(PYTHON) has no venv module; on Debian and Ubuntu: sudo apt install python3-venv))
	"$(PYTHON)" -m venv --clear $(VENV)
