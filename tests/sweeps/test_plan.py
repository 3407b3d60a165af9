"""What a sweep runs: axes, names, and what can be compared."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from splatgen.config import Config, ConfigError, from_dict, merge
from splatgen.config.methods import slots
from splatgen.sweeps.estimate import SECONDS_A_CALL, estimate, model_calls
from splatgen.sweeps.plan import Axis, crossed, folder_names, line_up, read_axis


def base(**change: object) -> Config:
    return from_dict({"prompt": "a red cube", **change})


def test_an_option_of_a_piece_counts_for_the_methods_that_use_it() -> None:
    given = base(weighted={"candidates": 8}, vsd={"rank": 2}, reward_options={"units": "candidates"})
    names = ("sds", "rewardsds", "rewardvsd", "dreamreward")
    found = line_up(["a red cube"], {name: merge(given, slots(name)) for name in names}, [0, 1]).methods
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
        line_up(["a red cube"], bases, range(first, first + 2))


def test_candidates_units_need_a_method_with_candidates() -> None:
    given = base(reward_options={"units": "candidates"})
    with pytest.raises(ConfigError, match=r"reward\.units"):
        line_up(["a red cube"], {name: merge(given, slots(name)) for name in ("sds", "dreamreward")}, [0])


def test_one_method_under_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="sds\\+none and sds are the same method"):
        line_up(["a red cube"], {name: merge(base(), slots(name)) for name in ("sds", "sds+none")}, [0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prior", "toybox-mini"),
        ("reward", ["toybox-mini"]),
        ("negative", "a cone"),
    ],
)
def test_what_measures_must_be_shared(key: str, value: object) -> None:
    other = merge(base(), {**slots("psd"), key: value})
    with pytest.raises(ConfigError, match=f"^{key} is .* for sds and .* for psd"):
        line_up(["a red cube"], {"sds": base(), "psd": other}, [0])


# --- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("guidance.scale=2,5.5", Axis(key="guidance.scale", values=(2, 5.5))),
        ("views.size=[16,32],[64]", Axis(key="views.size", values=([16, 32], [64]))),
        ("prior=toybox,toybox-mini", Axis(key="prior", values=("toybox", "toybox-mini"))),
        ("--weighted.normalise=true", Axis(key="weighted.normalise", values=(True,))),
    ],
)
def test_an_axis_is_a_key_and_its_values(text: str, axis: Axis) -> None:
    assert read_axis(text) == axis


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance.scale", "write KEY=A,B,C"),
        ("=3", "write KEY=A,B,C"),
        ("steps=", "write KEY=A,B,C"),
        ("steps=3,3", "a value is there twice"),
        ("seed=1,2", "axes of their own"),
    ],
)
def test_what_is_no_axis_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_axis(text)


def test_axes_cross_and_a_method_has_those_of_its_own_pieces_only() -> None:
    bases = {name: merge(base(), slots(name)) for name in ("sds", "psd")}
    found = crossed(bases, [read_axis("guidance.scale=2,3"), read_axis("psd.rho=0,1")])
    assert list(found) == [
        "sds, guidance.scale=2",
        "sds, guidance.scale=3",
        *(f"psd, guidance.scale={s}, psd.rho={r}" for s in (2, 3) for r in (0, 1)),
    ]
    last = found["psd, guidance.scale=3, psd.rho=0"]
    assert (last.guidance.scale, last.psd.rho, last.preference) == (3.0, 0.0, "psd")


def test_axes_of_prior_and_reward_settings_have_the_command_lines_names() -> None:
    found = crossed({"sds": base()}, [read_axis("prior.dtype=float32,float16")])
    assert [c.prior_options.dtype for c in found.values()] == ["float32", "float16"]
    found = crossed({"sds": base()}, [read_axis("views.count=1,2"), read_axis("guidance.t-min=0.2")])
    assert [(c.views.count, c.guidance.t_min) for c in found.values()] == [(1, 0.2), (2, 0.2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psd.rho=0,1", "no method of sds uses psd"),
        ("guidance.skale=2", "did you mean guidance.scale"),
        ("steps=a", "it takes int"),
    ],
)
def test_an_axis_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        crossed({"sds": base()}, [read_axis(text)])


def test_what_is_compared_may_differ_when_it_is_an_axis() -> None:
    methods = crossed({"sds": base()}, [read_axis("prior=toybox,toybox-mini")])
    with pytest.raises(ConfigError, match="prior is"):
        line_up(["a red cube"], methods, [0])
    plan = line_up(["a red cube"], methods, [0], free={"prior"})
    assert [c.prior for c in plan.methods.values()] == ["toybox", "toybox-mini"]


def test_folders_of_methods_are_never_the_same() -> None:
    long = [f"psd, guidance.scale=2, weighted.temperature=0.{n}" for n in range(3)]
    names = folder_names(["sds", *long, "SDS!"])
    assert len(set(names.values())) == 5
    assert folder_names(["sds", "preset:sdi"]) == {"sds": "sds", "preset:sdi": "preset-sdi"}


def test_tasks_are_every_run_in_an_order_that_compares_early() -> None:
    methods = {name: merge(base(), slots(name)) for name in ("sds", "psd")}
    plan = line_up(["a red cube", "a blue cone"], methods, [0, 1])
    tasks = plan.tasks()
    assert [(t.prompt, t.seed, t.method) for t in tasks[:3]] == [
        ("a red cube", 0, "sds"), ("a red cube", 0, "psd"), ("a red cube", 1, "sds"),
    ]  # fmt: skip
    assert len({t.folder for t in tasks}) == len(tasks) == 8
    assert tasks[-1].folder == "0001-a-blue-cone/psd-1"
    assert all((t.config.prompt, t.config.seed) == (t.prompt, t.seed) for t in tasks)
    assert line_up(["a red cube"], methods, [7]).tasks()[1].folder == "psd-7"


def test_an_estimate_begins_with_what_was_measured() -> None:
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    measured = json.loads(sorted(results.glob("call-seconds-*.json"))[-1].read_text())
    for prior, seconds in SECONDS_A_CALL.items():
        assert 1e3 * seconds == pytest.approx(statistics.fmean(measured[prior].values()), rel=0.1)


def test_an_estimate_counts_the_calls_of_every_stage() -> None:
    later = {"share": 0.75, "score": "refine", "refine": {"views": 6, "steps": 5, "rounds": 2}}
    given = {"steps": 8, "views": {"count": 4}, "guidance": {"scale": 3.0}}
    config = from_dict({"prompt": "a red cube", **given, "stages": [{"share": 0.25}, later]})
    assert model_calls(config) == 2 * 4 * 2 + 2 * 6 * 5 * 2


def test_an_estimate_counts_model_calls_as_runs_do() -> None:
    """Those of test_sweep.py, which were counted: two views, guided."""
    given = {"steps": 2, "views": {"count": 2}}
    sds, vsd, reward = (
        line_up(["a red cube"], {name: merge(base(**given), slots(name))}, [0]).tasks()
        for name in ("sds", "vsd", "rewardsds")
    )
    assert [estimate(tasks).calls for tasks in (sds, vsd, reward)] == [8, 16, 20]
    both = estimate([*sds, *vsd])
    assert (both.runs, both.calls) == (2, 24)
    assert both.seconds is not None
    assert both.disk > 0
