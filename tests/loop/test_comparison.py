"""Comparisons: that methods are paired, that none touches another, and that all of it survives a stop."""

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
from splatgen.config import Config, ConfigError, from_dict, merge
from splatgen.config.methods import METHODS, ComparisonPlan, line_up, slots
from splatgen.loop import comparison as comparing
from splatgen.loop import object_run
from splatgen.loop.comparison import Callbacks, Comparison, Outcome, compare
from splatgen.loop.loop import Progress
from splatgen.runs.metrics import read_metrics
from splatgen.runs.statistics import summarise
from splatgen.scene.splats import Splats
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


def plan(*names: str, seeds: tuple[int, ...] = (3, 4), **change: object) -> ComparisonPlan:
    base = merge(BASE, change)
    return line_up({name: merge(base, slots(name)) for name in names}, seeds)


class Log:
    """A watch that writes down what it is told, and asks to stop after a number of steps."""

    def __init__(self, stop_after: float = math.inf) -> None:
        self.begun: list[tuple[str, int]] = []
        self.ended: list[Outcome] = []
        self.steps = 0
        self.stop_after = stop_after

    def begin(self, method: str, seed: int) -> Callable[[Progress], None]:
        self.begun.append((method, seed))
        return self.step

    def step(self, progress: Progress) -> None:
        self.steps += 1

    def watch(self) -> Callbacks:
        return Callbacks(
            begin=self.begin, end=self.ended.append, should_stop=lambda: self.steps >= self.stop_after
        )


def made(what: ComparisonPlan, out: Path, log: Log | None = None, folder: Path | None = None) -> Comparison:
    watch = (log or Log()).watch()
    return compare(what, out=out, folder=folder, truth=False, command=["here"], watch=watch)


def splats(comparison: Comparison, method: str, seed: int) -> Splats:
    return formats.load(comparison.folder / comparing.run_name(method, seed) / "splats.ply")


def equal(a: Splats, b: Splats) -> bool:
    pairs = zip(a.tensors().values(), b.tensors().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Log]:
    """Four methods, two seeds; vsd, which trains a copy of the prior, comes first."""
    log = Log()
    what = plan("vsd", "sds", "rewardsds", "psd", weighted={"candidates": 1})
    return made(what, tmp_path_factory.mktemp("out"), log), log


# --- pairs ---------------------------------------------------------------------------------------


@needs_weights
def test_reward_weighting_of_a_single_candidate_is_sds_bit_for_bit(four: tuple[Comparison, Log]) -> None:
    """So the two saw the same cameras, backgrounds, times and noises at every step."""
    comparison, _ = four
    for seed in (3, 4):
        assert equal(splats(comparison, "sds", seed), splats(comparison, "rewardsds", seed))
        assert not equal(splats(comparison, "sds", seed), splats(comparison, "psd", seed))
    assert not equal(splats(comparison, "sds", 3), splats(comparison, "sds", 4))


@needs_weights
def test_the_first_step_has_the_same_cameras_and_times_for_all(four: tuple[Comparison, Log]) -> None:
    """The first row's reward is that of the first picture, before any method moved a splat."""
    comparison, _ = four
    for seed in (3, 4):
        rows = [
            read_metrics(comparison.folder / comparing.run_name(method, seed) / "metrics.jsonl")[0]
            for method in comparison.plan.methods
        ]
        for key in ("t_max", "reward/toybox-mini"):
            assert len({row[key] for row in rows}) == 1, key


@needs_weights
def test_a_method_is_what_it_is_alone_whatever_was_trained_before(
    four: tuple[Comparison, Log], tmp_path: Path
) -> None:
    comparison, _ = four
    for method in ("sds", "psd"):
        config = comparison.plan.config(method, 4)
        alone = object_run.generate(config, out=tmp_path, command=["here"])
        assert equal(splats(comparison, method, 4), formats.load(alone.run.splats_ply))


# --- what is left --------------------------------------------------------------------------------


@needs_weights
def test_every_run_is_a_run_folder_of_its_own(four: tuple[Comparison, Log]) -> None:
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
def test_the_json_holds_all_that_the_table_is_made_of(four: tuple[Comparison, Log]) -> None:
    comparison, _ = four
    data = json.loads((comparison.folder / comparing.FILE).read_text())
    assert data["complete"] is True
    assert (data["prompt"], data["seeds"], data["command"]) == ("a red cube", [3, 4], ["here"])
    assert {"version", "date", "machine", "packages", "python", "device"} <= set(data)
    assert {name: from_dict(values) for name, values in data["methods"].items()} == comparison.plan.methods
    assert [Outcome(**run) for run in data["runs"]] == list(comparison.outcomes)
    calls = {m: [r["numbers"]["cost/model_calls"] for r in data["runs"] if r["method"] == m] for m in METHODS}
    assert calls["sds"] == calls["rewardsds"] == [4.0, 4.0]  # two views, with and without the prompt
    assert calls["vsd"] == [8.0, 8.0]  # the copy's baseline and its training
    assert min(calls["psd"]) > 4.0
    measured = summarise(comparing.values(comparison))
    reward = data["table"]["psd"]["reward/toybox-mini"]
    assert reward["mean"] == pytest.approx(measured["psd"]["reward/toybox-mini"].mean)
    assert reward["difference"]["n"] == 2
    assert data["table"]["vsd"]["reward/toybox-mini"]["difference"] is None


@needs_weights
def test_the_sheet_has_a_row_a_method_and_the_views_of_every_seed(four: tuple[Comparison, Log]) -> None:
    comparison, _ = four
    side = BASE.output.size
    with Image.open(comparison.folder / comparing.SHEET) as sheet:
        columns = 2 * len(comparing.AZIMUTHS)
        label = sheet.width - columns * side
        assert 0 < label < 120
        assert sheet.height == 2 * comparing.LINE + 4 * side
        for row in range(4):
            for column in range(columns):
                left = label + column * side
                top = 2 * comparing.LINE + row * side
                cell = sheet.crop((left, top, left + side - 2, top + side))
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
    data = json.loads((comparison.folder / comparing.FILE).read_text())
    assert data["runs"][0]["error"] == wild.error
    assert data["table"]["sds"]["reward/toybox-mini"]["difference"] is None  # there is no pair
    assert (comparison.folder / comparing.SHEET).is_file()
    again = Log()
    assert made(what, tmp_path, again, comparison.folder).outcomes == comparison.outcomes
    assert again.begun == []


@needs_weights
def test_a_stopped_comparison_goes_on_where_it_was(four: tuple[Comparison, Log], tmp_path: Path) -> None:
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
def test_what_had_no_checkpoint_and_no_turn_is_made(four: tuple[Comparison, Log], tmp_path: Path) -> None:
    what = plan("sds", "psd", seeds=(3,))
    stopped = made(what, tmp_path, Log(stop_after=3))
    assert [o.status for o in stopped.outcomes] == ["done", "waiting"]
    broken = stopped.folder / "psd-3"  # a process that died in its first step
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "run.json").write_text('{"status": "running"}')
    finished = made(what, tmp_path, None, stopped.folder)
    assert finished.complete
    assert equal(splats(finished, "psd", 3), splats(four[0], "psd", 3))


# --- what can be compared ------------------------------------------------------------------------


def base(**change: object) -> Config:
    return from_dict({"prompt": "a red cube", **change})


def test_an_option_of_a_piece_counts_for_the_methods_that_use_it() -> None:
    given = base(weighted={"candidates": 8}, vsd={"rank": 2}, reward_options={"units": "candidates"})
    names = ("sds", "rewardsds", "rewardvsd", "dreamreward")
    found = line_up({name: merge(given, slots(name)) for name in names}, [0, 1]).methods
    assert [c.weighted.candidates for c in found.values()] == [4, 8, 8, 4]
    assert [c.vsd.rank for c in found.values()] == [4, 4, 2, 4]
    units = [c.reward_options.units for c in found.values()]
    assert units == ["auto", "candidates", "candidates", "auto"]
    assert len({(c.prompt, c.steps, c.views, c.guidance) for c in found.values()}) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"psd": {"rho": 0.5}}, "psd.rho is 0.5: it acts with psd only, and no method of sds, rewardsds"),
        ({"sdi": {"tau": 0.1}}, "sdi.tau is 0.1"),
        ({"weighted": {"candidates": 0}}, "method rewardsds: weighted.candidates is 0"),
        ({"steps": 0}, "method sds: steps is 0"),
        ({"seed": 2**63 - 1}, "method sds: seed is"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(given: dict[str, object], message: str) -> None:
    bases = {name: merge(base(**given), slots(name)) for name in ("sds", "rewardsds")}
    first = base(**given).seed
    with pytest.raises(ConfigError, match=message):
        line_up(bases, range(first, first + 2))


def test_candidates_units_need_a_method_with_candidates() -> None:
    given = base(reward_options={"units": "candidates"})
    with pytest.raises(ConfigError, match=r"reward\.units"):
        line_up({name: merge(given, slots(name)) for name in ("sds", "dreamreward")}, [0])


def test_one_method_under_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="sds\\+none and sds are the same method"):
        line_up({name: merge(base(), slots(name)) for name in ("sds", "sds+none")}, [0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prior", "toybox-mini"),
        ("reward", ["toybox-mini"]),
        ("prompt", "a blue cone"),
        ("negative", "a cone"),
    ],
)
def test_what_measures_must_be_shared(key: str, value: object) -> None:
    other = merge(base(), {**slots("psd"), key: value})
    with pytest.raises(ConfigError, match=f"^{key} is .* for sds and .* for psd"):
        line_up({"sds": base(), "psd": other}, [0])
