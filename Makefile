# Everything runs in .venv; `make demo` and `make test` set it up by themselves.
PYTHON ?= python3.11
BIN := .venv/bin
EXTRAS ?= dev
export HF_HUB_OFFLINE = 1
export HF_DATASETS_OFFLINE = 1
WORKERS ?= 2
BY_FILE := --dist loadfile --no-loadscope-reorder # one worker a file, so that what its tests share is made once
OUT ?= runs/quickstart

.PHONY: setup fmt check test test-all bench reference docs demo clean

setup: .venv/.done

.venv/.done: pyproject.toml
	@echo "setting up .venv: minutes without a word, 2 GB and more"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

fmt: setup
	$(BIN)/ruff check --fix src tests benchmarks docs examples
	$(BIN)/ruff format src tests benchmarks docs examples

check: setup
	$(BIN)/ruff check src tests benchmarks docs examples
	$(BIN)/ruff format --check src tests benchmarks docs examples
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/pytest -n $(WORKERS) $(BY_FILE)

test-all: setup
	$(BIN)/pytest -n $(WORKERS) $(BY_FILE) -m 'slow or not slow'

# One script per claim; each prints its table with its baseline from the same run. Real data: DATA=folder.
bench: setup
	$(BIN)/python -m benchmarks.perplexity $(if $(DATA),--data $(DATA)/wikitext-2)
	$(BIN)/python -m benchmarks.sparsify $(if $(DATA),--data $(DATA)/wikitext-2)

# The pages of verbs and recipe keys, which `make docs` and a test compare with the code.
reference: setup
	$(BIN)/python docs/make_reference.py

# The documentation as a site, in site/; warnings are errors, as are commands that do not parse.
docs: setup
	test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/pytest -q -n 0 tests/docs/test_commands.py tests/docs/test_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: setup
	$(BIN)/shears run recipes/quickstart.yaml --output $(OUT)

clean:
	rm -rf .venv runs site .mypy_cache .ruff_cache .pytest_cache .hypothesis
