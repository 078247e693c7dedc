# Every target makes its own environment in .venv from a python3 >= 3.11; PYTHON=... chooses another.
#
#   make demo    distil all-MiniLM-L6-v2 into 3 layers on this machine's documentation, and report
#   make test    the whole test suite
#   make fast    the tests that take seconds and need neither torch nor transformers
#   make lint    ruff
#   make notebook    experiments/notebooks/ablation.ipynb from its text; run into runs/notebook.ipynb

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
# More flags for the demo: make demo ARGS=--config.data.sources=my.txt
ARGS ?=

NOTEBOOK = experiments/notebooks/ablation
BIN = $(VENV)/bin
# uv resolves and installs several times faster than pip; the fallback is pip itself.
INSTALL = $(BIN)/python -m uv pip install --quiet --python $(BIN)/python
# The CPU build of torch: a tenth of the default download. Only parity tests need it; without it
# they are skipped, and the golden files under tests/golden stand in for it.
TORCH = torch==2.13.0+cpu
TORCH_INDEX = https://download.pytorch.org/whl/cpu

# Where it is set (many containers do), every process compiles jax and all else anew: three
# commands in a demo, dozens in the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test fast lint notebook clean

demo: $(VENV)/.demo
	$(BIN)/python -m experiments.distill --config=configs/demo.py --workdir=$(WORKDIR) $(ARGS)
	$(BIN)/python -m experiments.search --run=$(WORKDIR)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=60

fast: $(VENV)/.fast
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not parity"

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebook: $(VENV)/.notebook
	$(BIN)/jupytext --quiet --update --to ipynb $(NOTEBOOK).py
	mkdir -p runs
	$(BIN)/jupyter-execute --timeout=-1 --output=$(CURDIR)/runs/notebook.ipynb $(NOTEBOOK).ipynb

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.notebook: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[demo,tasks,notebook]'
	@touch $@

$(VENV)/.fast: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[demo,test,export,litert,notebook]'
	@touch $@

$(VENV)/.lint: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[lint]'
	@touch $@

# sentence-transformers would draw in the default torch, so it is installed after the CPU build.
$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[demo,test,export,litert,notebook]'
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 0 \
	    --extra-index-url $(TORCH_INDEX) '$(TORCH)'; \
	  then $(INSTALL) -e '.[parity]'; \
	  else echo "note: $(TORCH) is not to be had here; live parity tests will be skipped"; fi
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
