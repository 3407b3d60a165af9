"""Stages as settings: shares, what they inherit, and what is refused in one line before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splatgen.commands.generate import read
from splatgen.config import Config, ConfigError, PriorOptions, from_dict, read_preset, to_dict
from splatgen.config.stages import at, goes_on, lengthened, stages
from splatgen.config.validation import validate
from splatgen.models.catalogue import PUBLISHED
from splatgen.priors import PRIORS


def config(*tables: dict[str, Any], **settings: Any) -> Config:
    return from_dict({"prompt": "a red cube", "steps": 100, "stages": tables, **settings})


def test_a_run_without_stages_is_one() -> None:
    given = Config(steps=7)
    (only,) = stages(given)
    assert (only.first, only.end, only.label, only.config) == (0, 7, "", given)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 8))
def test_stages_fill_the_run_without_a_gap(parts: list[int], factor: int) -> None:
    whole = sum(parts)
    course = stages(config(*({"share": part / whole} for part in parts), steps=whole * factor))
    assert [stage.config.steps for stage in course] == [part * factor for part in parts]
    assert [stage.first for stage in course] == [0, *(stage.end for stage in course[:-1])]
    assert course[-1].end == whole * factor
    assert all(at(course, stage.first) is stage for stage in course)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 500))
def test_more_steps_are_the_last_stages(parts: list[int], more: int) -> None:
    before = config(*({"share": part / sum(parts)} for part in parts), steps=7 * sum(parts))
    old, new = stages(before), stages(validate(lengthened(before, before.steps + more)))
    assert [(stage.first, stage.config.steps) for stage in new[:-1]] == [
        (stage.first, stage.config.steps) for stage in old[:-1]
    ]
    assert new[-1].config.steps == old[-1].config.steps + more


def test_a_stage_lays_its_settings_over_the_runs() -> None:
    given = config(
        {"share": 0.3, "name": "shape", "guidance": {"scale": 3}},
        {"share": 0.7, "views": {"size": [32]}, "prior": "toybox-mini"},
        guidance={"scale": 2, "t_min": 0.2},
        prior_options={"camera": False},
    )
    shape, detail = stages(validate(given))
    assert (shape.label, detail.label) == ("stage 1 (shape)", "stage 2")
    assert (shape.config.guidance.scale, detail.config.guidance.scale) == (3, 2)
    assert shape.config.guidance.t_min == detail.config.guidance.t_min == 0.2
    assert (shape.config.views.size, detail.config.views.size) == ((64,), (32,))
    assert shape.config.prior_options == PriorOptions(camera=False)
    assert detail.config.prior_options == PriorOptions()  # the others were for another prior
    assert not goes_on(shape.config, detail.config)
    assert goes_on(
        shape.config,
        stages(config({"share": 1, "views": {"size": [8]}}, prior_options={"camera": False}))[0].config,
    )


def test_options_of_a_piece_count_for_the_stages_that_use_it() -> None:
    given = config(
        {"share": 0.5, "preference": "weighted"},
        {"share": 0.5, "score": "vsd"},
        weighted={"candidates": 6},
        vsd={"rank": 2},
        reward_options={"units": "candidates"},
    )
    first, second = stages(validate(given))
    assert (first.config.weighted.candidates, first.config.vsd.rank) == (6, Config().vsd.rank)
    assert (second.config.weighted, second.config.vsd.rank) == (Config().weighted, 2)
    assert (first.config.reward_options.units, second.config.reward_options.units) == ("candidates", "auto")


def test_stages_survive_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "stages.toml"
    file.write_text(
        '[[stages]]\nname = "a"\nshare = 0.25\nprior = "mvdream"\n[stages.guidance]\nscale = 50\n'
    )
    with file.open("a") as more:
        more.write('[[stages]]\nname = "b"\nshare = 0.75\nviews.size = [64, 128]\n')
    _, config = read(["a red cube", "--stages", str(file), "--preset", "toybox", "--steps", "8"])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    a, b = stages(config)
    assert (a.config.prior, a.config.guidance.scale, a.config.steps) == ("mvdream", 50, 2)
    assert (b.config.prior, b.config.views.size, b.first) == ("toybox", (64, 128), 2)
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(to_dict(config)))
    assert read(["--config", str(saved)])[1] == config


REFUSED: list[tuple[list[dict[str, Any]], str]] = [
    ([{"share": 0.5}, {"share": 0.4}], "the shares of the stages come to 0.9: give shares that come to 1"),
    ([{"share": -0.5}, {"share": 1.5}], "stage 1 has the share -0.5: give a number above 0, up to 1"),
    ([{"share": 0}, {"share": 1}], "stage 1 has the share 0"),
    ([{"share": "half"}], "stage 1 has the share 'half'"),
    ([{"name": "a"}], "stage 1 (a) has no share"),
    ([{"share": float("nan")}], "stage 1 has the share nan"),
    ([{"share": 0.999}, {"share": 0.001}], "--steps 100: stage 2 has 0.001 of them, which is none"),
    (
        [{"share": 1, "guidance": {"scal": 1}}],
        "stage 1: unknown setting guidance.scal; did you mean guidance.scale",
    ),
    ([{"share": 1, "giudance": {}}], "stage 1: unknown setting giudance; did you mean 'guidance'?"),
    ([{"share": 1, "steps": 4}], "stage 1: steps is of the whole run: set it outside of [[stages]]"),
    ([{"share": 1, "splats": {"count": 4}}], "stage 1: splats is of the whole run"),
    ([{"share": 1, "name": "fine", "guidance": {"t_min": 2}}], "stage 1 (fine): guidance.t_min is 2.0"),
    ([{"share": 1, "psd": {"rho": 0}}], "stage 1: psd.rho is 0.0: it acts with --preference psd only"),
    ([{"share": 1, "score": "sdd"}], "stage 1: score is 'sdd': choose one of sds"),
    ([{"share": 1, "name": "a\nb"}], "stage 1 has the name"),
    ([{"share": 1, "guidance": 3}], "stage 1: guidance is a group of settings, got 3"),
]


@pytest.mark.parametrize(("tables", "message"), REFUSED)
def test_what_cannot_be_a_stage_is_said_in_one_line(tables: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config(*tables))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_that_no_stage_uses_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"psd\.rho is 0\.5: it acts with preference psd only, which no stage has"
    ):
        validate(config({"share": 1}, psd={"rho": 0.5}))


def test_mvdream_then_sd_keeps_its_published_numbers() -> None:
    """Of Consistent Flow Distillation's mvdream-stage1.yaml and sd-nerf-stage2.yaml."""
    shape, detail = stages(validate(from_dict(read_preset("mvdream-then-sd"))))
    assert (shape.config.steps, detail.config.steps) == (10_000, 20_000)
    for stage, prior, scale in ((shape, "mvdream", 50), (detail, "sd21", 70)):
        assert (stage.config.prior, stage.config.guidance.scale) == (prior, scale)
        assert stage.config.views.count % PRIORS[prior].views == 0
        assert prior in PUBLISHED
        assert stage.config.negative
    s, d = shape.config, detail.config
    assert (s.guidance.times, s.guidance.t_max[0], s.guidance.t_min) == ("annealed", 0.98, 0.31)
    assert s.guidance.t_min == pytest.approx(0.98 - 0.7 * (0.98 - 0.02), abs=0.005)
    assert (d.guidance.times, d.guidance.t_min, d.guidance.t_max) == ("random", 0.02, (0.5, 0.5))
    assert (s.views.size, s.views.elevation, s.views.distance, s.views.fov) == (
        (64, 256),
        (0, 30),
        (0.8, 1.0),
        (15, 60),
    )
    assert (d.views.size, d.views.elevation, d.views.distance, d.views.fov) == (
        (512,),
        (0, 40),
        (1.5, 1.8),
        (55, 65),
    )


def test_refine_begins_at_three_tenths_and_ends_lower() -> None:
    sharpen, settle = stages(validate(from_dict(read_preset("refine"))))
    assert sharpen.config.refine.time == 0.3
    assert sharpen.config.refine.ssim == settle.config.refine.ssim == 0.2
    assert settle.config.refine.time < 0.3
