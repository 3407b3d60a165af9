"""Fields of the studio's page as settings, files that are brought to it, and what is put away."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from clouds import cloud

from splatgen import formats
from splatgen.commands import studio
from splatgen.commands.common import known_limits, truth, usual
from splatgen.commands.common.past_runs import History, Trash, star
from splatgen.commands.common.studio_backend import when
from splatgen.commands.common.studio_files import OpenedFiles, differences, flat, table
from splatgen.commands.common.studio_settings import AS_STARTED, Settings, vocabulary
from splatgen.config import Config, ConfigError, GuidanceOptions, ImageConfig, to_dict
from splatgen.runs import run_folder

MINI = Config(prompt="a red cube", prior="toybox-mini", reward=("toybox-mini",), device="cpu")


@pytest.fixture
def files(tmp_path):
    return OpenedFiles(tmp_path)


@pytest.fixture
def settings(files):
    return Settings(lambda _: MINI, files)


def form(settings, **change):
    return dataclasses.replace(settings.form(AS_STARTED, {}), **change)


def test_fields_become_settings(settings):
    given = form(settings, negative="a blue cube", scale=2.5, rewards="toybox-mini=0.5", held_out="toybox")
    ((name, config),) = settings.variants(given, {})
    assert (name, config.negative, config.guidance.scale) == ("", "a blue cube", 2.5)
    assert (config.reward, config.holdout_reward) == (("toybox-mini=0.5",), ("toybox",))
    assert settings.variants(form(settings), {}) == [("", MINI)]


def test_variants_are_methods_times_seeds_by_name(settings):
    found = settings.variants(form(settings, methods="psd, dreamdpo", seeds=2, seed=5), {})
    assert [name for name, _ in found] == [
        "psd, seed 5",
        "psd, seed 6",
        "dreamdpo, seed 5",
        "dreamdpo, seed 6",
    ]
    assert [(c.preference, c.seed) for _, c in found] == [("psd", 5), ("psd", 6), ("dpo", 5), ("dpo", 6)]
    assert [name for name, _ in settings.variants(form(settings, seeds=2), {})] == ["seed 0", "seed 1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": "psdd"}, "no method 'psdd'"),
        ({"methods": "psd psd"}, "is there twice"),
        ({"methods": "psd dreamdpo", "seeds": 9}, "18 variants are too many to see: choose 9"),
        ({"opened": "gone.ply"}, "is not open any more"),
        ({"more": "x"}, "more settings"),
    ],
)
def test_fields_that_cannot_be_are_told(settings, change, words):
    with pytest.raises(ValueError, match=words):
        settings.variants(form(settings, **change), {})


def test_a_judge_watches_where_the_world_has_one(files):
    usual = Settings(lambda _: Config(prompt="a red cube"), files)
    given = usual.form(AS_STARTED, {})
    assert given.held_out == "toybox-judge"
    for prior, judges in (("toybox", ("toybox-judge",)), ("shelf", ("shelf-judge",)), ("sd15", ())):
        ((_, config),) = usual.variants(dataclasses.replace(given, prior=prior), {})
        assert config.holdout_reward == judges


def test_words_come_with_their_pictures():
    known = vocabulary("shelf")
    assert known.picture.startswith("data:image/webp;base64,")
    assert {name for names in known.lines.values() for name in names} <= set(known.places)
    assert vocabulary("toybox").picture == ""
    assert vocabulary("sd15") is None


def test_an_object_that_is_brought_is_gone_on_from_or_edited(settings, files, tmp_path):
    formats.save(cloud(5), tmp_path / "in.ply", clean=False)
    content = (tmp_path / "in.ply").read_bytes()
    opened = files.open("../My Object.ply", content, settings, {})
    assert opened.name.startswith("my-object-")
    assert (files.path(opened.name).parent, len(opened.cloud)) == (tmp_path / ".opened", 5)
    ((_, config),) = settings.variants(form(settings, opened=opened.name), {})
    assert config.init == str(files.path(opened.name))
    ((_, edit),) = settings.variants(form(settings, opened=opened.name, source="a blue cube"), {})
    assert (edit.source, edit.init, edit.densify.rounds) == ("a blue cube", "sphere", 0)
    assert len(files.splats(opened.name)) == 5


def test_settings_that_are_brought_fill_the_fields(settings, files):
    given = dataclasses.replace(MINI, prompt="a green cone", guidance=GuidanceOptions(t_min=0.1))
    opened = files.open("config.json", json.dumps(to_dict(given)).encode(), settings, {})
    assert (opened.form.prompt, opened.cloud) == ("a green cone", None)
    assert settings.variants(opened.form, {}) == [("", given)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.jpg", b"", "cannot be opened: give .ply"),
        ("a.compressed.ply", b"", "packed layout"),
        ("broken.ply", b"ply\nnonsense", "broken"),
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[1]", "holds a list"),
        ("config.json", b'{"stepz": 1}', "unknown setting stepz"),
        ("config.json", json.dumps(to_dict(ImageConfig(prompt="a"))).encode(), "is of a picture"),
        ("config.json", json.dumps(to_dict(Config(prompt="a", source="b"))).encode(), "is of an edit"),
    ],
)
def test_files_that_cannot_be_used_are_told_and_leave_nothing(
    settings, files, tmp_path, name, content, words
):
    with pytest.raises(ValueError, match=words):
        files.open(name, content, settings, {})
    assert not list(tmp_path.glob(".opened/*"))


def test_settings_in_toml_are_settings():
    assert table("a.TOML", b"steps = 3") == {"steps": 3}
    with pytest.raises(ConfigError, match="has 2 MB"):
        table("a.json", b" " * 2_000_000)


def run(out, name, config, **fields):
    made = run_folder.create(
        out, config.prompt, command="test", config=to_dict(config), name=name, kind=fields.pop("kind", None)
    )
    run_folder.update(made, status="done", **fields)
    return made


def test_runs_are_marked_put_away_and_brought_back(tmp_path):
    run(tmp_path, "one", MINI)
    run(tmp_path, "two", ImageConfig(prompt="a picture"), kind="image")
    history, trash = History(tmp_path), Trash(tmp_path)
    assert {past.name: past.flat for past in history.read()} == {"one": False, "two": True}
    for marked in (True, False):
        star(next(past for past in history.read() if past.name == "one"))
        assert [past.starred for past in history.read() if past.name == "one"] == [marked]
    for past in history.read():
        trash.put(past)
    assert history.read() == []
    assert {trash.undo(), trash.undo()} == {"one", "two"}
    assert trash.undo() == ""
    assert {past.name for past in history.read()} == {"one", "two"}
    trash.put(history.read()[0])
    trash.empty()
    assert len(history.read()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [history.read()[0].name]


def test_what_differs_between_two_runs(tmp_path):
    other = dataclasses.replace(MINI, seed=3, guidance=GuidanceOptions(scale=2.0))
    run(tmp_path, "one", MINI, rewards={"reward/toybox-mini": 0.5})
    run(tmp_path, "two", other, rewards={"reward/toybox-mini": 0.75})
    one, two = sorted(History(tmp_path).read(), key=lambda past: past.name)
    assert differences(one, two) == [
        ("seed", "0", "3"),
        ("guidance.scale", f"{MINI.guidance.scale:g}", "2"),
        ("reward/toybox-mini", "0.5", "0.75"),
    ]
    assert differences(one, one) == []
    assert flat({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}


def test_an_object_of_the_toybox_is_held_against_the_exact_one(tmp_path):
    made = run(tmp_path, "one", MINI)
    formats.save(cloud(50), made.splats_ply)
    other = run(tmp_path, "two", dataclasses.replace(MINI, prompt="a corgi"))
    formats.save(cloud(50), other.splats_ply)
    one, two = sorted(History(tmp_path).read(), key=lambda past: past.name)
    assert re.fullmatch(
        r"against the truth: silhouette 0\.\d\d of 1 \(IoU\), -?\d+\.\d dB", truth.measured(one)
    )
    assert truth.caption(two) is None
    with pytest.raises(ValueError, match="nobody knows the exact picture of 'a corgi'"):
        truth.measured(two)


def test_times_are_told_as_they_are():
    assert when("2026-01-02T03:04:05.000+00:00")[:4] in ("2026", "2025")
    assert when("yesterday") == "yesterday"


def test_the_prior_is_the_one_that_generate_takes(monkeypatch):
    monkeypatch.setattr(usual, "can_run", lambda *_: False)
    assert studio.read([]).settings.prior == "shelf"
    assert studio.read(["a red cube"]).settings.prior == "toybox"
    assert studio.read(["a taxi", "--prior", "toybox"]).settings.prior == "toybox"
    monkeypatch.setattr(usual, "can_run", lambda *_: True)
    assert studio.read([]).settings.prior == "sd15"


def test_what_is_known_against_settings_is_said():
    assert known_limits.advice(dataclasses.replace(MINI, guidance=GuidanceOptions(scale=2.0))) == ""
    high = dataclasses.replace(MINI, guidance=GuidanceOptions(scale=7.5), preference="dpo", score="vsd")
    told = known_limits.advice(high)
    assert all(word in told for word in ("7.5 is too high for toybox-mini", "silhouette", "VSD"))
    assert "details soft" in known_limits.advice(Config(prior="shelf"))
    assert "0.6 dB nearer" in known_limits.advice(Config(prior="shelf", score="sdi"))
    assert known_limits.advice(Config(prior="sd15", score="vsd")) == ""
