# `make` lists the targets. The set-up is done once, in .venv, which is used again if it is there; a change to
# pyproject.toml or setup.py repeats the installation, a change to the C++ sources compiles what it touches.
# What pip and the compiler print is shown only if they fail (scripts/quietly).

PYTHON ?= python3
# What pip installs as torch: pin a release, or name a CPU build's index, e.g. TORCH="torch==2.11.0 torchvision".
TORCH ?= torch torchvision

VENV := .venv
BIN := $(VENV)/bin
QUIETLY := scripts/quietly
# One thread a process: the tests share the cores among processes already.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# ninja is found by its name.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check matrix test-all sanitize bench docs lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(VENV)/extension.stamp ## make .venv, install the package into it, compile the extension

# SSL_FAST_NATIVE=0: the next rule compiles, and keeps its objects for the time after.
$(VENV)/install.stamp: pyproject.toml setup.py
	@if [ ! -x $(BIN)/python ]; then $(QUIETLY) "Making $(VENV) with $$($(PYTHON) --version)" $(PYTHON) -m venv $(VENV); fi
	@$(QUIETLY) "Installing $(TORCH) into $(VENV), unless they are there (2 to 5 minutes the first time: 3 GB)" \
		$(BIN)/python -m pip install "setuptools>=77" ninja $(TORCH)
	@SSL_FAST_NATIVE=0 $(QUIETLY) "Installing ssl_fast and what it trains and is tested with (2 minutes the first time)" \
		$(BIN)/python -m pip install --no-build-isolation -e ".[train,test,triton,dev]"
	@# For a CUDA build of torch a compiler of its version, unless there is one.
	@packages=$$($(BIN)/python -W ignore -m ssl_fast.tools.cuda_toolkit) && if [ -n "$$packages" ]; then \
		$(QUIETLY) "Installing $$packages, which compile for this torch's CUDA (1 minute)" \
		$(BIN)/python -m pip install $$packages; fi
	@touch $@

$(VENV)/extension.stamp: $(VENV)/install.stamp ssl_fast/tools/build.py ssl_fast/tools/cuda_toolkit.py $(shell find csrc -type f)
	@$(QUIETLY) "Compiling the C++ extension (2 to 5 minutes the first time, then what has changed)" \
		$(BIN)/python setup.py -q build_ext --inplace
	@# Without a compiler the pure package is set up, and the next run looks again.
	@if [ -f ssl_fast/_C.json ]; then touch $@; else \
		echo "There is no compiled extension: losses run on plain PyTorch. '$(BIN)/ssl-fast doctor' says what is missing."; fi

demo: setup ## train SimCLR and MoCo v2 on digits, compare, save plots under runs/demo (about 6 minutes)
	@echo "Training SimCLR and MoCo v2 on scikit-learn's digits; the table comes at the end, the plots under runs/demo."
	@$(BIN)/python -m ssl_fast.train.commands.demo

test: setup ## every loss and operator on every backend that runs here, a training, the drop-ins (about 5 minutes)
	@echo "Running the tests that take a few seconds or less, in two processes."
	@$(PYTEST) -n 2

check: test ## then all else that needs no GPU and no hour: long tests, GPU kernels interpreted and compiled (35 minutes)
	@echo "Running the long tests."
	@$(PYTEST) -n 2 -m "long and not slow and not gpu"
	@echo "Running the Triton kernels in Triton's interpreter, on the CPU."
	@TRITON_INTERPRET=1 $(PYTEST) tests/kernels -m "interpreted and not slow" -n 2
	@echo "Compiling the Triton and CUDA kernels ahead of time, and checking what the compilers made of them."
	@$(PYTEST) -m "aot and not slow" -n 2

matrix: setup ## what works with what: each operator under torch.compile, autocast, export, DDP, ...
	$(PYTEST) -q -n 0 -s -m "not slow" tests/pytorch/test_matrix.py

test-all: setup ## all tests that need no GPU
	$(PYTEST) -n 2 -m "not gpu"
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels -m interpreted -n 2

sanitize: setup ## the C++ code under the sanitizers of addresses, undefined behaviour and threads
	$(PYTEST) -m slow tests/native

bench: $(VENV)/bench.stamp ## time and memory beside other libraries, saved under runs/ (BENCH=--quick: under 2 minutes; BENCH=grid: each loss by rows and width)
	$(BIN)/python -m bench $(BENCH)

$(VENV)/bench.stamp: $(VENV)/extension.stamp
	@SSL_FAST_NATIVE=0 $(QUIETLY) "Installing the libraries that ssl_fast is measured beside (1 minute)" \
		$(BIN)/python -m pip install --no-build-isolation -e ".[bench]"
	@touch $@

docs: $(VENV)/docs.stamp ## the documentation as a site, under build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(QUIETLY) "Building the site from docs/ (20 seconds)" $(BIN)/python -m mkdocs build --strict
	@echo "Open build/site/index.html."

$(VENV)/docs.stamp: $(VENV)/install.stamp
	@SSL_FAST_NATIVE=0 $(QUIETLY) "Installing MkDocs (20 seconds)" $(BIN)/python -m pip install --no-build-isolation -e ".[docs]"
	@touch $@

lint: setup ## format, style and types of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean: ## remove .venv and all that was built; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache ssl_fast/_C.json ssl_fast/_C*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
