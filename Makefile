# One-line verbs. Every target does its own set-up in .venv; `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip --disable-pip-version-check --quiet
MODEL = .cache/smollm2-135m
RESULTS = bench/results/cpu-$(shell date +%F).jsonl
ARCHS ?= 80-real;90a-real;100-real;120
# Python links neither: AddressSanitizer must come first, and finds __cxa_throw in libstdc++.
ASAN = $(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libstdc++.so)
NATIVE = $(wildcard csrc/*/* python/*) CMakeLists.txt setup.py pyproject.toml
CXX_FILES = $(wildcard csrc/*/*.?pp csrc/*/*.cu csrc/*/*.cuh csrc/emu/include/*.h python/*.?pp tests/emulated/*.?pp tests/*.cpp)

.PHONY: help torch-cuda env demo demo-model laser-demo test test-tools lint format cuda emu-test emu-asan gpu-check bench \
  bench-table figures clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

env: $(VENV)/built  ## .venv with torch, the tools, and this package built in place

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" numpy "setuptools>=77" "cmake>=3.24" ninja "pybind11>=2.12"
	@touch $@

$(VENV)/built: $(VENV)/torch $(NATIVE)
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PIP) install --no-build-isolation -e ".[test]"
	@touch $@

$(VENV)/demo: $(VENV)/built
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PIP) install --no-build-isolation -e ".[test,demo]"
	@touch $@

$(VENV)/lint: $(VENV)/built
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PIP) install --no-build-isolation -e ".[test,lint]"
	@touch $@

$(VENV)/tools: $(VENV)/built
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PIP) install --no-build-isolation -e ".[test,tools]"
	@touch $@

$(VENV)/bench: $(VENV)/demo
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PIP) install --no-build-isolation -e ".[test,demo,bench]"
	@touch $@

$(VENV)/search: $(VENV)/demo
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PIP) install --no-build-isolation -e ".[test,demo,search]"
	@touch $@

demo-model: $(VENV)/demo  ## SmolLM2-135M (Apache-2.0) as a bf16 Hugging Face folder in .cache, checked by hash
	$(PY) bench/demo_model.py --out $(MODEL)

demo: demo-model  ## reduce a real language model, verify it, compare with the optimum and with LASER's own method
	$(PY) bench/demo.py --model $(MODEL)

laser-demo: demo-model $(VENV)/search  ## LASER itself on that model: search, picks, verdicts on unseen questions (about 10 minutes)
	$(PY) bench/laser_demo.py --model $(MODEL)

test: $(VENV)/built  ## the test suite
	$(PY) -m pytest

test-tools:  ## PEFT, mergekit and scikit-learn, unmodified, on this backend; their pins live in .venv-tools
	$(MAKE) .venv-tools/tools VENV=.venv-tools
	.venv-tools/bin/python -m pytest tests/tools tests/test_adapters.py tests/test_lora.py tests/test_lora_output.py \
	  tests/test_resize.py

lint: $(VENV)/lint  ## ruff, mypy, clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/lint  ## rewrite the sources in the house style
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

cuda: $(VENV)/torch  ## the CUDA library for four architectures, and the gate on its machine code; no GPU needed
	PATH="$(abspath $(VENV)/bin):$$PATH" LASER_CUDA=ON LASER_CUDA_ARCHS="$(ARCHS)" \
	  $(PIP) install --no-build-isolation -e ".[test,cuda-tools]"
	$(PY) bench/resources.py

emu-test: $(VENV)/built  ## every CUDA kernel under the CPU emulator in three orders, then once under AddressSanitizer
	$(PY) -m pytest tests/test_emulated*.py
	$(MAKE) emu-asan

# --capture=sys: a report is printed although the process is killed. One order of everything, and what has no order.
emu-asan: $(VENV)/built  ## the second half of emu-test
	LASER_EMU_SANITIZE=address $(PY) tests/emulator.py
	LASER_EMU_SANITIZE=address ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 LD_PRELOAD="$(ASAN)" \
	  $(PY) -m pytest --capture=sys -k 'ascending or not (descending or shuffled)' tests/test_emulated*.py

torch-cuda:  ## build with CUDA against the oldest torch we promise (2.11, CUDA 13: 4.7 GB of wheels) and run the suite
	$(MAKE) test VENV=.venv-torch-cuda TORCH="torch==2.11.0"

gpu-check:  ## on a machine with a GPU, offline: build, test, sanitize, time (GPU_CHECK=build|test|sanitize|bench|suite: a part)
	$(PYTHON) bench/gpu_check.py

bench: $(VENV)/bench  ## pytest-benchmark: every op and whole calls, saved (BENCH="--benchmark-compare": beside the last run)
	$(PY) -m pytest bench/micro -o python_files='bench_*.py' --benchmark-autosave --benchmark-group-by=func \
	  --benchmark-columns=median,iqr,rounds $(BENCH)

bench-table: $(VENV)/built  ## the tables of README and DEVNOTES from the committed results
	$(PY) bench/table.py

figures: demo-model $(VENV)/bench  ## every figure of README and DEVNOTES, measured here (about 45 minutes)
	$(PY) bench/accuracy.py --tol0 --out $(RESULTS)
	$(PY) bench/spectral.py --out $(RESULTS)
	$(PY) -m laser_kernels bench --suite cpu --out $(RESULTS)
	$(PY) bench/checkpoint_speed.py --out $(RESULTS)
	$(PY) bench/experts.py --out $(RESULTS)
	$(PY) bench/memory.py
	$(PY) bench/table.py

clean:  ## remove builds and caches, keep .venv and the demo model
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis laser_kernels/*.so
	rm -f $(VENV)/built $(VENV)/demo $(VENV)/lint $(VENV)/bench $(VENV)/search
