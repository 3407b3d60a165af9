"""Watching and steering a run: only what a user changes is changed, and that is written down."""

from __future__ import annotations

import json
import math
import threading
import time

import numpy as np
import pytest
import torch
from run_states import assert_same, tensors

from splatgen.config import (
    Config,
    ConfigError,
    DensifyOptions,
    OutputOptions,
    PSDOptions,
    SplatOptions,
    ViewOptions,
    WeightedOptions,
)
from splatgen.loop import object_run, object_snapshots
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.snapshot import Channel, Cloud, Command, Snapshot, ViewRequest
from splatgen.loop.step import load_models
from splatgen.rasterizer import render
from splatgen.runs import run_folder, steering
from splatgen.runs.metrics import read_metrics
from splatgen.runs.rng import rng
from splatgen.runs.steering import SettingChange
from splatgen.scene.cameras import orbit
from splatgen.scene.splats import SH_C0, Splats

STEPS = 8


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


class Viewer(Channel):
    """Takes every snapshot at once, and sends commands at given steps."""

    def __init__(self, plan=(), interval=0.0):
        super().__init__(interval=interval)
        self.plan, self.seen = dict(plan), []

    def put(self, snapshot):
        super().put(snapshot)
        self.seen.append(self.take())
        for command in self.plan.pop(snapshot.step, ()):
            self.send(command)


def start(folder, given=None, **options):
    return object_run.generate(given or config(), out=folder, command=["test"], **options)


# The mailbox


def snapshot(step):
    empty = np.zeros((0, 3), np.float32)
    cloud = Cloud(means=empty, covariances=empty[:, None], rgbs=empty, opacities=empty[:, 0])
    return Snapshot(step=step, steps=9, seconds=0.0, status="running", cloud=cloud, rows=())


def test_a_slot_holds_the_newest_and_gives_it_once():
    channel = Channel(interval=0.0)
    assert channel.wants()
    assert channel.take() is None
    channel.put(snapshot(1))
    assert not channel.wants()
    channel.put(snapshot(2))
    assert channel.take().step == 2
    assert channel.take() is None
    assert channel.wants()


def test_snapshots_keep_their_distance_in_time():
    channel = Channel(interval=60.0)
    channel.put(snapshot(1))
    channel.take()
    assert not channel.wants()


def test_a_reader_in_another_thread_sees_whole_snapshots_that_only_grow():
    channel, seen, done = Channel(interval=0.0), [], threading.Event()

    def read():
        while not done.is_set() or channel._slot[0] != channel._taken:
            found = channel.take()
            if found is not None:
                seen.append(found.step)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(2000):
        channel.put(snapshot(step))
    done.set()
    reader.join(timeout=240)
    assert seen[-1] == 1999
    assert seen == sorted(set(seen))


# Watching


@pytest.mark.parametrize("change", [{}, {"score": "vsd"}, {"preference": "psd"}])
def test_a_run_that_is_watched_is_the_same_to_the_bit(tmp_path, change):
    given = config(**change)
    viewer = Viewer({3: [Command(kind="look", look=LOOK)]})
    plain = start(tmp_path / "plain", given)
    watched = start(tmp_path / "watched", given, channel=viewer)
    assert_same(tensors(plain.run), tensors(watched.run))
    assert [s.step for s in viewer.seen] == [*range(1, STEPS + 1), STEPS, STEPS]
    assert viewer.seen[-1].status == "done"


def test_rows_arrive_whole_and_once_also_when_snapshots_are_rare(tmp_path):
    class Slow(Viewer):
        def wants(self):
            return self.calls_left() and super().wants()

        def calls_left(self):
            self.calls = getattr(self, "calls", 0) + 1
            return self.calls % 3 == 0

    viewer = Slow()
    result = start(tmp_path, channel=viewer)
    assert len(viewer.seen) < STEPS
    rows = [row for s in viewer.seen for row in s.rows]
    assert rows == read_metrics(result.run.metrics)


def test_a_viewer_that_never_takes_gets_one_snapshot_and_the_end(tmp_path):
    class Stalled(Channel):
        puts = 0

        def put(self, snapshot):
            self.puts += 1
            super().put(snapshot)

    channel = Stalled(interval=0.0)
    assert start(tmp_path, channel=channel).status == "done"
    assert channel.puts == 3  # its last step, and when its files are written


def test_trouble_with_a_snapshot_is_logged_and_stays_out_of_the_run(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no picture")

    plain = start(tmp_path / "plain")
    monkeypatch.setattr(object_snapshots, "cloud", fail)
    watched = start(tmp_path / "watched", channel=Viewer())
    assert_same(tensors(plain.run), tensors(watched.run))
    assert "a snapshot for the viewer failed" in caplog.text


LOOK = ViewRequest(
    c2w=orbit(torch.tensor([30.0]), torch.tensor([10.0]), size=8).c2w[0].numpy(),
    fov=50.0,
    width=40,
    height=30,
)


def test_a_look_shows_what_the_rasterizer_sees_from_there(tmp_path):
    viewer = Viewer(
        {STEPS - 2: [Command(kind="pause"), Command(kind="look", look=LOOK), Command(kind="continue")]}
    )
    given = config(densify=DensifyOptions(rounds=0))
    start(tmp_path, given, channel=viewer)
    paused = [s for s in viewer.seen if s.status == "paused"]
    assert [s.view is None for s in paused] == [True, False]
    assert paused[1].view.shape == (30, 40, 3)
    assert paused[1].step == STEPS - 2


def test_the_cloud_has_the_covariances_of_its_splats():
    splats = starting_splats(config())
    turned = Splats(
        means=splats.means,
        quats=torch.randn(60, 4, generator=rng(0, 0, "quats")),
        scales=torch.randn(60, 3, generator=rng(0, 0, "scales")) - 2.0,
        opacities=splats.opacities,
        sh=splats.sh,
    )
    cloud = object_snapshots.cloud(turned)
    q = turned.quats.double() / turned.quats.double().norm(dim=-1, keepdim=True)
    for n in range(60):
        w, v = q[n, 0], q[n, 1:]
        cross = torch.tensor([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]], dtype=torch.float64)
        rotation = torch.eye(3, dtype=torch.float64) + 2 * w * cross + 2 * cross @ cross
        expected = rotation @ torch.diag(turned.scales[n].double().exp().square()) @ rotation.T
        np.testing.assert_allclose(cloud.covariances[n], expected.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cloud.rgbs, (0.5 + SH_C0 * turned.sh[:, 0]).clamp(0, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(cloud.opacities, 0.25, atol=1e-6)


def test_a_picture_from_the_browser_is_the_renders_own_and_never_too_large():
    splats = starting_splats(config())
    cameras = orbit(torch.tensor([30.0]), torch.tensor([10.0]), size=(40, 30))
    expected = render(splats, cameras, torch.ones(3)).rgb[0].permute(1, 2, 0)
    found = object_snapshots.picture(splats, LOOK)
    np.testing.assert_allclose(found / 255.0, expected.clamp(0, 1).detach().numpy(), atol=0.5 / 255 + 1e-4)
    huge = object_snapshots.picture(splats, ViewRequest(c2w=LOOK.c2w, fov=50.0, width=4096, height=2048))
    assert huge.shape[0] * huge.shape[1] <= object_snapshots.MOST_PIXELS
    assert huge.shape[1] == pytest.approx(2 * huge.shape[0], abs=2)


# Candidates


def last_candidates(folder, given):
    viewer = Viewer()
    result = start(folder, given, channel=viewer)
    return viewer.seen[-3], read_metrics(result.run.metrics)[-1]


def test_candidates_of_a_pair_show_who_won(tmp_path):
    given = config(preference="psd", psd=PSDOptions(interval=100))
    last, row = last_candidates(tmp_path, given)
    roles = {c.role: c for c in last.candidates}
    assert set(roles) == {"win", "lose"}
    assert roles["win"].reward >= roles["lose"].reward
    assert roles["win"].weight == 1.0
    assert row["preference/gap"] > 0
    assert all(c.picture.shape == (16, 16, 3) for c in last.candidates)


def test_candidates_that_are_weighed_show_their_weights(tmp_path):
    weighted = WeightedOptions(candidates=4, top=1, bottom=1, stop=1.0)
    last, _ = last_candidates(tmp_path, config(preference="weighted", weighted=weighted))
    by_reward = sorted(last.candidates, key=lambda c: c.reward)
    assert [c.role for c in by_reward] == ["kept", "", "", "kept"]
    assert by_reward[-1].weight == pytest.approx(0.9)
    assert by_reward[0].weight == pytest.approx(-0.1)


def test_a_plain_score_shows_its_one_estimate(tmp_path):
    last, _ = last_candidates(tmp_path, config())
    (only,) = last.candidates
    assert (only.reward, only.weight, only.role) == (None, 1.0, "kept")


# Steering


def change(setting, value):
    return Command(kind="set", setting=setting, value=value)


PLAN = {2: [change("guidance.scale", 4.0)], 5: [change("lr.factor", 0.5), change("reward.toybox-mini", 2.0)]}


def test_changes_are_written_down_and_make_the_same_run_again(tmp_path):
    given = config(preference="weighted", weighted=WeightedOptions(stop=1.0, strategy="softmax"))
    plain, steered = start(tmp_path / "plain", given), start(tmp_path / "a", given, channel=Viewer(PLAN))
    assert steering.read(steered.run.folder / steering.FILE) == [
        SettingChange(step=2, setting="guidance.scale", value=4.0),
        SettingChange(step=5, setting="lr.factor", value=0.5),
        SettingChange(step=5, setting="reward.toybox-mini", value=2.0),
    ]
    again = start(tmp_path / "b", given, changes=steered.run.folder / steering.FILE)
    assert_same(tensors(steered.run), tensors(again.run))
    a, b = tensors(plain.run)["splats/means"], tensors(steered.run)["splats/means"]
    assert a.shape != b.shape or not torch.equal(a, b)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_steered_run_resumes_to_the_bit(tmp_path, stop):
    given = config()
    plan = {2: [change("guidance.scale", 4.0)], 5: [change("lr.factor", 0.5)]}
    whole = start(tmp_path / "whole", given, channel=Viewer(plan))
    calls = iter(range(99))
    halved = start(
        tmp_path / "halved",
        given,
        channel=Viewer({s: c for s, c in plan.items() if s < stop}),
        should_stop=lambda: next(calls) >= stop,
    )
    later = {s: c for s, c in plan.items() if s >= stop}
    object_run.resume(halved.run.folder, command=["test"], channel=Viewer(later))
    assert_same(tensors(whole.run), tensors(halved.run))


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("guidance.scale", -1.0, "guidance.scale is -1.0"),
        ("guidance.scale", math.nan, "guidance.scale is nan"),
        ("lr.factor", -0.5, "lr.means"),
        ("reward.clip", 1.0, "no setting 'reward.clip' can change in a run"),
        ("steps", 3.0, "no setting 'steps' can change in a run"),
    ],
)
def test_a_change_that_cannot_be_is_told_and_not_made(tmp_path, setting, value, words):
    viewer = Viewer({2: [change(setting, value)]})
    plain, steered = start(tmp_path / "plain"), start(tmp_path / "steered", channel=viewer)
    assert words in viewer.messages.get_nowait()
    assert not (steered.run.folder / steering.FILE).exists()
    assert_same(tensors(plain.run), tensors(steered.run))


def test_stop_keeps_what_there_is_and_a_checkpoint_can_be_taken(tmp_path):
    viewer = Viewer({2: [Command(kind="checkpoint")], 5: [Command(kind="stop")]})
    result = start(tmp_path, channel=viewer)
    assert (result.status, result.step) == ("stopped", 5)
    assert viewer.messages.get_nowait() == "checkpoint of step 2 written"
    assert {p.name for p in result.run.checkpoints.glob("step-*")} == {"step-000002", "step-000005"}
    assert viewer.seen[-1].status == "stopped"
    plain = start(tmp_path / "plain")
    object_run.resume(result.run.folder, command=["test"])
    assert_same(tensors(plain.run), tensors(result.run))


def is_paused(viewer: Viewer) -> bool:
    return any(snapshot.status == "paused" for snapshot in viewer.seen)


def go_on(viewer: Viewer) -> None:
    """Wait until a run is paused, a little longer, and let it go on."""
    while not is_paused(viewer):
        time.sleep(0.01)
    time.sleep(0.1)
    viewer.send(Command(kind="continue"))


def test_pause_waits_and_goes_on_and_ctrl_c_ends_a_pause(tmp_path):
    viewer = Viewer({3: [Command(kind="pause")]})
    paused = threading.Thread(target=go_on, args=(viewer,), daemon=True)
    paused.start()
    result = start(tmp_path / "a", channel=viewer)
    assert result.status == "done"
    assert [s.status for s in viewer.seen if s.step == 3] == ["running", "paused"]
    viewer = Viewer({3: [Command(kind="pause")]})
    result = start(tmp_path / "b", channel=viewer, should_stop=lambda: is_paused(viewer))
    assert result.status == "stopped"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"step": 1}',
        '{"step": "1", "setting": "a", "value": 1}',
        '{"step": -1, "setting": "a", "value": 1}',
        '{"step": 1, "setting": "a", "value": NaN}',
        "[" * 100_000,
    ],
)
def test_a_file_of_changes_that_is_none_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / steering.FILE
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"steering\.jsonl"):
        steering.read(path)


def test_settings_that_change_reach_models_and_config():
    given = config(preference="weighted")
    models = load_models(given, "cpu")
    now, after = object_snapshots.steered(given, given, models, "guidance.scale", 7.0)
    assert (now.guidance.scale, after.denoiser.options.scale) == (7.0, 7.0)
    now, after = object_snapshots.steered(given, now, after, "reward.toybox-mini", 3.0)
    assert (now.rewards(), after.ensemble.weights) == ({"toybox-mini": 3.0}, (3.0,))
    now, _ = object_snapshots.steered(given, now, after, "lr.factor", 0.5)
    now, _ = object_snapshots.steered(given, now, after, "lr.factor", 0.25)
    assert now.lr.means == pytest.approx(0.25 * given.lr.means)
    assert now.lr.final == given.lr.final
    back = object_snapshots.unsteered(given, after)
    assert (back.denoiser.options.scale, back.ensemble.weights) == (given.guidance.scale, (1.0,))
    with pytest.raises(ConfigError):
        object_snapshots.steered(given, given, models, "guidance.batch", 1.0)


def test_run_json_does_not_hold_what_only_a_viewer_wants(tmp_path):
    result = start(tmp_path, channel=Viewer(PLAN))
    assert json.loads(result.run.config_json.read_text())["guidance"]["scale"] == config().guidance.scale
    assert run_folder.read(result.run)["status"] == "done"


def test_the_command_line_makes_the_changes_of_another_run_again(cli, tmp_path):
    path = tmp_path / steering.FILE
    steering.write(path, [SettingChange(step=1, setting="guidance.scale", value=4.0)])
    words = [
        "--prior",
        "toybox-mini",
        "--reward",
        "toybox-mini",
        "--steps",
        "3",
        "--views.size",
        "16",
        "--output.frames",
        "0",
    ]
    words += ["--device", "cpu", "--steering", str(path)]
    done = cli("generate", "a red cube", *words, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    (run,) = (tmp_path / "o").iterdir()
    assert steering.read(run / steering.FILE) == steering.read(path)
    path.write_text("nothing\n")
    done = cli("generate", "a red cube", *words, "--out", tmp_path / "p")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert not (tmp_path / "p").exists()
