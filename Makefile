# Two commands need no other step:  make demo   and   make test
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS ?= -c constraints.txt
VENV := .venv
BIN := $(VENV)/bin
# One for each processor: a worker spends half a minute of it on imports before its first test.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
INSTALL = $(BIN)/python -m pip install --progress-bar on --disable-pip-version-check --no-compile $(CONSTRAINTS) -e
# On all processors, which pip does on one; without the packages' own tests and hundreds of models. What fails is never imported.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/' $(VENV)/lib >/dev/null 2>&1 || true
# What Python compiles is kept, or each of the processes that tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check setup docs site clean help

help: ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/.demo ## train a network on real digits, make it small, prove it, write runs/demo
	@echo "paring: running the demo (about a minute)"
	@$(BIN)/paring demo

test: $(VENV)/.ready ## run the tests
	@echo "paring: running the tests (a few minutes)"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/.ready ## lint and type-check
	@$(BIN)/ruff check src evidence tests
	@$(BIN)/ruff format --check src evidence tests
	@$(BIN)/mypy

docs: $(VENV)/.ready ## regenerate the tables and figures of README and docs from results/
	@$(BIN)/python -m evidence docs

site: $(VENV)/.site ## build the pages of docs/ as a site in site/, offline, links checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "paring: the site is in site/; to read it: $(BIN)/python -m http.server -d site"

setup: $(VENV)/.ready ## only set up the virtual environment, with all that tests need

# What the demo needs is enough for it; tests need more, and bring that along.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "paring needs Python 3.11 or newer on the PATH; none was found. Or say which: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "paring: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu install the package python3-venv"; exit 1; }
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "paring: setting up $(VENV) (once; downloads PyTorch and a few packages, takes some minutes)"
	@$(INSTALL) '.[demo]'
	@$(COMPILE)
	@touch $@
	@echo "paring: set up"

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "paring: setting up $(VENV) for tests and checks (once; downloads PyTorch and more, takes some minutes)"
	@$(INSTALL) '.[dev]'
	@$(COMPILE)
	@touch $(VENV)/.demo $@
	@echo "paring: set up for tests"

$(VENV)/.site: $(VENV)/.ready
	@echo "paring: adding what builds the site (once)"
	@$(INSTALL) '.[site]'
	@$(COMPILE)
	@touch $@

clean: ## remove the virtual environment, the site and all runs
	rm -rf $(VENV) runs site
