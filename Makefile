# Everything runs in $(VENV), which is built on first use from pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXAMPLES ?= examples/*.py

.PHONY: compare test test-all lint types examples notebooks playground docs bench clean

compare: $(VENV)/installed
	$(BIN)/fnn compare

test: $(VENV)/installed-test
	$(BIN)/pytest -m "not slow"

test-all: $(VENV)/installed-test # with those that are slow by nature; COVERAGE=--cov measures it
	$(BIN)/pytest $(COVERAGE)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/pyright --pythonpath $(BIN)/python

examples: $(VENV)/installed
	ls $(EXAMPLES) | xargs -P 2 -I {} sh -c 'echo "== {}"; $(BIN)/python {} --quick || exit 255'

notebooks: $(VENV)/installed-docs # the chapters of the course, executed, into out/notebooks/
	$(BIN)/python scripts/make_notebooks.py --execute

playground: $(VENV)/installed # networks to play with, into out/playground.html
	$(BIN)/python scripts/make_playground.py

docs: $(VENV)/installed-docs # the site, into site/; a warning is an error
	test -f out/playground.html || $(BIN)/python scripts/make_playground.py --quick
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python scripts/docs_check.py

bench: $(VENV)/installed
	for file in one_program sweep driver conv lstm; do $(BIN)/python benchmarks/$$file.py || exit 1; done

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fnn needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[report]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) out site .pytest_cache .ruff_cache .hypothesis
