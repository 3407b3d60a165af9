# setup: .venv from the lock file; demo: prompt to .ply; the rest is for development.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint bench reward-parity clean

setup: .venv/.done

.venv/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/splatgen generate "a blue sphere on top of a green cylinder"

test: setup
	$(BIN)/python -m pytest -q -n auto

lint: setup
	$(BIN)/ruff check splatgen viewer configs tests benchmarks
	$(BIN)/ruff format --check splatgen viewer configs tests benchmarks
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/rasterizer.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/reward_step.py
	$(BIN)/python benchmarks/toybox_quality.py --ceiling

# ours against hpsv2 and image-reward themselves, in an environment of their own (minutes, a package index)
reward-parity: setup
	$(BIN)/python benchmarks/reward_parity.py

clean:
	rm -rf .venv build dist *.egg-info
