# make serve    install into a virtual environment and serve; ARGS="MODEL --port 9000 ..." go along
# make test     every check, in one go: ruff, ruff format, pyright, pytest; fails if one of them does
# make gpu      on a machine with a GPU: the tests that need one, then one table of steps and
#               kernels against their floors, whatever the tests say; fails if either does
# make lock     write deploy/requirements-*.txt anew: what the images install, by hash
#
# Tests compute on one thread each: on a busy machine OpenMP's threads wait for one another.
#
# VENV is the virtual environment (made if missing), PYTHON the interpreter that makes it.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find server engine kernels -type f -not -path '*/__pycache__/*')

# The CPU build of torch has an index of its own.
TORCH_CPU ?= --extra-index-url https://download.pytorch.org/whl/cpu
LOCK := $(BIN)/uv pip compile --quiet --upgrade pyproject.toml --generate-hashes --no-annotate \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --index-strategy unsafe-best-match --custom-compile-command "make lock"

.PHONY: serve test gpu lock clean

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

gpu: $(VENV)/installed-for-tests
	@failed=; \
	$(BIN)/python -m pytest -m gpu || failed="$$failed tests,"; \
	$(BIN)/python -m tests.benchmarks.gpu_table || failed="$$failed table,"; \
	if [ -n "$$failed" ]; then echo "failed:$${failed%,}" >&2; exit 1; fi

lock: | $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) $(TORCH_CPU) --output-file deploy/requirements-cpu.txt
	$(LOCK) --output-file deploy/requirements-cuda.txt

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
