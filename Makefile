# make demo | test | lint | bench | clean. The first call creates .venv and installs; later calls only run.
#   make demo QUICK=1        the demo in under a minute
#   make test ARGS="-k loss" passes arguments to pytest
#   make test-deepspeed      the tests that need DeepSpeed, on CPU ranks (a C++ compiler is needed), in .venv-deepspeed
#   make bench               the benchmarks of this machine's real shapes, into bench/results
#   make gpu-evidence OUT=d  GPU tests and benchmarks in parts of under nine minutes, run by $(PYTHON)
#   make test-llamafactory   LLaMA-Factory, in .venv-llamafactory (it pins other versions; 6 GB)
#   make test-axolotl        axolotl, in .venv-axolotl; make venv-axolotl only makes that
#   PYTHON=python3.12        which interpreter the environment is made from
PYTHON ?= python3
# torch goes in first, so that everything after it (which may look for torch while being built) finds this version.
TORCH ?= torch==2.13.0
EXTRAS ?= hf,peft,trl,triton,data,plot,bench,dev

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/installed.stamp
CONSTRAINTS := requirements/constraints.txt
# What stands in the checkout wins over what is installed, and over what the caller names.
export PYTHONPATH := .:kernels$(if $(PYTHONPATH),:$(PYTHONPATH))
# Threads yield while they wait; spinning makes everything many times slower when another process needs a core.
export OMP_WAIT_POLICY ?= PASSIVE

# DeepSpeed in an environment that sees everything of the first: where it is installed, transformers and accelerate
# import it in every process, which costs seconds each.
DS_VENV := .venv-deepspeed
DS_STAMP := $(DS_VENV)/installed.stamp
SITE = -c 'import site; print(site.getsitepackages()[0])'

.PHONY: demo test test-deepspeed test-llamafactory venv-axolotl test-axolotl lint format bench gpu-evidence clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/cpu/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "amopo needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing into $(VENV) (once; a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	$(PIP) install -c $(CONSTRAINTS) setuptools wheel
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m amopo demo --out runs/demo $(if $(QUICK),--quick) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

$(DS_STAMP): $(STAMP)
	test -x $(DS_VENV)/bin/python || $(BIN)/python -m venv $(DS_VENV)
	$(BIN)/python $(SITE) > "$$($(DS_VENV)/bin/python $(SITE))/first.pth"
	$(DS_VENV)/bin/python -m pip --disable-pip-version-check install -c $(CONSTRAINTS) --no-build-isolation deepspeed
	@touch $@

test-deepspeed: $(DS_STAMP)
	DS_ACCELERATOR=cpu $(DS_VENV)/bin/python -m pytest tests/cluster tests/integrations/test_docs.py \
	  -k "zero or ulysses or deepspeed" $(ARGS)

# The installed package is tested, from outside the checkout: transformers before 5.17 takes the folder kernels/ for a
# package of that name.
LF := .venv-llamafactory
LF_PIP := $(LF)/bin/python -m pip --disable-pip-version-check

$(LF)/installed.stamp: requirements/llamafactory.txt
	test -x $(LF)/bin/python || $(PYTHON) -m venv $(LF)
	$(LF_PIP) install -r requirements/llamafactory.txt
	@touch $@

test-llamafactory: $(LF)/installed.stamp
	AMOPO_SKIP_CPP=1 $(LF_PIP) install -q --no-deps --no-build-isolation --force-reinstall .
	PYTHONPATH= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LF)/bin/python -P -m pytest -o pythonpath= \
	  tests/integrations/llamafactory $(ARGS)

# axolotl and what it pins, over the first environment, whose torch it takes. Tested as installed too, for the same reason.
AX := .venv-axolotl
AX_PIP := $(AX)/bin/python -m pip --disable-pip-version-check

$(AX)/installed.stamp: $(STAMP) requirements/axolotl.txt
	test -x $(AX)/bin/python || $(BIN)/python -m venv $(AX)
	$(BIN)/python $(SITE) > "$$($(AX)/bin/python $(SITE))/first.pth"
	$(AX_PIP) install --no-deps -r requirements/axolotl.txt
	@touch $@

venv-axolotl: $(AX)/installed.stamp
	AMOPO_SKIP_CPP=1 $(AX_PIP) install -q --no-deps --no-build-isolation --force-reinstall .

test-axolotl: venv-axolotl
	PYTHONPATH= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 AXOLOTL_DO_NOT_TRACK=1 $(AX)/bin/python -P -m pytest -o pythonpath= \
	  tests/integrations/axolotl $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m pytest bench --full --bench-results bench/results $(ARGS)

# No environment of its own: a machine with a GPU brings its torch and triton. PART=name runs one part; what
# bench.evidence does not know in ARGS goes to the benchmarks: ARGS="--shape 7b-8192 --providers products,amopo".
gpu-evidence:
	@test -n "$(OUT)" || { echo "name a folder: make gpu-evidence OUT=dir [PART=name] [ARGS=--dry-run]" >&2; exit 1; }
	$(PYTHON) -m bench.evidence --out "$(OUT)" $(if $(PART),--part $(PART)) $(ARGS)

clean:
	rm -rf $(VENV) $(DS_VENV) $(LF) $(AX) build dist *.egg-info runs .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f kernels/amopo_kernels/_C*.so
	find amopo kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
