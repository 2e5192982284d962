# A fresh machine needs Python 3.11 or newer, with venv and pip, and a package index.
#   make demo        convert a real language model, and show what came of it
#   make test        the tests that run within minutes
#   make test-all    the slow ones too
#   make test-gpu    those that need a CUDA device
#   make check       linter, formatter, two type checkers
# PYTHON=python3.12 chooses the interpreter of a new .venv; JOBS=1 runs the tests one by one.

PYTHON ?= python3
JOBS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-all test-gpu check install

demo: $(INSTALLED)
	$(BIN)/planish demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not gpu"

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright

install: $(INSTALLED)

# torch goes first and pinned: without a version, some indexes give the newest build, which has
# several gigabytes of CUDA packages. Where that version is missing, the range in pyproject.toml
# decides.
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("Planish needs Python 3.11 or newer, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install torch==2.13.0 || echo "torch 2.13.0 is not on offer here; taking another"
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@
