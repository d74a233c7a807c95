# `make help` lists the targets. Each makes the environment first, if need be.
# Without make, the same commands in plain pip stand in README.md.

VENV     ?= .venv
PYTHON   ?= python3
NOTEBOOK ?= reproduce/cifar_wavelet.ipynb
OUT      ?= out.ipynb
PARAMS   ?=
MINUTES  ?= 5
DATASET  ?= auto
TABLES_ARGS ?=
WORKERS  ?= 2
PYTEST_ARGS ?=
LAB_ARGS ?=
HOLD     ?=
FUZZ_FILES ?= 10000

BIN   := $(VENV)/bin
STAMP := $(VENV)/.pcdm-installed
TOOLS := $(VENV)/.pcdm-tools-installed

# Notebooks run in this environment's Python, whatever kernels the user has installed
# under the name python3.
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH

.DEFAULT_GOAL := help
.PHONY: help venv reproduce tables test fuzz lint docs lab constraints clean distclean FORCE

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | \
	while IFS='|' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done

# The stamp holds the path of the checkout it was made for, so that an environment shared
# by two checkouts, or moved with one, is installed again. It is written last: a
# half-made environment has none.
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
$(STAMP): pyproject.toml constraints.txt
	@rm -f "$(STAMP)"
	@"$(PYTHON)" -c 'import sys; sys.exit("pcdm-lib needs Python 3.11 or newer, and $(PYTHON) is %d.%d: try make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install -e ".[test]" -c constraints.txt
	"$(BIN)/python" -m pip check
	@echo "$(CURDIR)" > "$(STAMP)"

# what only lint and docs need, in the same environment
$(TOOLS): $(STAMP)
	"$(BIN)/python" -m pip install -e ".[test,docs,dev]" -c constraints.txt
	@echo "$(CURDIR)" > "$(TOOLS)"

venv: $(STAMP)  ## make the environment in VENV (.venv), from PYTHON (python3)

reproduce: $(STAMP)  ## run NOTEBOOK into OUT (out.ipynb), with PARAMS="-p name value ..."
	@if [ "$(OUT)" -ef "$(NOTEBOOK)" ]; then echo "OUT is NOTEBOOK itself: give another OUT" >&2; exit 2; fi
	@mkdir -p "$(dir $(OUT))"
	"$(BIN)/python" -m papermill --engine pcdm --log-output --no-progress-bar $(NOTEBOOK) $(OUT) $(PARAMS)

tables: $(STAMP)  ## train every system for MINUTES each on DATASET, then print every table; goes on where it was stopped
	"$(BIN)/python" -m pcdm_lib tables --minutes $(MINUTES) --dataset "$(DATASET)" $(TABLES_ARGS)

test: $(STAMP)  ## run the tests, and the notebooks as tests, WORKERS (2) files at a time, with PYTEST_ARGS="..."
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(BIN)/python" -m pytest --nbval -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

fuzz: $(STAMP)  ## read FUZZ_FILES (10000) damaged and hostile files with every reader (Linux)
	OMP_NUM_THREADS=1 "$(BIN)/python" -m tests.fuzz --files $(FUZZ_FILES)

lint: $(TOOLS)  ## check style (ruff), format (ruff) and types (mypy)
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy

docs: $(TOOLS)  ## build the book into docs/_build/html; a warning is an error
	"$(BIN)/python" -m sphinx -W --keep-going -b html docs docs/_build/html

lab: $(STAMP)  ## open JupyterLab, with LAB_ARGS="--no-browser ..."
	"$(BIN)/python" -m jupyterlab $(LAB_ARGS)

constraints:  ## write constraints.txt anew from what pip picks today (HOLD="name==version ..." holds some)
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && \
	"$(PYTHON)" -m venv "$$new/venv" && \
	"$$new/venv/bin/python" -m pip install -e ".[all]" $(HOLD) && \
	"$$new/venv/bin/python" -m pip check && \
	"$$new/venv/bin/python" -m pip freeze --all --exclude-editable > "$$new/freeze" && \
	{ sed -n '/^#/p' constraints.txt && \
	  sed -e '/^pip==/d' -e '/^wheel==/d' -e 's/+.*//' "$$new/freeze"; } > "$$new/constraints.txt" && \
	cp "$$new/constraints.txt" constraints.txt

clean:  ## remove what builds and tests leave; runs, data and out.ipynb stay
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache docs/_build
	find $(wildcard pcdm_lib benchmarks tests notebooks reproduce) -depth \
	    \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

distclean: clean  ## and remove the environment
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
