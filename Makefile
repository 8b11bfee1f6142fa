PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

.DEFAULT_GOAL := help
.PHONY: help venv demo test check clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	@$(BIN)/dwr-rewrite demo/mobilenet_v2.onnx -o demo/fast.onnx --report demo/report.html

check: $(STAMP)  ## Lint, check formatting, types and layering
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/python -m pytest -q tests/test_layers.py

test: check  ## Run the checks and all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

clean:  ## Remove the environment, caches and demo output
	rm -rf .venv demo dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
