# setup: .venv from the lock file; demo: prompt to .ply; the rest is for development.
PYTHON ?= python3
BIN := .venv/bin

# what the CUDA build of torch 2.13 wants
TRITON ?= 3.7.1

.PHONY: setup demo test lint bench triton ray browser reward-parity interop fuzz clean

setup: .venv/.done

.venv/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/splatgen generate "a pumpkin on top of a barrel"

test: setup
	$(BIN)/python -m pytest -q -n auto --dist worksteal

lint: setup
	$(BIN)/ruff check splatgen viewer configs tests benchmarks
	$(BIN)/ruff format --check splatgen viewer configs tests benchmarks
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/rasterizer.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/reward_step.py
	$(BIN)/python benchmarks/toybox_quality.py --ceiling

# the GPU rasterizer's kernels without a GPU: interpreted, against the brute force; and compiled, for each
# architecture (Triton is 200 to 300 MB to download; torch's CUDA builds bring it)
triton: setup
	$(BIN)/pip install --disable-pip-version-check -q --no-deps triton==$(TRITON)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n auto tests/rasterizer/test_triton.py
	$(BIN)/python -m pytest -q tests/rasterizer/test_triton_launch.py
	TRITON_INTERPRET=1 PYTHONPATH=tests $(BIN)/python -m pretend pytest -q -p no:xdist tests/gpu/test_gpu_triton.py
	$(BIN)/python benchmarks/triton_kernels.py --check

# sweeps with several workers and on a cluster, under a real Ray on loopback; without it their tests are skipped
ray: setup
	$(BIN)/pip install --disable-pip-version-check -q ray==2.60.0 pyarrow
	$(BIN)/python -m pytest -q tests/sweeps tests/commands/test_sweep_command.py

# what the browser tests need (Debian, as root); without it they are skipped
browser: setup
	$(BIN)/pip install --disable-pip-version-check -q playwright==1.65.2
	command -v chromium-headless-shell >/dev/null || \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell)

# ours against hpsv2 and image-reward themselves, in an environment of their own (minutes, a package index)
reward-parity: setup
	$(BIN)/python benchmarks/reward_parity.py

# our splat files read by software that others wrote, and theirs by us (needs node)
interop: setup
	npm install --prefix tests/.node_modules --no-save --no-audit --no-fund --ignore-scripts \
		@playcanvas/splat-transform@3.7.0 @adobe/spz@0.2.3 gltf-validator@2.0.0-dev.3.10
	$(BIN)/python -m pytest -q tests/formats/test_others.py

# coverage-guided, two minutes a format (needs `pip install atheris` beside splatgen's packages)
fuzz: setup
	for f in ply splat spz glb; do $(BIN)/python tests/fuzz/run.py $$f 120 || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info
