# Every target installs what it needs into .venv first. CKPT and TASK choose what `make eval` evaluates.
PYTHON ?= python3
BIN := .venv/bin
TASK ?= imagenet
# A process per core, up to four, with a thread each: tests are small, and threads would wait for one another.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: install demo demo-check test test-all test-gpu lint type docs eval bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/swinv2-tasks demo

# Six steps of each task; fails when the output holds a traceback, a warning or anything else that looks like a failure.
demo-check: install
	$(BIN)/python .ci/check_output.py $(BIN)/swinv2-tasks demo --short true --runs build/demo-check

test: install
	$(TESTS) -m "not slow and not gpu"

test-all: install
	$(TESTS) -m "not gpu"

test-gpu: install
	$(BIN)/python -m pytest -m gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

# The pages and the reference as one site: build/docs/index.html. Warnings are errors.
docs: install
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/docs

# CKPT defaults to the best checkpoint of the newest training in runs/TASK.
eval: install
	$(BIN)/swinv2-tasks validate --ckpt_path "$(or $(CKPT),runs/$(TASK))" $(ARGS)

bench: install
	$(BIN)/python -m benchmarks.backbone

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
