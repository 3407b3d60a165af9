"""The measurements for a GPU, tried to their end on this one at tiny size."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu_truth
import models


def test_truth(tmp_path):
    out = tmp_path / "truth.json"
    assert gpu_truth.main(["--tiny", "--out", str(out)]) == 0, out.read_text()
    found = json.loads(out.read_text())
    assert found["gpu"]
    assert list(found["rows"]) == ["rasterizer auto", "step vsd psd", "densify", "resume"]
    assert all(row.get("ok") for row in found["rows"].values())


def test_a_rasterizer_that_is_wrong_is_seen(monkeypatch):
    right = gpu_truth.render
    monkeypatch.setattr(gpu_truth, "render", lambda splats, *z, **more: right(splats.detach(), *z, **more))
    row = gpu_truth.look(lambda: gpu_truth.rasterizer(gpu_truth.Truth(device="cuda", tiny=True), None))
    assert "failed" in row


def test_cost(tmp_path):
    out = tmp_path / "cost.json"
    what = ["--tiny", "--settings", "sd15x1", "--methods", "sds", "--budgets", "none", "--rounds", "1"]
    assert models.main([*what, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    (steps,) = (row for row in rows if row["section"] == "steps")
    assert steps["peak_gb"] > 0
    assert sum(steps["waits"].values()) <= 2
