# One command each: `make demo` runs the main job, `make test` the tests. Both set everything up in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test gpu reliability setup lint clean

demo: setup
	$(BIN)/hpa-lightning demo $(DEMO)

# Files of tests side by side, one on each core; `make test PYTEST="-x" TESTS=tests/fuse` for some of them.
test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST) $(TESTS)

# Everything that only a GPU can tell; see benchmarks/gpu.sh.
gpu: setup
	PYTHON=$(BIN)/python benchmarks/gpu.sh $(GPU)

# What breaks, loses or hangs: kills, generated inputs, processes, disks, versions; `make reliability RELIABILITY=--small`.
reliability: setup
	PYTHON=$(BIN)/python benchmarks/reliability/all.sh $(RELIABILITY)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Set-up is skipped while nothing that it depends on has changed.
setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else 'hpa_lightning needs Python 3.10 or newer, this is ' + sys.version.split()[0])"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
