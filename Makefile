# make serve    install into a virtual environment and serve; ARGS="MODEL --port 9000 ..." go along
# make test     every check, in one go: ruff, ruff format, pyright, pytest; fails if one of them does
#
# Tests compute on one thread each: on a busy machine OpenMP's threads wait for one another.
#
# VENV is the virtual environment (made if missing), PYTHON the interpreter that makes it.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find server engine kernels -type f -not -path '*/__pycache__/*')

.PHONY: serve test clean

serve: $(VENV)/installed
	@exec $(BIN)/deltaserve serve $(ARGS)

test: $(VENV)/installed-for-tests
	@failed=; \
	check() { echo "== $$1"; name=$$1; shift; "$$@" || failed="$$failed $$name,"; }; \
	check "ruff check" $(BIN)/ruff check .; \
	check "ruff format" $(BIN)/ruff format --check .; \
	check "pyright" $(BIN)/pyright --pythonpath $(BIN)/python; \
	check "pytest" env OMP_NUM_THREADS=1 $(BIN)/python -m pytest; \
	if [ -n "$$failed" ]; then echo "failed:$${failed%,}" >&2; exit 1; fi

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis

# The two ways to install replace one another, so each forgets that the other was done.
$(VENV)/installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet .
	@rm -rf build $(VENV)/installed-for-tests
	@touch $@

$(VENV)/installed-for-tests: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@rm -f $(VENV)/installed
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
