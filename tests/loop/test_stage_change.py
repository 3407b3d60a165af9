"""Runs of several stages: to the bit across a change, and nothing changes but what the settings say."""

from __future__ import annotations

import gc
import itertools
import json
import weakref

import pytest
import torch
from run_states import assert_same, stop_at, tensors

from splatgen import formats
from splatgen.config import from_dict, read_preset, to_dict
from splatgen.loop import object_run, read_ahead, resident_models
from splatgen.loop.jobs import Job
from splatgen.loop.resident_models import ResidentModels
from splatgen.loop.session import Session
from splatgen.loop.snapshot import Channel, Command
from splatgen.loop.step import load_models
from splatgen.runs import checkpoint, run_folder, steering
from splatgen.runs.metrics import read_metrics
from splatgen.runs.rng import rng
from splatgen.scene.splats import random_ball

SCORES = ("sds", "sdi", "vsd", "csd", "ism")
PREFERENCES = ("none", "weighted", "dpo", "psd", "ascent")


def config(*tables, **change):
    base = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": ["toybox-mini"],
        "steps": 6,
        "device": "cpu",
        "views": {"count": 2, "size": [16]},
        "splats": {"count": 60},
        "densify": {"start": 0.1, "stop": 0.8, "rounds": 2, "grow": 0.3, "max_splats": 120},
        "output": {"frames": 0, "size": 16, "checkpoint_seconds": 0, "reward_every": 3},
    }
    return from_dict({**base, **change, "stages": tables})


HALVES = (
    {"share": 0.5, "name": "shape"},
    {"share": 0.5, "name": "detail", "views": {"count": 1, "size": [24]}},
)


def start(folder, given, **options):
    return object_run.generate(given, out=folder, command=["test"], **options)


def go_on(result, **options):
    return object_run.resume(result.run.folder, command=["test"], **options)


def test_a_single_stage_is_the_run_without_one(tmp_path):
    plain = start(tmp_path / "plain", config())
    staged = start(tmp_path / "staged", config({"share": 1.0}))
    assert_same(tensors(plain.run), tensors(staged.run))
    assert not any("stage" in row for row in read_metrics(plain.run.metrics))
    assert "stages" not in run_folder.read(plain.run)


@pytest.mark.parametrize(("score", "preference"), [("sds", "none"), ("vsd", "psd")])
def test_a_change_of_stage_changes_nothing_but_the_settings(tmp_path, score, preference):
    """With settings that do not depend on the fraction, two equal stages are one run, to the bit."""
    constant = {
        "score": score,
        "preference": preference,
        "densify": {"rounds": 0},
        "lr": {"decay_from": 1.0},
        "guidance": {"t_max": [0.6, 0.6]},
        **(
            {"psd": {"interval": 1, "anneal": 0.0, "t_limit": 1.0}, "vsd": {"rank": 1}}
            if score == "vsd"
            else {}
        ),
    }
    plain = start(tmp_path / "plain", config(**constant))
    staged = start(tmp_path / "staged", config({"share": 0.5}, {"share": 0.5}, **constant))
    assert_same(tensors(plain.run), tensors(staged.run))


def test_schedules_are_fractions_of_their_stage(tmp_path):
    falling = {"guidance": {"times": "annealed", "t_max": [0.9, 0.5], "t_min": 0.1}}
    result = start(tmp_path, config(*HALVES, **falling))
    rows = read_metrics(result.run.metrics)
    expected = [0.9, 0.9 - 0.8 / 3, 0.9 - 1.6 / 3] * 2
    assert [row["t_max"] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert [row["stage"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert [row["guidance/model_calls"] for row in rows] == [4, 4, 4, 2, 2, 2]


def test_run_json_knows_the_stages_and_all_the_models(tmp_path):
    given = config(HALVES[0], {"share": 0.5, "name": "detail", "reward": ["toybox"]})
    result = start(tmp_path, given, should_stop=stop_at(2))
    assert run_folder.read(result.run)["stage"] == 1
    told = run_folder.read(go_on(result).run)
    assert told["stage"] == 2
    assert [stage["first_step"] for stage in told["stages"]] == [0, 3]
    assert {"prior/toybox-mini", "reward/toybox-mini", "reward/toybox"} <= set(told["models"])
    assert set(told["rewards"]) == {"reward/toybox"}


CHANGES = {
    "views": {"views": {"count": 1, "size": [24]}},
    "method": {
        "score": "vsd",
        "vsd": {"rank": 1},
        "preference": "psd",
        "psd": {"interval": 1, "t_limit": 1.0},
    },
    "prior": {"prior": "toybox", "reward": ["toybox"]},
    "growth": {"densify": {"start": 0.0, "stop": 1.0, "rounds": 2}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_stops_before_at_or_after_a_change_ends_the_same(tmp_path, change):
    given = config({"share": 0.5}, {"share": 0.5, **CHANGES[change]})
    whole = start(tmp_path / "whole", given)
    for step in (2, 3, 4):
        part = go_on(start(tmp_path / str(step), given, should_stop=stop_at(step)))
        assert_same(tensors(part.run), tensors(whole.run))
        rows = [[row["stage"], row["loss"]] for row in read_metrics(part.run.metrics)]
        assert rows == [[row["stage"], row["loss"]] for row in read_metrics(whole.run.metrics)]


def test_a_next_stage_that_cannot_be_loaded_costs_no_step(tmp_path, monkeypatch):
    given = config({"share": 0.5}, {"share": 0.5, "score": "csd"})
    whole = start(tmp_path / "whole", given)
    load, loads = resident_models.load_models, iter(range(9))

    def broken(*args):
        if next(loads) == 1:
            raise MemoryError("no room for the second stage")
        return load(*args)

    monkeypatch.setattr(resident_models, "load_models", broken)
    with pytest.raises(MemoryError):
        start(tmp_path / "broken", given)
    monkeypatch.undo()
    (folder,) = (tmp_path / "broken").iterdir()
    run = run_folder.open_run(folder)
    assert run_folder.read(run)["status"] == "oom"
    assert checkpoint.load_latest(run.checkpoints).step == 3
    again = object_run.resume(folder, command=["test"])
    assert_same(tensors(again.run), tensors(whole.run))


def test_of_two_priors_the_first_has_gone_before_the_second_comes(tmp_path, monkeypatch):
    given = config({"share": 0.5}, {"share": 0.5, "prior": "toybox", "reward": ["toybox"]})
    load, seen = resident_models.load_prior, []

    def watched(*args):
        gc.collect()
        alive = [ref() is not None for ref, _ in seen]
        prior = load(*args)
        seen.append((weakref.ref(prior.net), alive))
        return prior

    monkeypatch.setattr(resident_models, "load_prior", watched)
    start(tmp_path, given)
    assert [alive for _, alive in seen] == [[], [False]]


def test_what_stays_is_not_loaded_again(tmp_path, monkeypatch):
    loads = []
    load = resident_models.load_prior
    monkeypatch.setattr(resident_models, "load_prior", lambda *args: (loads.append(args[0]), load(*args))[1])
    start(tmp_path, config(*HALVES))
    assert loads == ["toybox-mini"]


@pytest.mark.parametrize("stops", [3, 4])
def test_a_run_that_is_lost_goes_back_into_the_stage_before(tmp_path, stops):
    """`restore` after a change, to a checkpoint of before it."""
    given = config({"share": 0.5}, {"share": 0.5, "score": "vsd", "vsd": {"rank": 1}})
    result = start(tmp_path, given, should_stop=stop_at(2))
    subject = object_run.ObjectRun(
        whole=given,
        models=load_models(given, "cpu"),
        scene=object_run.load_scene(given, result.run.checkpoints, "cpu")[0],
        run=result.run,
        load=ResidentModels().models,
    )
    save, subject.save = subject.save, lambda: None  # the change writes none
    while subject.scene.step < stops + 1:
        subject.prepare()
        subject.advance(subject.models, scored=False)
        subject.scene.step += 1
    assert (subject.stage.number, subject.config.score) == (2, "vsd")
    subject.restore()
    assert (subject.stage.number, subject.config.score, subject.scene.step) == (1, "sds", 2)
    assert run_folder.read(result.run)["stage"] == 1
    subject.save = save


# Steering


class Hand(Channel):
    """Sends commands at given steps."""

    def __init__(self, plan):
        super().__init__(interval=0.0)
        self.plan, self.seen = dict(plan), []

    def put(self, snapshot):
        super().put(snapshot)
        self.seen.append(self.take())
        for command in self.plan.pop(snapshot.step, ()):
            self.send(command)


def waiting(messages):
    while not messages.empty():
        yield messages.get_nowait()


def scaled(value):
    return [Command(kind="set", setting="guidance.scale", value=value)]


def test_a_live_change_holds_to_the_end_of_its_stage_and_after_a_resume(tmp_path):
    given = config(*HALVES)
    hand = Hand({1: scaled(4.0), 3: scaled(3.0)})  # the second one at the first step of the second stage
    whole = start(tmp_path / "whole", given, channel=hand)
    changes = steering.read(whole.run.folder / steering.FILE)
    assert [(c.step, c.value) for c in changes] == [(1, 4.0), (3, 3.0)]
    told = [s.stage for s in hand.seen]
    assert told[:4] == ["stage 1 (shape) of 2"] * 3 + ["stage 2 (detail) of 2"]
    assert set(told[4:]) == {"stage 2 (detail) of 2"}
    assert sum("another stage began" in message for message in waiting(hand.messages)) == 1
    again = start(tmp_path / "again", given, changes=whole.run.folder / steering.FILE)
    assert_same(tensors(again.run), tensors(whole.run))
    for step in (2, 3, 5):
        part = start(
            tmp_path / str(step), given, changes=whole.run.folder / steering.FILE, should_stop=stop_at(step)
        )
        assert_same(tensors(go_on(part).run), tensors(whole.run))
    plain = start(tmp_path / "plain", given)
    only = start(tmp_path / "only", given, channel=Hand({1: scaled(4.0)}))
    assert not torch.equal(tensors(plain.run)["splats/means"], tensors(only.run)["splats/means"])


# Cells


@pytest.mark.parametrize("preference", PREFERENCES)
@pytest.mark.parametrize("score", SCORES)
def test_every_method_can_be_a_stage_and_resumes_to_the_bit(tmp_path, score, preference, networks):
    """After a stage of plain SDS, stopped at the change and once more in the middle of it."""
    own = {"vsd": {"rank": 1}} if score == "vsd" else {}
    own |= {"psd": {"interval": 1, "t_limit": 1.0}} if preference == "psd" else {}
    own |= {"ascent": {"start": 0.0}} if preference == "ascent" else {}
    table = {"share": 0.5, "score": score, "preference": preference, **own}
    given = config({"share": 0.5}, table, steps=4, views={"count": 1, "size": [16]}, splats={"count": 30})
    whole = start(tmp_path / "whole", given, load=networks)
    part = start(tmp_path / "part", given, load=networks, should_stop=stop_at(2))
    part = go_on(go_on(part, load=networks, should_stop=stop_at(1)), load=networks)
    assert part.status == "done"
    assert_same(tensors(part.run), tensors(whole.run))


@pytest.fixture(scope="module")
def networks():
    """Loaded once for all cells; scores and preferences are made anew."""
    return ResidentModels().models


# Presets


@pytest.mark.parametrize("name", ["mvdream-then-sd", "refine"])
def test_a_preset_of_stages_runs_through_on_the_miniature(tmp_path, name):
    table = read_preset(name)
    small = {"prior": "toybox-mini", "negative": "", "refine": {}, "views": {"count": 2, "size": [16]}}
    for stage in table["stages"]:
        own = {"views": 2, "steps": 2, "time": stage["refine"]["time"]} if "refine" in stage else {}
        stage.update({key: small[key] if key != "refine" else own for key in small})
    start_from = tmp_path / "cloud.ply"
    formats.save(random_ball(rng(1, 0, "t"), count=40, radius=0.5, scale=0.1, opacity=0.5), start_from)
    changes = {
        "prior": "toybox-mini",
        "budget": "none",
        "steps": 5,
        "init": str(start_from),
        "splats": {"count": 40},
    }
    base = {
        key: value
        for key, value in to_dict(config()).items()
        if key in ("prompt", "device", "output", "reward")
    }
    result = start(tmp_path / "runs", from_dict({**table, **base, **changes}))
    assert result.status == "done"
    assert {row["stage"] for row in read_metrics(result.run.metrics)} == {1, 2}


# In the studio


def test_the_studio_makes_and_continues_a_run_of_stages(tmp_path):
    given = config(*HALVES)
    whole = start(tmp_path / "whole", given)
    session = Session(ResidentModels(), check=lambda c: c, describe=str)
    try:
        session.add(Job(config=given, out=tmp_path / "out", command=["test"]))
        status = session.wait(240)
        assert status.state == "done", status.message
        assert_same(tensors(run_folder.open_run(status.folder)), tensors(whole.run))
        part = start(tmp_path / "part", given, should_stop=stop_at(4))
        session.add(Job(config=given, out=tmp_path, command=["test"], folder=part.run.folder))
        status = session.wait(240)
        assert status.state == "done", status.message
        assert_same(tensors(part.run), tensors(whole.run))
    finally:
        session.close(240)


# Reading ahead


def test_the_files_of_the_next_stage_are_read_once_and_late(tmp_path, monkeypatch):
    from splatgen.config.stages import stages

    class Scene:
        begin, step = 0, 0

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 1000)
    given = config({"share": 0.5}, {"share": 0.5, "prior": "sd15"}, steps=100, reward=[])
    course, read = stages(given), []
    monkeypatch.setattr(read_ahead.weights, "inventory", lambda *_: type("Here", (), {"files": (file,)}))
    monkeypatch.setattr(read_ahead, "read_through", read.append)
    ahead, scene = read_ahead.ReadAhead(), Scene()
    for scene.step in range(50):
        ahead.look(course, scene)
        assert (ahead.thread is not None) == (scene.step >= 30)
    ahead.thread.join(240)
    assert read == [[file]]
    monkeypatch.setattr(read_ahead, "available", lambda: 1500)  # no room for it
    read_ahead.ReadAhead().look(course, scene)
    assert read == [[file]]


def test_reading_ahead_reads_all_and_a_missing_file_is_no_trouble(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"x" * 100)
    read_ahead.read_through([file, tmp_path / "missing", file])
    assert read_ahead.coming(config(), config(prior="sd15", weights=str(tmp_path))) == []
    assert read_ahead.available() is None or read_ahead.available() > 0


def test_a_checkpoint_of_other_stages_is_refused(tmp_path):
    result = start(tmp_path, config(*HALVES), should_stop=stop_at(4))
    saved = json.loads(result.run.config_json.read_text())
    saved["stages"] = [{"share": 0.2}, {"share": 0.8}]
    result.run.config_json.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="no stage begins at step 3, but at 0, 1"):
        go_on(result)


def test_the_cells_are_all_of_them():
    from splatgen.commands.common.studio_settings import names_of

    assert set(itertools.product(SCORES, PREFERENCES)) <= set(
        itertools.product(names_of("score"), names_of("preference"))
    )
