# make demo    train a small network on 2 ranks and show it in TensorBoard
# make test    formatting, types, and the whole test suite
# make bench   the figures of docs/benchmarks.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test check test-slow bench clean

demo: $(VENV)/.demo
	$(BIN)/ranktap demo $(ARGS)

test: check
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-slow: check
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks $(ARGS)

# A finished environment leaves a mark: an install that was interrupted is done again.
$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) dist build
