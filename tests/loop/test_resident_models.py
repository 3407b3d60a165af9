"""Models that stay loaded give the same runs as models that are loaded anew; one run at a time; past runs.

Everything runs on the miniature models of 16 pixels, but the last test of the residence.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
from PIL import Image
from run_states import assert_same, tensors

from splatgen import formats
from splatgen.commands.common import past_runs
from splatgen.commands.common.errors import describe
from splatgen.commands.common.past_runs import History, finished, read_past_run, thumbnail
from splatgen.config import (
    Config,
    ConfigError,
    DensifyOptions,
    OutputOptions,
    PriorOptions,
    SplatOptions,
    ViewOptions,
    to_dict,
)
from splatgen.config.validation import validate
from splatgen.loop import lifecycle, object_run, resident_models
from splatgen.loop.jobs import Job
from splatgen.loop.resident_models import ResidentModels
from splatgen.loop.session import Session
from splatgen.loop.snapshot import Command
from splatgen.loop.step import load_models
from splatgen.runs import run_folder
from splatgen.runs.run_folder import Run

STEPS = 4
NEVER_MET = 10**6  # steps


def config(**change):
    values = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": ("toybox-mini",),
        "steps": STEPS,
        "device": "cpu",
        "views": ViewOptions(count=2, size=(16,)),
        "splats": SplatOptions(count=60),
        "densify": DensifyOptions(start=0.1, stop=0.8, rounds=2, grow=0.3, max_splats=100),
        "output": OutputOptions(frames=0, size=16, checkpoint_seconds=0),
    }
    return Config(**{**values, **change})


def start(folder, given, **options):
    return object_run.generate(given, out=folder, command=["test"], **options)


@pytest.fixture
def loads(monkeypatch):
    """Names in the order in which they were loaded."""
    found = []

    def counted(load):
        def wrapper(name, *options):
            found.append(name)
            return load(name, *options)

        return wrapper

    monkeypatch.setattr(resident_models, "load_prior", counted(resident_models.load_prior))
    monkeypatch.setattr(resident_models, "load_reward", counted(resident_models.load_reward))
    return found


# What stays


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue sphere"},
        {"seed": 7},
        {"score": "csd"},
        {"preference": "psd"},
        {"steps": 3},
        {"negative": "a blue sphere"},
        {"reward": ("toybox-mini=0.5",)},
    ],
)
def test_what_models_do_not_depend_on_loads_nothing(loads, change):
    kept = ResidentModels()
    kept.models(config())
    assert loads == ["toybox-mini", "toybox-mini"]
    kept.models(config(**change))
    assert len(loads) == 2


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"holdout_reward": ("toybox-judge",)}, ["toybox-judge"]),
        ({"reward": ("toybox",)}, ["toybox"]),
        ({"reward": ()}, []),
        ({"prior_options": PriorOptions(camera=False)}, ["toybox-mini"]),
        ({"budget": "8gb"}, ["toybox-mini", "toybox-mini"]),
        ({"weights": "somewhere"}, ["toybox-mini", "toybox-mini"]),
    ],
)
def test_what_changed_is_loaded_and_the_rest_stays(loads, change, more):
    kept = ResidentModels()
    kept.models(config())
    models = kept.models(config(**change))
    assert loads[2:] == more
    assert models.prior.camera == config(**change).prior_options.camera


def test_the_old_prior_goes_before_the_new_one_comes(monkeypatch):
    kept = ResidentModels()
    old = weakref.ref(kept.models(config()).prior)
    load = resident_models.load_prior

    def loaded(name, *options):
        gc.disable()  # what is gone by now was let go on purpose
        assert old() is None
        return load(name, *options)

    monkeypatch.setattr(resident_models, "load_prior", loaded)
    try:
        assert kept.models(config(prior_options=PriorOptions(camera=False))).prior is not None
    finally:
        gc.enable()


def test_a_prior_that_cannot_be_loaded_leaves_room_and_the_next_one_comes(loads, tmp_path):
    kept = ResidentModels()
    kept.models(config())
    with pytest.raises(ValueError, match="no prior 'nothing'"):
        kept.models(config(prior="nothing"))
    with pytest.raises(OSError, match="nowhere"):
        kept.models(config(prior_options=PriorOptions(model=str(tmp_path / "nowhere"))))
    loads.clear()
    kept.models(config())
    assert loads == ["toybox-mini"]


def test_cleared_it_holds_nothing():
    kept = ResidentModels()
    models = kept.models(config())
    refs = [weakref.ref(x) for x in (models.prior, *models.rewards)]
    del models
    kept.clear()
    assert [ref() for ref in refs] == [None, None]


# The same to the bit

CHAIN = (
    {"score": "vsd"},
    {},
    {"prompt": "a blue sphere", "preference": "psd", "score": "vsd"},
    {"prior_options": PriorOptions(camera=False)},
    {"score": "vsd", "seed": 3},
)


def test_runs_one_after_the_other_are_what_each_would_be_alone(tmp_path):
    """A copy that vsd trained, a negative that psd learned, another prior between: no trace."""
    kept = ResidentModels()
    for number, change in enumerate(CHAIN):
        given = config(**change)
        alone = start(tmp_path / f"alone-{number}", given, models=load_models(given, "cpu"))
        chained = start(tmp_path / f"chained-{number}", given, models=kept.models(given))
        assert_same(tensors(alone.run), tensors(chained.run))
        assert run_folder.read(alone.run)["rewards"] == run_folder.read(chained.run)["rewards"]


FRESH = """
import json, sys
from pathlib import Path
from splatgen.loop import object_run
from splatgen.config import from_dict
*_, last = map(from_dict, map(json.loads, sys.argv[2:]))
print(object_run.generate(last, out=Path(sys.argv[1]), command=["test"]).run.folder)
"""
RESIDENT = """
import json, sys
from pathlib import Path
from splatgen.config import from_dict
from splatgen.loop.resident_models import ResidentModels
from splatgen.loop.jobs import Job
from splatgen.loop.session import Session
session = Session(ResidentModels(), check=lambda config: config, describe=str)
for words in sys.argv[2:]:
    session.add(Job(config=from_dict(json.loads(words)), out=Path(sys.argv[1]), command=["test"]))
    status = session.wait(240)
    assert status.state == "done", status
session.close(240)
print(status.folder)
"""


def test_a_fresh_process_gives_the_same_bits_as_the_second_run_of_a_session(tmp_path):
    """In processes of their own, both: another test may have left this one in another state."""
    changes = ({"seed": 1}, {"preference": "psd"})
    jobs = [json.dumps(to_dict(config(score="vsd", **change))) for change in changes]
    done = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / str(n), *jobs], stdout=subprocess.PIPE, text=True
        )
        for n, script in enumerate((FRESH, RESIDENT))
    ]
    folders = [process.communicate(timeout=240)[0].strip() for process in done]
    assert [process.returncode for process in done] == [0, 0]
    fresh, second = (Run(folder=Path(folder)) for folder in folders)
    assert_same(tensors(fresh), tensors(second))


def test_a_latent_prior_whose_text_encoder_a_budget_freed_reads_the_next_prompt(tmp_path):
    tiny_diffusion.write_folder(tmp_path / "sd15", "sd15")
    given = config(prior="sd15", reward=(), weights=str(tmp_path), budget="8gb", steps=2)
    other = dataclasses.replace(given, prompt="a blue sphere")
    kept = ResidentModels()
    first = kept.models(other)
    assert first.prior._text._network is None
    again = kept.models(given)
    assert again.prior is first.prior
    assert again.prior._text._network is None
    alone = start(tmp_path / "alone", given, models=load_models(given, "cpu"))
    chained = start(tmp_path / "chained", given, models=again)
    assert_same(tensors(alone.run), tensors(chained.run))


# One run at a time


def words_of(error):
    found = describe(error)
    return None if found is None else found[1]


def started(check=validate):
    return Session(ResidentModels(), check=check, describe=words_of)


@pytest.fixture
def session():
    found = started()
    yield found
    assert not found.close(60).busy


def job(folder, **change):
    return Job(config=config(**change), out=folder, command=["test"])


def until(condition):
    """Wait for something that another thread does."""
    ends = time.monotonic() + 240
    while not (value := condition()):
        assert time.monotonic() < ends
        time.sleep(0.002)
    return value


def status(folder):
    return run_folder.read(Run(folder=folder))["status"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_session_makes_a_run_and_then_another_without_loading(session, tmp_path, loads):
    assert session.status.state == "idle"
    session.add(job(tmp_path))
    first = session.wait(240)
    assert (first.state, first.number, status(first.folder)) == ("done", 1, "done")
    loads.clear()
    session.add(job(tmp_path, prompt="a blue sphere", seed=3))
    second = session.wait(240)
    assert (second.state, second.number) == ("done", 2)
    assert run_folder.read(Run(folder=second.folder))["prompt"] == "a blue sphere"
    assert loads == []
    assert second.channel is not first.channel
    last = second.channel.take()
    assert (last.step, last.status) == (STEPS, "done")


def test_models_that_were_loaded_ahead_are_those_of_the_first_run(session, tmp_path, loads):
    session.prepare(config())
    ready = session.wait(240)
    assert (ready.state, ready.number, ready.job) == ("idle", 0, None)
    assert len(loads) == 2
    session.add(job(tmp_path))
    session.prepare(config(prior="toybox"))  # not now
    assert (session.wait(240).state, len(loads)) == ("done", 2)


def test_a_run_that_is_asked_for_while_models_are_loaded_ahead_is_made(session, tmp_path, loads):
    session.prepare(config())
    session.add(job(tmp_path))
    assert (session.wait(240).state, session.status.number) == ("done", 1)
    assert len(loads) == 2


def test_what_cannot_be_loaded_ahead_is_told_before_the_first_run(session, tmp_path):
    session.prepare(config(prior="sd15", reward=(), weights=str(tmp_path)))
    failed = session.wait(240)
    assert (failed.state, failed.number) == ("failed", 0)
    assert "splatgen fetch sd15" in failed.message
    session.add(job(tmp_path))
    assert session.wait(240).state == "done"


def test_states_follow_one_another(session, tmp_path, monkeypatch):
    seen, inside = [session.status.state], session._set_lane

    def noted(n, **fields):
        inside(n, **fields)
        seen.append(session.status.state)

    monkeypatch.setattr(session, "_set_lane", noted)
    session.add(job(tmp_path))
    until(lambda: seen[-1] == "done")
    assert [state for state, _ in itertools.groupby(seen)] == ["idle", "running", "writing", "done"]


def test_a_run_can_pause_go_on_and_stop(session, tmp_path):
    session.add(job(tmp_path, steps=NEVER_MET))
    channel = until(lambda: session.status.state == "running") and session.status.channel
    session.send(Command(kind="pause"))
    assert session.status.state == "paused"
    until(lambda: (found := channel.take()) is not None and found.status == "paused")
    session.send(Command(kind="continue"))
    assert session.status.state == "running"
    until(lambda: (found := channel.take()) is not None and found.status == "running")
    session.stop()
    ended = session.wait(240)
    assert (ended.state, status(ended.folder)) == ("stopped", "stopped")
    assert list((ended.folder / "checkpoints").glob("step-*"))


def test_a_run_that_was_stopped_goes_on_to_the_same_end(session, tmp_path):
    given = config(score="vsd", steps=12)
    session.add(Job(config=given, out=tmp_path / "a", command=["test"]))
    until(lambda: session.status.channel.take() is not None)
    session.stop()
    halted = session.wait(240)
    assert status(halted.folder) == "stopped"
    session.add(Job(config=given, out=tmp_path / "a", command=["test"], folder=halted.folder))
    ended = session.wait(240)
    assert (ended.state, ended.folder) == ("done", halted.folder)
    whole = start(tmp_path / "b", given)
    assert_same(tensors(Run(folder=ended.folder)), tensors(whole.run))


def test_jobs_wait_in_a_queue_whose_order_can_change(session, tmp_path):
    session.add(job(tmp_path, steps=NEVER_MET))
    until(lambda: session.status.state == "running")
    one, two, three, four = (session.add(job(tmp_path, seed=seed)) for seed in (1, 2, 3, 4))
    session.move(four, -2)
    session.move(one, 9)
    session.cancel(two)
    session.cancel(99)
    session.move(99, 1)
    assert [entry.number for entry in session.waiting] == [four, three, one]
    session.stop()
    session.wait(240)
    told = [(entry.number, entry.status.state) for entry in session.ended]
    assert told == [(one, "done"), (three, "done"), (four, "done"), (1, "stopped")]
    assert sorted(run_folder.read(Run(folder=path))["seed"] for path in tmp_path.iterdir()) == [0, 1, 3, 4]


def variants(folder, *changes, **shared):
    named = tuple((f"variant {n}", config(**shared, **change)) for n, change in enumerate(changes))
    return Job(config=config(), out=folder, command=["test"], variants=named)


@pytest.mark.parametrize("scores", [("sds", "csd", "vsd"), ("vsd", "vsd", "sds")])
def test_variants_in_turns_come_to_what_each_would_alone(session, tmp_path, loads, scores):
    changes = [{"score": score, "seed": n} for n, score in enumerate(scores)]
    session.add(variants(tmp_path / "together", *changes))
    ended = session.wait(240)
    assert [lane.state for lane in ended.lanes] == ["done"] * 3
    assert len(loads) == 2  # shared: a prior and a reward
    for lane in ended.lanes:
        alone = start(tmp_path / "alone", lane.config)
        assert_same(tensors(Run(folder=lane.folder)), tensors(alone.run))


def test_variants_go_on_side_by_side_and_each_can_be_stopped(session, tmp_path):
    session.add(variants(tmp_path, *({"seed": n} for n in range(3)), steps=NEVER_MET))
    lanes = until(
        lambda: [lane.state for lane in session.status.lanes] == ["running"] * 3 and session.status.lanes
    )
    for lane in lanes:
        until(lambda: (found := lane.channel.take()) is not None and found.step > 2)  # noqa: B023
    session.send(Command(kind="stop"), 1)
    until(lambda: session.status.lanes[1].state == "stopped")
    assert session.status.state == "running"
    session.send(Command(kind="pause"))
    until(lambda: (found := lanes[2].channel.take()) is not None and found.status == "paused")
    session.send(Command(kind="stop"))
    ended = session.wait(240)
    assert (ended.state, [lane.state for lane in ended.lanes]) == ("stopped", ["stopped"] * 3)
    assert [status(lane.folder) for lane in ended.lanes] == ["stopped"] * 3


def test_a_variant_that_fails_leaves_the_others_alone(session, tmp_path, monkeypatch):
    make = resident_models.load_models

    def fail(given, *rest):
        if given.seed == 1:
            raise ValueError("no such luck")
        return make(given, *rest)

    monkeypatch.setattr(resident_models, "load_models", fail)
    session.add(variants(tmp_path, *({"seed": n} for n in range(3))))
    ended = session.wait(240)
    assert [lane.state for lane in ended.lanes] == ["done", "failed", "done"]
    assert (ended.state, ended.message) == ("done", "no such luck")


def test_stopped_while_it_loads_a_run_leaves_no_folder(session, tmp_path, monkeypatch):
    loading, go = threading.Event(), threading.Event()
    load = resident_models.load_prior

    def slow(*options):
        loading.set()
        assert go.wait(240)
        return load(*options)

    monkeypatch.setattr(resident_models, "load_prior", slow)
    session.add(job(tmp_path))
    assert loading.wait(240)
    assert session.status.state == "loading"
    session.stop()
    go.set()
    assert session.wait(240).state == "stopped"
    assert names(tmp_path) == []


def test_what_cannot_be_run_is_refused_before_the_run_at_work_is_stopped(session, tmp_path):
    session.add(job(tmp_path, steps=NEVER_MET))
    until(lambda: session.status.state == "running")
    with pytest.raises(ConfigError, match="steps is 0"):
        session.add(job(tmp_path, steps=0))
    assert session.status.state == "running"
    assert session.status.number == 1


def test_a_check_may_change_the_run(tmp_path):
    session = started(check=lambda given: dataclasses.replace(given, prompt="a blue sphere"))
    session.add(job(tmp_path))
    assert run_folder.read(Run(folder=session.wait(240).folder))["prompt"] == "a blue sphere"
    session.close(240)


class Broken(RuntimeError):
    """A bug of some kind."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried"), "out of memory: take --budget 8gb"),
        (ValueError("the prompt has 90 tokens: shorten it"), "the prompt has 90 tokens: shorten it"),
        (OSError(28, "No space left on device", "splats.ply"), "No space left on device: splats.ply"),
        (Broken("nobody expects it"), "this is a bug: Broken: nobody expects it"),
    ],
)
def test_errors_become_words_and_the_next_run_is_made(session, tmp_path, monkeypatch, error, words):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "run_loop", fail)
        session.add(job(tmp_path))
        failed = session.wait(240)
    assert failed.state == "failed"
    assert failed.message.startswith(words)
    (name,) = names(tmp_path)
    assert failed.message.endswith(f"the run is in {tmp_path / name}")
    session.add(job(tmp_path))
    assert session.wait(240).state == "done"


def test_weights_that_are_missing_are_told_and_leave_no_folder(session, tmp_path):
    session.add(job(tmp_path / "out", prior="sd15", reward=(), weights=str(tmp_path)))
    failed = session.wait(240)
    assert failed.state == "failed"
    assert "splatgen fetch sd15" in failed.message
    assert not (tmp_path / "out").exists()


def test_the_tensors_of_a_run_that_failed_are_let_go(session, tmp_path, monkeypatch):
    held = []

    def fail(subject, *_):
        held.append(weakref.ref(subject))
        held.append(weakref.ref(subject.models.prior))
        subject.advice = subject  # a cycle, as networks and errors are full of
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "run_loop", fail)
        gc.disable()  # what goes, goes on purpose
        try:
            session.add(job(tmp_path))
            session.wait(240)
            until(lambda: held[0]() is None)
        finally:
            gc.enable()
    assert held[1]() is not None


def test_closing_keeps_a_checkpoint_and_ends_the_thread(tmp_path):
    session = started()
    session.add(job(tmp_path, steps=NEVER_MET))
    until(lambda: session.status.state == "running")
    ended = session.close(240)
    assert (ended.state, status(ended.folder)) == ("stopped", "stopped")
    assert not session._thread.is_alive()
    with pytest.raises(RuntimeError, match="ended"):
        session.add(job(tmp_path))


def test_commands_without_a_run_go_nowhere(session):
    session.send(Command(kind="pause"))
    assert session.status.state == "idle"
    assert session.status.channel.commands.empty()


def test_shap_e_gets_the_room_of_the_models(session, tmp_path, monkeypatch):
    session.add(job(tmp_path))
    session.wait(240)
    seen = []

    def generate(given, *, models, **_):
        seen.append((models, dict(session._resident._priors)))
        raise ValueError("seen")

    monkeypatch.setattr(object_run, "generate", generate)
    session.add(job(tmp_path, init="shap-e"))
    assert session.wait(240).message == "seen"
    assert seen == [(None, {})]


# Past runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a finished run and one that was stopped."""
    out = tmp_path_factory.mktemp("made")
    start(out, config(), name="20250101-000000-first")
    calls = iter(range(99))
    given = config(prompt="a blue sphere", seed=4)
    start(out, given, name="20250101-000000-second", should_stop=lambda: next(calls) >= 2)
    return out


def test_past_runs_are_listed_newest_first(made):
    second, first = History(made).read()
    assert (first.config, first.status, first.step) == (config(), "done", STEPS)
    assert list(first.rewards) == ["reward/toybox-mini"]
    assert (second.config.prompt, second.config.seed, second.status, second.step) == (
        "a blue sphere",
        4,
        "stopped",
        2,
    )
    assert thumbnail(second) is not None  # of its last step
    assert len(finished(second)) > 0
    killed = dataclasses.replace(second, preview=None, splats=None, status="running")
    assert thumbnail(killed) is None
    with pytest.raises(ValueError, match="second has no finished object: its status is running"):
        finished(killed)


def test_a_thumbnail_is_the_front_and_the_object_is_the_one_that_was_written(made):
    first = History(made).read()[1]
    picture = np.asarray(Image.open(io.BytesIO(thumbnail(first, side=16))))
    with Image.open(first.preview) as sheet:
        np.testing.assert_array_equal(picture, np.asarray(sheet)[:16, :16])
    splats = formats.load(first.splats)
    np.testing.assert_array_equal(finished(first).means, splats.means.numpy())


BREAKS = {
    "no run.json": lambda run: run.run_json.unlink(),
    "no config.json": lambda run: run.config_json.unlink(),
    "half a run.json": lambda run: run.run_json.write_text('{"status": "done", '),
    "a list": lambda run: run.run_json.write_text("[]"),
    "deep": lambda run: run.run_json.write_text("[" * 100_000),
    "no status": lambda run: run.run_json.write_text('{"started": "now"}'),
    "another status": lambda run: run.run_json.write_text('{"status": "fine", "started": "now"}'),
    "a number for a date": lambda run: run.run_json.write_text('{"status": "done", "started": 3}'),
    "no text": lambda run: run.run_json.write_bytes(b"\xff\xfe\x00"),
    "another config": lambda run: run.config_json.write_text('{"image": {"count": 1}}'),
    "a prompt that is none": lambda run: run.config_json.write_text('{"prompt": 3}'),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_folders_are_left_out(made, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    BREAKS[name](Run(folder=out / "20250101-000000-first"))
    (out / "notes.txt").write_text("no run")
    (found,) = History(out).read()
    assert found.name == "20250101-000000-second"


def test_a_broken_picture_is_no_picture_and_odd_rewards_are_left_out(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    run = Run(folder=out / "20250101-000000-first")
    run.preview.write_bytes(run.preview.read_bytes()[:60])
    data = json.loads(run.run_json.read_text())
    data |= {"rewards": {"reward/a": "high", "reward/b": 0.5}, "steps": "many"}
    run.run_json.write_text(json.dumps(data))
    found = History(out).read()[1]
    assert thumbnail(found) is None
    assert (found.rewards, found.step) == ({"reward/b": 0.5}, 0)


def test_only_what_changed_is_read_again(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    history = History(out)
    history.read()
    read = []
    monkeypatch.setattr(
        past_runs, "read_past_run", lambda folder: read.append(folder.name) or read_past_run(folder)
    )
    history.read()
    assert read == []
    run_folder.update(Run(folder=out / "20250101-000000-second"), status="failed")
    assert history.read()[0].status == "failed"
    assert read == ["20250101-000000-second"]
    shutil.rmtree(out / "20250101-000000-first")
    assert len(history.read()) == 1
    assert History(tmp_path / "nowhere").read() == []
