"""benchmarks/gpu.sh, each part at tiny size on the CPU, to its end and within its time."""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu_truth

from splatgen.config.schema import Method

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def run(part, out, *words, **more):
    env = {**os.environ, "PYTHON": sys.executable, "TINY": "1", "DEVICE": "cpu", **more}
    return subprocess.run([SCRIPT, part, out, *words], env=env, capture_output=True, text=True, check=False)


def test_truth_and_cost(tmp_path):
    for part in ("truth", "cost"):
        done = run(part, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    truth, cost, splats = (
        json.loads((tmp_path / f"gpu-{part}.json").read_text())["rows"]
        for part in ("truth", "cost", "rasterizers")
    )
    assert all(row.get("ok") for row in truth.values())
    assert not any("failed" in row for row in cost)
    assert any("step_ms" in row for row in cost)
    assert splats[0]["auto"] > 0


def test_truth_looks_at_every_score_with_every_preference():
    hints = typing.get_type_hints(Method)
    assert {*gpu_truth.SCORES, "refine"} == set(typing.get_args(hints["score"]))  # that one is a stage
    assert set(gpu_truth.PREFERENCES) == set(typing.get_args(hints["preference"]))


def test_training_leaves_a_checkpoint_and_weights(tmp_path):
    done = run("train", tmp_path, "--steps", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "training" / "mini-prior" / "state.safetensors").is_file()
    assert (tmp_path / "trained" / "mini-prior.safetensors").is_file()


def test_without_a_gpu_nothing_is_measured_and_the_rows_say_so(tmp_path):
    done = run("truth", tmp_path, TINY="")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu-truth.json").read_text())["rows"]
    assert {row["not measured"] for row in rows.values()} == {"no CUDA device is usable here"}


@pytest.mark.parametrize("part", ["", "all"])
def test_another_part_is_2(tmp_path, part):
    done = run(part, tmp_path)
    assert done.returncode == 2
    assert "truth|cost|train" in done.stderr
