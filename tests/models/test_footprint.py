"""What a step takes of a GPU's memory: the promise of the budgets, and what is said of it beforehand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from splatgen.commands.common import checks, doctor_report, execution
from splatgen.commands.common.errors import Failure
from splatgen.config import from_dict
from splatgen.models import footprint
from splatgen.models.budget import BUDGETS
from splatgen.models.weights import WeightsError
from splatgen.rasterizer.backends import Choice

CUDA = Choice(device="cuda", backend="gsplat")
ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("memory-estimate-*.json"))[-1]
ROWS = {
    (row["prior"], row["views"], row["budget"], row["method"]): row
    for row in json.loads(RESULTS.read_text())["rows"]
}


def config(views=4, **more):
    return from_dict({"prompt": "a corgi", "prior": "sd15", "views": {"count": views}, **more})


def test_budgets_promise_what_they_should():
    promised = {name: budget.most for name, budget in BUDGETS.items() if budget.most}
    assert promised == {"8gb": 6.0, "12gb": 9.5, "16gb": 13.0, "24gb": 20.0}


def test_every_row_is_within_its_promise_and_none_is_missing():
    for prior, methods in footprint.PEAKS.items():
        for method, row in methods.items():
            for budget, value in zip(footprint.BUDGETS, row, strict=True):
                found = ROWS[prior, footprint.VIEWS[prior], budget, method]
                assert found["bound"] == BUDGETS[budget].most
                assert found["peak"] <= (found["bound"] or 100.0)
                assert value == pytest.approx(found["peak"], abs=0.051)
    assert len(ROWS) == 3 * 6 * 5 + 6  # and SD 1.5 with one view


def test_the_largest_prior_keeps_the_smallest_budget_with_what_takes_most(tmp_path):
    """The same rows again, as the code is now: SDXL in 8 GB, through every network with a gradient."""
    out = tmp_path / "rows.json"
    what = ["--priors", "sdxl", "--budgets", "8gb", "--methods", "psd", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "memory_estimate.py"), *what],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    before = ROWS["sdxl", 1, "8gb", "psd"]
    assert row["peak"] <= BUDGETS["8gb"].most
    for stage in ("encode", "guidance", "backward"):
        assert row[stage] == pytest.approx(before[stage], rel=0.02)


def test_the_estimate_of_a_run():
    assert footprint.footprint(config()) == 8.2
    assert footprint.footprint(config(prior="sd21", budget="8gb")) == 2.4
    assert footprint.footprint(config(views=1, budget="8gb", preference="psd")) == 3.9
    assert footprint.footprint(config(budget="8gb", score="vsd", preference="dpo")) == 3.5
    assert footprint.footprint(config(prior="toybox")) is None
    assert footprint.footprint(config(prior_options={"model": "./mine"})) is None


@pytest.mark.parametrize("method", ["sds", "weighted", "psd", "ascent", "vsd", "vsd+psd"])
def test_without_a_budget_it_grows_with_the_views(method):
    score, _, preference = method.rpartition("+") if "+" in method else ("sds", "", method)
    if method in ("sds", "vsd"):
        score, preference = method, "none"
    found = footprint.footprint(config(views=1, score=score, preference=preference))
    assert found == pytest.approx(ROWS["sd15", 1, "none", method]["peak"], rel=0.05)


def test_it_is_said_before_a_run_and_by_the_doctor():
    line = execution.headline(config(budget="8gb", preference="psd"), CUDA)
    assert "about 3.9 GiB of GPU memory" in line
    assert "GPU memory" not in execution.headline(config(), Choice(device="cpu"))
    (found,) = (f for f in doctor_report.examine().findings if f.name == "GPU memory")
    assert "under 8gb / 12gb / 16gb / 24gb: sd15 3.9 / 4.1 / 6.6 / 14.6" in found.text


def test_a_reward_that_breaks_the_promise_by_itself_is_refused():
    with pytest.raises(
        Failure, match=r"vqa alone takes 7.0 GiB and --budget 8gb promises .* within 6:"
    ) as found:
        checks.check_models(config(budget="8gb", reward=["vqa"]))
    assert found.value.code == 2
    with pytest.raises(WeightsError, match="splatgen fetch vqa"):
        checks.check_models(config(budget="12gb", reward=["vqa"]))


def test_a_denoiser_that_is_not_compiled_is_said():
    asked = {"prior_options": {"compile": True}}
    assert "not compiled: vsd" in execution.headline(config(score="vsd", **asked), CUDA)
    assert "not compiled: its weights" in execution.headline(
        config(prior="sdxl", budget="8gb", **asked), CUDA
    )
    assert "not compiled" not in execution.headline(config(**asked), CUDA)
