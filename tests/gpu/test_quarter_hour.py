"""The measurements for a GPU, tried to their end on this one at tiny size."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import costs
import gpu_rasterizers
import gpu_truth
import measuring
import models


def test_truth(tmp_path):
    out = tmp_path / "truth.json"
    assert gpu_truth.main(["--tiny", "--out", str(out)]) == 0, out.read_text()
    found = json.loads(out.read_text())
    assert found["gpu"]
    assert list(found["rows"]) == [
        "rasterizer gsplat",
        "rasterizer triton",
        "step vsd psd",
        "densify",
        "resume",
        "stages",
    ]
    assert all(row.get("ok") or row.get("not measured") for row in found["rows"].values())
    assert found["rows"]["rasterizer gsplat"]["ok"]


def test_a_rasterizer_that_is_wrong_is_seen(monkeypatch):
    right = gpu_truth.render
    monkeypatch.setattr(gpu_truth, "render", lambda splats, *z, **more: right(splats.detach(), *z, **more))
    row = gpu_truth.look(lambda: gpu_truth.rasterizer(gpu_truth.Truth(device="cuda", tiny=True), "gsplat"))
    assert "failed" in row


def test_the_rasterizers_time(tmp_path):
    out = tmp_path / "rasterizers.json"
    assert gpu_rasterizers.main(["--tiny", "--out", str(out)]) == 0, out.read_text()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["gsplat"] > 0
    assert isinstance(row["triton"], str) == ("ratio" not in row)


def test_cost():
    bench = costs.Bench(device=measuring.Card(), tiny=True, rounds=1)
    steps = models.measure(bench, costs.Job(section="steps", setting="sd15x1", method="sds"))
    assert steps["peak_gb"] > 0
    assert sum(steps["waits"].values()) <= 2
    limit = costs.Job(section="limits", setting="sd15x1", method="sds", budget="8gb", gigabytes=8.0)
    assert models.measure(bench, limit)["fits"]
