# Needs make and Python 3.11 or newer; everything else goes into $(VENV).
#   make demo ARGS="--fast"     make test ARGS="-k msf"     make test VENV=/tmp/venv PYTHON=python3.12
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
PIP    := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check -q

# The older published versions that the framework-facing tests run on as well; they share torch with $(VENV).
OLD_SPIKINGJELLY := 0.0.0.0.14
OLD_SNNTORCH     := 0.9.4
OLD              := $(VENV)/published
OLD_STAMP        := $(OLD)/.spikingjelly-$(OLD_SPIKINGJELLY)-snntorch-$(OLD_SNNTORCH)
HOST_TESTS       := $(addprefix tests/,spikingjelly snntorch swap adapters test_state_dict.py)

# The oldest torch, with the newer of both frameworks. Its wheels bring CUDA on Linux, some gigabytes: no part of .ci/run.
FLOOR       := $(VENV)/torch-2.6
FLOOR_STAMP := $(FLOOR)/.installed
FLOOR_TESTS := $(addprefix tests/,neurons test_surrogate.py project/test_torch_integration.py project/test_export_steps.py)

# One worker a core; the tests keep torch at one thread.
PARALLEL := -n auto

# The CuPy versions whose host code launches the kernels in tests, without a device; the older with the CUDA it is for.
CUPY_12       := $(VENV)/cupy-13.6-cuda12
CUPY_13       := $(VENV)/cupy-cuda13
CUPY_12_STAMP := $(CUPY_12)/.installed
CUPY_13_STAMP := $(CUPY_13)/.installed

.PHONY: help demo test test-slow test-full test-floor test-kernels test-site bench results lint docs release-check clean

help:
	@echo "make demo           train LIF, MSF, PMSN and SlidingPSN, print a table, save a figure"
	@echo "make test           the test suite, then its framework-facing part on the older versions"
	@echo "make test-slow      the slow tests: long sequences and other large cases"
	@echo "make test-full      every combination of the large tables, and every bug planted in the kernels (hours)"
	@echo "make test-floor     neurons, ops, compilation and export on the oldest torch (installs it, some gigabytes)"
	@echo "make test-kernels   prove the GPU kernels without a device (needs g++, Linux x86_64; some minutes)"
	@echo "make test-site      the documentation in headless Chromium (on Debian as root it installs that)"
	@echo "make bench          the CPU benchmark; rewrites docs/benchmarks.md (ten minutes of a quiet machine)"
	@echo "make results        measure anew the tables whose sources have changed (an hour and a half of a quiet machine)"
	@echo "make lint           ruff and mypy"
	@echo "make docs           the documentation, into site/"
	@echo "make release-check  build, validate and smoke-test the distributions"
	@echo "make clean          remove what was built (not $(VENV))"

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(VENV)/.dev $(OLD_STAMP)
	$(BIN)/pytest $(PARALLEL) $(ARGS)
	@echo "== the same on SpikingJelly $(OLD_SPIKINGJELLY) and snnTorch $(OLD_SNNTORCH)"
	PYTHONPATH=$(abspath $(OLD)) $(BIN)/pytest $(PARALLEL) $(HOST_TESTS) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(VENV)/.dev
	$(BIN)/pytest $(PARALLEL) -m slow $(ARGS)

test-full: $(VENV)/.dev
	$(BIN)/pytest $(PARALLEL) -m full $(ARGS)

test-floor: $(FLOOR_STAMP)
	PYTHONPATH=$(CURDIR) $(FLOOR)/bin/python -m pytest $(FLOOR_TESTS) $(ARGS)

test-kernels: $(VENV)/.dev $(CUPY_12_STAMP) $(CUPY_13_STAMP)
	$(BIN)/pytest $(PARALLEL) -m "kernels and not slow" $(ARGS)
	@for cupy in $(CUPY_12) $(CUPY_13); do \
		echo "== through the CuPy in $$cupy"; \
		PYTHONPATH=$$(cd $$cupy && pwd) $(BIN)/pytest -m kernels tests/backends/cupy/test_real_cupy.py || exit 1; \
	done

test-site: $(VENV)/.dev
	@command -v chromium chromedriver >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; } \
		|| { echo "chromium and chromedriver are needed"; exit 1; }
	$(BIN)/pytest -m browser tests/project/test_site.py $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/cpu.py $(ARGS)

results: $(VENV)/.dev
	$(BIN)/python tools/results.py $(ARGS)

# No -q here: it hides warnings from --strict.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release-check: $(VENV)/.dev
	$(BIN)/python tools/release_check.py $(ARGS)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Dependency groups need pip 25.1, newer than the one that Python 3.11 brings.
$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PIP) install 'pip>=25.1'
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml msf_pmsn_plugins/__init__.py
	@echo "Installing into $(VENV) (minutes where torch has to be downloaded)"
	@$(PIP) install -e '.[examples]'
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml msf_pmsn_plugins/__init__.py
	@echo "Installing into $(VENV) (minutes where torch has to be downloaded)"
	@$(PIP) install -e '.[all]' --group dev
	@touch $@ $(VENV)/.demo

$(FLOOR_STAMP):
	@rm -rf $(FLOOR)
	@$(PYTHON) -m venv $(FLOOR)
	@PYTHONWARNINGS=ignore $(FLOOR)/bin/python -m pip --disable-pip-version-check -q install \
		'torch==2.6.*' numpy numba mpmath 'pytest>=8.2' 'hypothesis>=6.100' loguru
	@PYTHONWARNINGS=ignore $(FLOOR)/bin/python -m pip --disable-pip-version-check -q install --no-deps \
		spikingjelly==2.0.0 snntorch==1.0.0
	@touch $@

$(CUPY_12_STAMP): $(VENV)/.pip
	@rm -rf $(CUPY_12)
	@$(PIP) install --no-deps --target $(CUPY_12) 'cupy-cuda12x==13.6.*' fastrlock \
		'nvidia-cuda-nvrtc-cu12==12.9.*' 'nvidia-cuda-runtime-cu12==12.9.*'
	@touch $@

$(CUPY_13_STAMP): $(VENV)/.pip
	@rm -rf $(CUPY_13)
	@$(PIP) install --no-deps --target $(CUPY_13) cupy-cuda13x
	@touch $@

$(OLD_STAMP): $(VENV)/.pip
	@rm -rf $(OLD)
	@$(PIP) install --no-deps --target $(OLD) spikingjelly==$(OLD_SPIKINGJELLY) snntorch==$(OLD_SNNTORCH)
	@touch $@
