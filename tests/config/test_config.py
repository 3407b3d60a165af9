"""Settings: strict reading, exact precedence, helpful refusals."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from splatgen import config as settings
from splatgen.commands.common.arguments import gather
from splatgen.commands.generate import read
from splatgen.config import Config, ConfigError, ImageConfig, from_dict, merge, read_file, to_dict
from splatgen.config.validation import validate

few = examples(max_examples=30)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return configs(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        several = st.lists(values(args[0]), max_size=3).map(tuple)
        return several if args[-1] is Ellipsis else st.tuples(*map(values, args))
    if origin is dict:
        return st.dictionaries(st.text(max_size=9), st.integers() | st.lists(st.floats(0, 1)), max_size=3)
    if type(None) in args:
        return st.none() | values(args[0])
    plain = {
        str: st.text(max_size=9),
        int: st.integers(),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }
    return plain[hint]


def configs(kind: Any = Config) -> st.SearchStrategy[Any]:
    """Any instance of a dataclass of settings, sensible or not."""
    return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})


@few
@given(configs(), configs(ImageConfig))
def test_settings_survive_json(config: Config, image: ImageConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert merge(ImageConfig(), json.loads(json.dumps(to_dict(image)))) == image


@few
@given(configs(), configs())
def test_merging_everything_replaces_everything(first: Config, second: Config) -> None:
    assert merge(first, to_dict(second)) == second
    assert merge(first, {}) == first


@few
@given(configs(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_merging_changes_only_what_is_named(config: Config, steps: int, scale: float) -> None:
    merged = merge(config, {"steps": steps, "guidance": {"scale": scale}})
    guidance = dataclasses.replace(config.guidance, scale=scale)
    assert merged == dataclasses.replace(config, steps=steps, guidance=guidance)


def test_every_setting_is_frozen_and_documented() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 1  # type: ignore[misc]
    text = Path(inspect.getfile(Config)).read_text()
    for field in (*dataclasses.fields(Config), *dataclasses.fields(ImageConfig)):
        line = next(row for row in text.splitlines() if row.startswith(f"    {field.name}: "))
        if not dataclasses.is_dataclass(field.default_factory):
            assert text.split(line)[1].lstrip().startswith('"""'), field.name


def test_a_run_of_an_earlier_version_is_read_with_what_has_gone_since():
    assert from_dict({"prompt": "a cow", "ism": {"noise": 0.1, "interval": 0.2}}).ism.interval == 0.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stepz": 3}, "unknown setting stepz; did you mean steps?"),
        ({"ism": {"noise": 0.2}}, "ism.noise is gone, and ism.start and ism.offset say what it said"),
        ({"guidance": {"scal": 3}}, "unknown setting guidance.scal; did you mean guidance.scale?"),
        ({"zzz": 3}, "known here: prompt"),
        ({"guidance": 3}, "guidance is a group of settings"),
        ({"steps": "3"}, "steps is '3': it takes int"),
        ({"steps": 3.0}, "steps is 3.0: it takes int"),
        ({"steps": True}, "steps is True: it takes int"),
        ({"guidance": {"scale": True}}, "guidance.scale is True: it takes float"),
        ({"guidance": {"clamp": 1}}, "guidance.clamp is 1: it takes bool"),
        ({"guidance": {"weighting": "sd"}}, "choose one of auto, sds, uniform"),
        ({"guidance": {"t_max": 0.9}}, "guidance.t_max is 0.9: write a list"),
        ({"guidance": {"t_max": [0.9]}}, "guidance.t_max has 1 entries: it takes 2"),
        ({"reward": "toybox"}, "reward is 'toybox': write a list"),
        ({"reward": [1]}, "reward is 1: it takes str"),
        ({"score": "vds"}, "choose one of sds, sdi, vsd, csd, nfsd, ism"),
        ({"preference": "dop"}, "choose one of none, weighted, dpo, psd, ascent"),
        ({"psd": {"leran": True}}, "unknown setting psd.leran; did you mean psd.learn?"),
        ({"weighted": {"candidates": 2.0}}, "weighted.candidates is 2.0: it takes int"),
        ({"weighted": {"scale": "7"}}, "weighted.scale is '7': it takes float"),
        ({"prior": {"model": "x"}}, "its settings go into the table prior_options"),
    ],
)
def test_wrong_keys_and_types_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_integers_become_floats() -> None:
    scale = from_dict({"guidance": {"scale": 3}}).guidance.scale
    assert (scale, type(scale)) == (3.0, float)
    assert from_dict({"prior_options": {"model": None}}).prior_options.model is None


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"guidance": {"scale": -1.0}},
        {"guidance": {"scale_end": -1.0}},
        {"guidance": {"scale_over": [0.8, 0.2]}},
        {"guidance": {"clip": [-1.0, 1.0]}},
        {"guidance": {"shift": 0.0}},
        {"guidance": {"view_limits": [0.0, 60.0]}},
        {"lr": {"betas": [0.9, 1.0]}},
        {"lr": {"means_fall": [0.6, 0.2, 0.1]}},
        {"lr": {"sh_fall": [0.0, 0.2, 2.0]}},
        {"regularise": {"tv": -1.0}},
        {"score": "vsd", "vsd": {"betas": [1.0, 0.9]}},
        {"score": "vsd", "vsd": {"eps": 0.0}},
        {"score": "sdi", "sdi": {"reverse": 0}},
        {"score": "ism", "ism": {"interval_start": 0.0}},
        {"score": "nfsd", "nfsd": {"limit": 2.0}},
        {"score": "bridge", "bridge": {"start": -0.1}},
        {"guidance": {"scale": math.nan}},
        {"guidance": {"t_max": [math.inf, 0.5]}},
        {"guidance": {"t_min": 0.6}},
        {"guidance": {"t_min_start": 0.05}},
        {"guidance": {"t_min_start": 0.99}},
        {"guidance": {"anneal": [0.8, 0.2]}},
        {"views": {"count": 0}},
        {"views": {"size": []}},
        {"views": {"size": [64, 4]}},
        {"views": {"elevation": [60.0, 0.0]}},
        {"views": {"fov": [50.0, 180.0]}},
        {"splats": {"count": 0}},
        {"splats": {"count": 30_000}},
        {"splats": {"opacity": 1.0}},
        {"splats": {"sh_degree": 4}},
        {"densify": {"start": 0.8}},
        {"lr": {"means": -0.1}},
        {"output": {"size": 8}},
        {"output": {"log_every": 0}},
        {"guidance": {"rescale": 1.5}},
        {"guidance": {"batch": -1}},
        {"score": "sdi", "sdi": {"steps": 0}},
        {"score": "sdi", "sdi": {"tau": 0.6}},
        {"score": "sdi", "sdi": {"entropy": -0.1}},
        {"score": "vsd", "vsd": {"rank": 0}},
        {"score": "vsd", "vsd": {"lr": -1.0}},
        {"score": "vsd", "vsd": {"camera_dropout": 1.1}},
        {"score": "ism", "ism": {"interval": 0.0}},
        {"score": "ism", "ism": {"step": 1.5}},
        {"score": "ism", "ism": {"start": -1.0}},
        {"score": "csd", "guidance": {"scale": 1.0}},
        {"score": "csd", "guidance": {"scale": 0.0}},
        {"preference": "weighted", "weighted": {"candidates": 0}},
        {"preference": "weighted", "weighted": {"lookahead": 0}},
        {"preference": "weighted", "weighted": {"scale": -1.0}},
        {"preference": "weighted", "weighted": {"temperature": 0.0}},
        {"preference": "weighted", "weighted": {"start": 0.6}},
        {"preference": "weighted", "weighted": {"top": 0}},
        {"preference": "weighted", "weighted": {"bottom_weight": -0.1}},
        {"preference": "weighted", "weighted": {"temperature": math.inf}},
        {"preference": "dpo", "dpo": {"gap": -0.1}},
        {"preference": "psd", "psd": {"rho": 1.1}},
        {"preference": "psd", "psd": {"temperature": 0.0}},
        {"preference": "psd", "psd": {"interval": 0}},
        {"preference": "psd", "psd": {"lr": -1e-4}},
        {"preference": "psd", "psd": {"anneal": 1.5}},
        {"preference": "psd", "psd": {"t_limit": -0.1}},
        {"preference": "psd", "guidance": {"scale": 1.0}},
        {"preference": "psd", "guidance": {"scale": 0.0}},
        {"preference": "ascent", "ascent": {"weight": -1.0}},
        {"preference": "ascent", "ascent": {"pure": 1.1}},
        {"reward": ["toybox=nan"]},
        {"reward": ["toybox=inf"]},
        {"reward": ["toybox=0"]},
        {"reward_options": {"batch": -1}},
    ],
)
def test_values_that_can_not_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give"):
        validate(from_dict(changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"weighted": {"candidates": 2}},
            "weighted.candidates is 2: it acts with --preference weighted only, and preference is none",
        ),
        (
            {"preference": "dpo", "psd": {"rho": 0.0}},
            "psd.rho is 0.0: it acts with --preference psd only, and preference is dpo",
        ),
        ({"vsd": {"rank": 8}}, "vsd.rank is 8: it acts with --score vsd only, and score is sds"),
        ({"score": "vsd", "sdi": {"steps": 5}}, "it acts with --score sdi only, and score is vsd"),
        ({"reward_options": {"units": "candidates"}}, "there are candidates with --preference weighted, dpo"),
        (
            {"preference": "ascent", "reward_options": {"units": "candidates"}},
            "there are candidates with --preference weighted, dpo or psd only",
        ),
        ({"preference": "weighted", "reward": []}, "--preference weighted needs at least one"),
        (
            {"preference": "weighted", "weighted": {"candidates": 3}},
            "weighted.candidates is 3: min-max takes the 2 best and the 2 worst of them: give at least 4, or "
            "fewer with --weighted.top and --weighted.bottom",
        ),
        (
            {"preference": "weighted", "weighted": {"candidates": 3, "strategy": "best", "top": 4}},
            "weighted.top is 4: there are 3 candidates",
        ),
        (
            {"score": "sdi", "preference": "psd", "sdi": {"entropy": 0.0}},
            "sdi.entropy is 0.0: without it the candidates are the same",
        ),
        (
            {"score": "ism", "preference": "dpo", "ism": {"start": 0.0}},
            "ism.start is 0.0: without it the candidates are the same",
        ),
        ({"guidance": {"perp_neg": True}}, "it takes --guidance.view-prompts blend"),
        (
            {"score": "nfsd", "preference": "psd"},
            "psd.learn is True: nfsd does not guide away from the negative alone: --psd.no-learn",
        ),
        (
            {"preference": "psd", "guidance": {"scale": 3.0, "scale_end": 1.0}},
            "guidance.scale_end is 1.0: psd measures its pair by what guidance adds",
        ),
        ({"score": "csd", "guidance": {"scale": 1.0}}, "csd is what guidance adds: give more than 1"),
        ({"preference": "psd", "guidance": {"scale": 1.0}}, "psd measures its pair by what guidance adds"),
        ({"reward": ["toybox=high"]}, "reward is 'toybox=high': write NAME or NAME=WEIGHT"),
        ({"reward": ["toybox="]}, "write NAME or NAME=WEIGHT"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(from_dict(changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"preference": "weighted", "weighted": {"candidates": 1}},  # the plain score
        {"preference": "weighted", "weighted": {"candidates": 2, "top": 1, "bottom": 1}},
        {"preference": "weighted", "weighted": {"candidates": 2, "strategy": "softmax"}},
        {"preference": "weighted", "weighted": {"candidates": 3, "top": 3, "bottom": 0}},
        {"preference": "weighted", "guidance": {"scale": 1.0}, "weighted": {"scale": 7.5}},
        {"preference": "psd", "reward_options": {"units": "candidates"}},
        {"reward": [], "preference": "none"},
        {"score": "sdi", "sdi": {"entropy": 0.0}},
        {"score": "ism", "ism": {"start": 0.0}, "preference": "ascent"},
        {"reward": ["toybox=-0.5", "toybox-mini=2e-1"], "preference": "dpo"},
        {"guidance": {"perp_neg": True, "view_prompts": "blend"}},
        {"score": "csd", "guidance": {"scale": 1.0, "scale_end": 2.0, "null_scale": [1.0, 0.0]}},
        {"score": "nfsd", "preference": "psd", "psd": {"learn": False}},
        {"lr": {"means_fall": [0.0, 0.6, 0.02]}},
    ],
)
def test_settings_that_go_together_are_taken(changes: dict[str, Any]) -> None:
    assert validate(from_dict(changes)) == from_dict(changes)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(-9, 9)), unique_by=lambda pair: pair[0]))
def test_rewards_are_read_with_their_weights(pairs: list[tuple[str, float]]) -> None:
    entries = [*(f"{name}={weight}" for name, weight in pairs), "plain"]
    assert from_dict({"reward": entries}).rewards() == {**dict(pairs), "plain": 1.0}


@pytest.mark.parametrize(
    "words",
    [
        ["--reward", "toybox=0.7", "toybox-mini=0.3"],
        ["--reward", "toybox=0.7", "--reward", "toybox-mini=0.3"],
        ["--reward=toybox=0.7", "--steps", "9", "--reward=toybox-mini=0.3"],
        ["--reward", "toybox=0.7", "--seed", "1", "--reward", "toybox-mini=0.3", "--seed", "0"],
    ],
)
def test_a_repeated_reward_adds_to_the_first(words: list[str]) -> None:
    for before, after in ((["a red cube"], []), ([], ["--", "a red cube"])):
        _, config = read([*before, *words, *after])
        assert config.rewards() == {"toybox": 0.7, "toybox-mini": 0.3}
        assert (config.prompt, config.seed) == ("a red cube", 0)


def test_repeated_rewards_and_holdouts_do_not_mix() -> None:
    words = [
        "--holdout-reward",
        "d",
        "--reward",
        "a",
        "b",
        "--holdout-reward",
        "e",
        "--reward",
        "c",
        "--quiet",
    ]
    options, config = read(["a red cube", *words])
    assert (config.reward, config.holdout_reward) == (("a", "b", "c"), ("d", "e"))
    assert options.quiet


def test_what_follows_two_dashes_is_left_alone() -> None:
    argv = ["--reward", "a", "--", "--reward", "b"]
    assert gather(argv, ["--reward"]) == argv


@pytest.mark.parametrize("name", sorted(settings.presets()))
def test_every_preset_is_valid(name: str) -> None:
    validate(from_dict(settings.read_preset(name)))


def test_the_presets_are_found_and_the_first_writes_out_the_defaults() -> None:
    assert {"toybox", "toybox-draft"} <= set(settings.presets())
    assert from_dict(settings.read_preset("toybox")) == Config()
    with pytest.raises(ConfigError, match="did you mean 'toybox-draft'"):
        settings.read_preset("toybox-dratf")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", b"steps = ", "not valid toml"),
        ("a.toml", b"steps = 3\nsteps = 4", "not valid toml"),
        ("a.json", b"{", "not valid json"),
        ("a.json", b"[" * 100_000, "not valid json"),
        ("a.json", b"[1]", "holds a list"),
        ("a.toml", b"\xff\xfe", "not text"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_file(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(ConfigError, match="cannot read"):
            read_file(path)


def test_a_deselected_preference_takes_its_presets_options_along() -> None:
    """What the words themselves say of a piece that isn't selected is still refused."""
    words = ["a red cube", "--preset", "rewardsds-paper", "--preference", "none"]
    _, config = read(words)
    assert config.preference == "none"
    assert config.weighted == Config().weighted
    assert config.steps == 500
    with pytest.raises(ConfigError, match="weighted"):
        read([*words, "--weighted.lookahead", "3"])


def test_precedence_is_defaults_preset_file_command_line(tmp_path: Path) -> None:
    """toybox-draft sets steps, splats.count and output.frames; the file changes two, the words one."""
    draft = from_dict(settings.read_preset("toybox-draft"))
    file = tmp_path / "mine.toml"
    file.write_text('prompt = "a blue cone"\nsteps = 77\n[splats]\ncount = 500\n')
    words = ["--preset", "toybox-draft", "--config", str(file), "--splats.count", "9"]
    _, config = read(words)
    assert config == dataclasses.replace(
        draft, prompt="a blue cone", steps=77, splats=dataclasses.replace(draft.splats, count=9)
    )
    assert draft.output.frames != Config().output.frames  # or the line above shows nothing


def test_a_command_line_can_return_to_the_default(tmp_path: Path) -> None:
    """Given explicitly, a value counts also when it is the default's: against a file that changed it."""
    file = tmp_path / "mine.json"
    file.write_text(
        '{"steps": 7, "guidance": {"clamp": false}, "reward": [], "prior_options": {"camera": false}}'
    )
    words = ["a red cube", "--config", str(file)]
    assert read(words)[1].steps == 7
    assert read(words)[1].reward == ()
    back = ["--steps", "400", "--guidance.clamp", "--prior.camera", "--reward", "auto"]
    assert read([*words, *back])[1] == dataclasses.replace(Config(), prompt="a red cube")


def test_every_setting_has_an_option() -> None:
    words = ["-a prompt", "--prior.model", "folder", "--prior.no-camera", "--views.elevation", "-15", "60"]
    _, config = read([*words[1:], "--views.size", "32", "64", "--densify.reset", "0.5", "--", words[0]])
    assert config.prompt == "-a prompt"
    assert config.prior_options == settings.PriorOptions(model="folder", camera=False)
    assert config.views.elevation == (-15.0, 60.0)
    assert config.views.size == (32, 64)
    assert config.densify.reset == (0.5,)


def test_a_saved_config_makes_the_same_run(tmp_path: Path) -> None:
    _, config = read(["a red cube", "--steps", "9", "--views.fov", "40", "50", "--negative", "a blue cone"])
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert read(["--config", str(tmp_path / "config.json")])[1] == config
