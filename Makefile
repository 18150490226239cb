# make demo   search cggm_iemocap on small synthetic files
# make test   lint, then the test suite (no slow and no GPU tests), in two processes
# make lint   ruff and mypy
# make clean  remove what the tools wrote (keeps .venv and mlruns)
# make screenshots   docs/images, with chromium: MLflow with a search made for it, or the latest of STORE=sqlite:///...
#
# Each makes .venv by itself: nothing but python3 (3.11 or later), make and git is needed.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# PYTHON=/path/to/python3.12 make ... chooses the interpreter; else the first one on PATH that is recent enough.
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do "$$p" -c '$(RECENT)' 2>/dev/null && echo $$p && break; done)
endif

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO_FLAGS := --space cggm_iemocap --trials 8 --epochs 6 --concurrency 2
TEST_FLAGS := -n 2 --dist loadfile

.PHONY: demo test lint format clean screenshots
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(RECENT)' || { \
	  echo "tune_mm needs Python 3.11 or later; found: $$(python3 --version 2>&1)." \
	       "Name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m tune_mm.search $(DEMO_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(TEST_FLAGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt 'tune_mm[screenshots]'
	$(BIN)/python -m docs.screenshots $(if $(STORE),--store '$(STORE)')

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf
