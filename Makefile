# make run   set up and run the main job      make test   set up and run every check of CI
# make demo  set up and open the page that shows where a model looks
# make test-oldest   all tests once more, with the oldest transformers that pyproject.toml allows
.PHONY: run demo test test-oldest clean

PYTHON ?= python3
MODEL ?= scenes-llava
LIMIT ?= 100
OUT ?= runs/$(MODEL)-$(LIMIT)
READY := .venv/.ready
# A process per core, four at most, each with a thread of its own; a file's tests stay together, since they share what they set up.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)

run: $(READY)
	.venv/bin/mmattn eval all --model $(MODEL) --limit $(LIMIT) --out $(OUT)

demo: $(READY)
	.venv/bin/mmattn demo --model $(MODEL)

test: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTEST)

test-oldest: .venv-oldest/.ready
	PYTHONPATH=$(CURDIR)/.venv-oldest $(PYTEST)

# A folder that goes before .venv: all but transformers is shared, so that torch is not installed twice.
.venv-oldest/.ready: $(READY)
	@echo "Installing transformers $(OLDEST) into .venv-oldest"
	@rm -rf .venv-oldest
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-oldest \
		"transformers==$(OLDEST)"
	PYTHONPATH=$(CURDIR)/.venv-oldest .venv/bin/python -c 'import transformers as t; print("transformers", t.__version__)'
	@touch $@

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mmattn needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv || \
		{ echo "Cannot make a virtual environment: install python3-venv"; exit 1; }
	@echo "Installing mmattn and what it needs into .venv (a few minutes, once)"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv .venv-oldest .mypy_cache .ruff_cache .pytest_cache
