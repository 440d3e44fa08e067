# make demo    train a small network on 2 ranks and show it in TensorBoard
# make test    formatting, types, and the whole test suite
# make bench   the figures of docs/benchmarks.md; ARGS='--list' says what there is
# make profile CASE=scalar-call   where the time of one of them goes
# make bench-rivals   other libraries to measure, in an environment of their own
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test check test-slow bench bench-rivals profile clean

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

# What they need may differ from what we need: nothing of it goes into our environment.
bench-rivals: benchmarks/rivals/requirements.txt
	test -x .venv-rivals/bin/python || $(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install --quiet --disable-pip-version-check -r $<

CASE ?= scalar-call

profile: $(VENV)/.test
	$(BIN)/python -m benchmarks.profiling $(CASE) $(ARGS)

# A finished environment leaves a mark: an install that was interrupted is done again.
$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) .venv-rivals dist build
