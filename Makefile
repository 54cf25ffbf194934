PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint

demo: .venv/installed
	$(BIN)/neighbor-grpo train

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/pip install -q ruff && $(BIN)/ruff check src tests benchmarks

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	touch $@
