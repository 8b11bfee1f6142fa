PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

.DEFAULT_GOAL := help
.PHONY: help venv demo test check check-kernels gpu-bench gpu-there gpu-layers gpu-kernels gpu-used \
  gpu-fit gpu-paper gpu-models clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## Create .venv with the pinned dependencies and tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "dwr-rewrite needs Python 3.11 or newer; $(PYTHON) is older or missing: run make with PYTHON=/path/to/python3.11." >&2; \
	  exit 1; }
	@$(PYTHON) -m venv .venv
	@echo "Installing the dependencies into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Build MobileNetV2, rewrite it into demo/fast.onnx and show that it is the same
	@mkdir -p demo
	@test -f demo/mobilenet_v2.onnx || $(BIN)/python -m models.export hf_mobilenet_v2 demo/mobilenet_v2.onnx
	@$(BIN)/dwr-rewrite demo/mobilenet_v2.onnx -o demo/fast.onnx --policy blocks:32 --report demo/report.html

check: $(STAMP)  ## Lint, check formatting, types and layering
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/python -m pytest -q tests/test_layers.py

check-kernels: $(STAMP)  ## Compile the Triton kernels for three GPUs, none of which is needed
	@$(BIN)/python -m benchmarks.check_kernels --cache build/check-kernels

test: check  ## Run the checks and all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

GPU_PYTHON ?= $(BIN)/python
GPU_SHARDS ?= 4
GPU_MINUTES ?= 8
GPU_BUILD ?= build/gpu
SHARDS = $$(seq 0 $$(($(GPU_SHARDS) - 1)))

# $(call shards,STUDY): measures every part of a study for GPU_MINUTES, then writes its tables
define shards
	@mkdir -p $(GPU_BUILD)
	@for i in $(SHARDS); do \
	  $(GPU_PYTHON) -m benchmarks.$(1) --out $(GPU_BUILD)/$(1)-$$i-of-$(GPU_SHARDS).jsonl \
	    --shard $$i/$(GPU_SHARDS) --minutes $(GPU_MINUTES) --resume || exit 1; done
	@$(GPU_PYTHON) -m benchmarks.$(1) --merge $(GPU_BUILD)/$(1)-*-of-$(GPU_SHARDS).jsonl
endef

gpu-bench: gpu-layers gpu-kernels gpu-used gpu-fit gpu-paper gpu-models  ## Measure all on this machine's GPU; run it again to go on

gpu-there:
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
	  echo "gpu-bench needs a CUDA device that torch sees; set GPU_PYTHON to a python whose torch does." >&2; \
	  exit 1; }

gpu-layers: gpu-there
	$(call shards,layers)
	@$(GPU_PYTHON) -m benchmarks.roofline benchmarks/results/*/layers.json

gpu-kernels: gpu-there
	$(call shards,kernels)

gpu-used: gpu-there
	$(call shards,kernels_used)

gpu-fit: gpu-layers
	@$(GPU_PYTHON) -m benchmarks.fit_cost

gpu-paper: gpu-there
	$(call shards,paper_table)

gpu-models: gpu-there
	$(call shards,models)

clean:  ## Remove the environment, caches and demo output
	rm -rf .venv demo dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
