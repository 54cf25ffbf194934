PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults lint wheel docs

demo: .venv/package
	$(BIN)/neighbor-grpo demo

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

faults: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_faults.py tests/test_quick.py tests/test_signals.py tests/test_trainer.py \
		tests/rewards/test_faulty_run.py -k '(faults and not 1000) or killed or hangs or speaks'

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

wheel: .venv/dev
	$(BIN)/python tools/wheel.py

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# .venv/package holds the package alone, .venv/dev its tests and linters, .venv/docs the site's generator.
.venv/dev: EXTRA := [dev]
.venv/docs: EXTRA := [docs]
.venv/package .venv/dev .venv/docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".$(EXTRA)"
	touch $@
