"""Sweeps in one process: that methods are paired, that none touches another, and what a stop leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from splatgen import formats
from splatgen.commands.common import checks
from splatgen.config import from_dict, merge
from splatgen.config.methods import slots
from splatgen.loop import object_run
from splatgen.loop.loop import Progress
from splatgen.runs.metrics import read_metrics
from splatgen.scene.splats import Splats
from splatgen.sweeps import ledger, sheet
from splatgen.sweeps.ledger import Outcome, Sweep, make_folder, read_plan, read_rows, read_sweep
from splatgen.sweeps.plan import Plan, Task, line_up
from splatgen.sweeps.sweep import Alone, Callbacks, carry_out
from splatgen.sweeps.table import measures
from splatgen.sweeps.worker import Worker
from splatgen.worlds.toybox import weights_folder

needs_weights = pytest.mark.skipif(
    any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward")),
    reason="the miniature toybox weights are not there",
)
BASE = from_dict(
    {
        "prompt": "a red cube",
        "steps": 3,
        "prior": "toybox-mini",
        "reward": ["toybox-mini"],
        "views": {"count": 2, "size": [16]},
        "splats": {"count": 60},
        "output": {"frames": 0, "size": 32, "checkpoint_seconds": 0.0},
    }
)


def plan(*names: str, seeds: tuple[int, ...] = (3, 4), **change: object) -> Plan:
    base = merge(BASE, change)
    return line_up(["a red cube"], {name: merge(base, slots(name)) for name in names}, seeds)


class Log:
    """A watch that writes down what it is told, and asks to stop after a number of steps."""

    def __init__(self, stop_after: float = math.inf) -> None:
        self.begun: list[tuple[str, int]] = []
        self.ended: list[Outcome] = []
        self.steps = 0
        self.stop_after = stop_after

    def begin(self, task: Task) -> Callable[[Progress], None]:
        self.begun.append((task.method, task.seed))
        return self.step

    def step(self, progress: Progress) -> None:
        self.steps += 1

    def watch(self) -> Callbacks:
        return Callbacks(
            begin=self.begin, end=self.ended.append, should_stop=lambda: self.steps >= self.stop_after
        )


def made(what: Plan, out: Path, log: Log | None = None, folder: Path | None = None) -> Sweep:
    watch = (log or Log()).watch()
    crew = Alone(worker=Worker(["here"], truth=False))
    return carry_out(
        what, folder or make_folder(out, "compare", what.prompts), crew, command=["here"], watch=watch
    )


def splats(comparison: Sweep, method: str, seed: int) -> Splats:
    return formats.load(comparison.folder / f"{method}-{seed}" / "splats.ply")


def equal(a: Splats, b: Splats) -> bool:
    pairs = zip(a.tensors().values(), b.tensors().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Log]:
    """Four methods, two seeds; vsd, which trains a copy of the prior, comes first."""
    log = Log()
    what = plan("vsd", "sds", "rewardsds", "psd", weighted={"candidates": 1})
    return made(what, tmp_path_factory.mktemp("out"), log), log


# --- pairs ---------------------------------------------------------------------------------------


@needs_weights
def test_reward_weighting_of_a_single_candidate_is_sds_bit_for_bit(four: tuple[Sweep, Log]) -> None:
    """So the two saw the same cameras, backgrounds, times and noises at every step."""
    comparison, _ = four
    for seed in (3, 4):
        assert equal(splats(comparison, "sds", seed), splats(comparison, "rewardsds", seed))
        assert not equal(splats(comparison, "sds", seed), splats(comparison, "psd", seed))
    assert not equal(splats(comparison, "sds", 3), splats(comparison, "sds", 4))


@needs_weights
def test_the_first_step_has_the_same_cameras_and_times_for_all(four: tuple[Sweep, Log]) -> None:
    """The first row's reward is that of the first picture, before any method moved a splat."""
    comparison, _ = four
    for seed in (3, 4):
        rows = [
            read_metrics(comparison.folder / f"{method}-{seed}" / "metrics.jsonl")[0]
            for method in comparison.plan.methods
        ]
        for key in ("t_max", "reward/toybox-mini"):
            assert len({row[key] for row in rows}) == 1, key


@needs_weights
def test_a_method_is_what_it_is_alone_whatever_was_trained_before(
    four: tuple[Sweep, Log], tmp_path: Path
) -> None:
    comparison, _ = four
    for method in ("sds", "psd"):
        config = comparison.plan.config(method, 4)
        alone = object_run.generate(config, out=tmp_path, command=["here"])
        assert equal(splats(comparison, method, 4), formats.load(alone.run.splats_ply))


# --- what is left --------------------------------------------------------------------------------


@needs_weights
def test_every_run_is_a_run_folder_of_its_own(four: tuple[Sweep, Log]) -> None:
    comparison, log = four
    order = [(method, seed) for seed in (3, 4) for method in comparison.plan.methods]
    assert log.begun == order
    assert [(o.method, o.seed) for o in log.ended] == order
    assert log.steps == 3 * len(order)
    assert comparison.complete
    folders = {path.name for path in comparison.folder.iterdir() if path.is_dir()}
    assert folders == {f"{method}-{seed}" for method, seed in order}
    for outcome in comparison.outcomes:
        folder = comparison.folder / outcome.folder
        data = json.loads((folder / "run.json").read_text())
        assert (data["status"], data["id"], data["seed"]) == ("done", outcome.folder, outcome.seed)
        saved = from_dict(json.loads((folder / "config.json").read_text()))
        assert saved == comparison.plan.config(outcome.method, outcome.seed)


@needs_weights
def test_the_json_holds_all_that_the_table_is_made_of(four: tuple[Sweep, Log]) -> None:
    comparison, _ = four
    data = json.loads((comparison.folder / ledger.FILE).read_text())
    assert data["complete"] is True
    assert (data["prompts"], data["seeds"], data["command"]) == (["a red cube"], [3, 4], ["here"])
    assert {"version", "date", "machine", "id", "seconds", "threads"} <= set(data)
    assert read_plan(comparison.folder) == comparison.plan
    assert read_rows(comparison.folder) == list(comparison.outcomes)
    assert read_sweep(comparison.folder).outcomes == comparison.outcomes
    rows = [json.loads(line) for line in (comparison.folder / ledger.ROWS).read_text().splitlines()]
    calls = {m: [r["numbers"]["cost/model_calls"] for r in rows if r["method"] == m] for m in data["methods"]}
    assert calls["sds"] == calls["rewardsds"] == [4.0, 4.0]  # two views, with and without the prompt
    assert calls["vsd"] == [8.0, 8.0]  # the copy's baseline and its training
    assert min(calls["psd"]) > 4.0
    found = measures(comparison)
    difference = found["psd"]["reward/toybox-mini"].difference
    assert difference is not None
    assert difference.n == 2
    assert found["vsd"]["reward/toybox-mini"].difference is None


@needs_weights
def test_the_sheet_has_a_row_a_method_and_the_views_of_every_seed(four: tuple[Sweep, Log]) -> None:
    comparison, _ = four
    side = BASE.output.size
    with Image.open(comparison.folder / ledger.SHEET) as image:
        columns = 2 * len(sheet.AZIMUTHS)
        label = image.width - columns * side
        assert 0 < label < 120
        assert image.height == 3 * sheet.LINE + 4 * side
        for row in range(4):
            for column in range(columns):
                left = label + column * side
                top = 3 * sheet.LINE + row * side
                cell = image.crop((left, top, left + side - 2, top + side))
                assert min(low for low, _ in cell.getextrema()) < 230, (row, column)


# --- failures and stops --------------------------------------------------------------------------


@needs_weights
def test_a_run_that_diverges_does_not_stop_the_others(tmp_path: Path) -> None:
    what = plan("sdi", "sds", seeds=(0,), steps=24, sdi={"entropy": 1e38})
    log = Log()
    comparison = made(what, tmp_path, log)
    wild, tame = comparison.outcomes
    assert (wild.status, tame.status) == ("diverged", "done")
    assert "no finite gradient" in str(wild.error)
    assert wild.numbers == {}
    assert tame.numbers["reward/toybox-mini"] > -1.0
    assert comparison.complete
    assert read_rows(comparison.folder)[0].error == wild.error
    assert measures(comparison)["sds"]["reward/toybox-mini"].difference is None  # there is no pair
    assert (comparison.folder / ledger.SHEET).is_file()
    again = Log()
    assert made(what, tmp_path, again, comparison.folder).outcomes == comparison.outcomes
    assert again.begun == []


@needs_weights
def test_a_stopped_comparison_goes_on_where_it_was(four: tuple[Sweep, Log], tmp_path: Path) -> None:
    what = plan("sds", "psd", seeds=(3,))
    log = Log(stop_after=5)  # in the middle of the second run
    stopped = made(what, tmp_path, log)
    assert [o.status for o in stopped.outcomes] == ["done", "stopped"]
    assert not stopped.complete
    first = stopped.folder / "sds-3" / "splats.ply"
    written = first.stat().st_mtime_ns
    again = Log()
    finished = made(what, tmp_path, again, stopped.folder)
    assert finished.folder == stopped.folder
    assert again.begun == [("psd", 3)]
    assert again.steps == 1
    assert finished.complete
    assert first.stat().st_mtime_ns == written
    whole, _ = four
    for method in ("sds", "psd"):
        assert equal(splats(finished, method, 3), splats(whole, method, 3))


@needs_weights
def test_what_had_no_checkpoint_and_no_turn_is_made(four: tuple[Sweep, Log], tmp_path: Path) -> None:
    what = plan("sds", "psd", seeds=(3,))
    stopped = made(what, tmp_path, Log(stop_after=3))
    assert [o.status for o in stopped.outcomes] == ["done", "waiting"]
    broken = stopped.folder / "psd-3"  # a process that died in its first step
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "run.json").write_text('{"status": "running"}')
    finished = made(what, tmp_path, None, stopped.folder)
    assert finished.complete
    assert equal(splats(finished, "psd", 3), splats(four[0], "psd", 3))
