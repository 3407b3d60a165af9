"""The viewer beside a run: what pages see, what they steer, and that nothing of it reaches the run."""

from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pages import (
    BLUE,
    LEFT,
    PATIENCE,
    RED,
    RIGHT,
    Page,
    Stalled,
    balls,
    candidate,
    settle,
    snapshot,
    until,
    viewer,
)

from splatgen import formats
from splatgen.config import Config, OutputOptions, SplatOptions, ViewOptions
from splatgen.loop import object_run, object_snapshots
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.snapshot import Channel, Command, ViewRequest
from splatgen.runs import checkpoint
from splatgen.runs.metrics import read_metrics


def commands(channel):
    found = []
    while not channel.commands.empty():
        found.append(channel.commands.get())
    return found


def is_splats(message):
    return message["type"] == "GaussianSplatsMessage"


def centres(message):
    buffer = (message.get("props") or message["updates"])["buffer"]
    return np.frombuffer(buffer, np.float32).reshape(-1, 8)[:, :3]


# What pages see


def test_a_page_gets_the_splats_as_they_are_and_then_each_change():
    channel = Channel(interval=0.0)
    cloud = balls((LEFT, RED), (RIGHT, BLUE))
    channel.put(snapshot(1, cloud))
    with viewer(channel) as it, Page(it) as page:
        np.testing.assert_array_equal(centres(page.wait(is_splats)), cloud.means)
        fewer = balls((LEFT, RED), count=50)
        channel.put(snapshot(2, fewer))
        update = page.wait(lambda m: "buffer" in (m.get("updates") or {}))
        np.testing.assert_array_equal(centres(update), fewer.means)


def test_a_page_that_comes_late_sees_the_last_state_although_nothing_moves():
    channel = Channel(interval=0.0)
    channel.put(snapshot(1))
    with viewer(channel) as it:
        with Page(it) as first:
            first.wait(is_splats)
            cloud = balls((LEFT, RED), count=70)
            channel.put(snapshot(7, cloud, status="paused"))
            first.wait(lambda m: "step 7 of 100" in str(m.get("updates")))
        with Page(it) as late:
            update = late.wait(lambda m: "buffer" in (m.get("updates") or {}))
            np.testing.assert_array_equal(centres(update), cloud.means)
            assert late.element("Continue")


def test_status_tells_step_pace_time_left_and_memory():
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it) as page:
        for step in (10, 20):
            channel.put(snapshot(step, memory_mb=812.4, gpu_memory_mb=2048.0))
            until(lambda: channel._taken == channel._slot[0])
        page.wait(lambda m: "step 20 of 100" in str(m.get("updates")))
        text = page.texts()
        assert "600 splats · 10.0 steps/s · 0:00:08 left" in text
        assert "memory 812 MB · GPU 2,048 MB" in text
        for step, seconds, status in ((20, 50.0, "paused"), (30, 100.0, "running"), (35, 101.0, "running")):
            channel.put(snapshot(step, status=status, seconds=seconds))
            until(lambda: channel._taken == channel._slot[0])
        page.wait(lambda m: "step 35 of 100" in str(m.get("updates")))
        assert "5.0 steps/s · 0:00:13 left" in page.texts()  # without the pause


def test_words_of_the_run_reach_the_page_as_text():
    channel = Channel()
    with viewer(channel) as it, Page(it) as page:
        for number in range(6):
            channel.messages.put(f"<b>number {number}</b>")
        page.wait(lambda m: "number 5" in str(m.get("updates")))
        last = page.texts().splitlines()[-1]
        assert "&lt;b&gt;number 2" in last
        assert "<b>" not in last
        assert "number 1" not in last


def test_curves_of_every_number_appear_and_grow():
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it) as page:
        rows = [{"step": n, "loss": 1.0, "time/step_ms": 5.0, "preference/gap": 0.1} for n in range(3)]
        rows[2]["reward/a"] = 0.5
        channel.put(snapshot(3, rows=tuple(rows), status="paused"))
        charts = {}

        def titles():
            page.read(0.02)
            charts.update({m["props"]["title"]: m for m in page.seen if m["type"] == "GuiUplotMessage"})
            return {"loss", "milliseconds a step", "reward gap of the pair"} <= set(charts)

        until(titles)
        settle(it, page)
        titles()
        reward = "reward (sought, where it guides)"
        assert reward not in charts  # of one point there is no curve
        assert charts["loss"]["props"]["scales"]["x"]["time"] is False
        channel.put(snapshot(4, rows=({"step": 3, "loss": 0.5, "reward/a": 0.7},), status="paused"))
        until(lambda: titles() and reward in charts)
        uuid = charts["loss"]["uuid"]
        grown = page.wait(lambda m: m.get("uuid") == uuid and "data" in (m.get("updates") or {}))
        steps, loss = (np.frombuffer(part, np.float64) for part in grown["updates"]["data"])
        assert (steps.tolist(), loss.tolist()) == ([0, 1, 2, 3], [1, 1, 1, 0.5])


def test_candidates_show_how_they_were_judged():
    channel = Channel(interval=0.0)
    row = {"step": 0, "preference/gap": 0.125, "preference/strength": 0.75}
    both = (candidate("win", 0.9), candidate("lose", 0.2))
    channel.put(snapshot(1, candidates=both, rows=(row,)))
    with viewer(channel) as it, Page(it) as page:
        page.wait(lambda m: "data:image/png" in str(m.get("updates")))
        text = page.texts()
        assert "win<br>reward 0.900<br>weight 1" in text
        assert "lose<br>reward 0.200<br>weight 1" in text
        assert "win − lose = 0.700 (all views: 0.125) · strength 0.75" in text


def test_training_cameras_are_sent_where_they_are_and_shown_on_request():
    channel = Channel(interval=0.0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    c2w[:, 2, 3] = 2.5
    channel.put(snapshot(1, cameras=c2w))
    with viewer(channel) as it, Page(it) as page:
        page.wait(lambda m: m["type"] == "CameraFrustumMessage" and m["name"] == "/cameras/2")
        moved = page.wait(lambda m: m["type"] == "SetPositionMessage" and m["name"] == "/cameras/2")
        assert list(moved["position"]) == [0, 0, 2.5]
        page.fill("Cameras", True)
        page.wait(lambda m: m["type"] == "SetSceneNodeVisibilityMessage" and m["visible"])
        channel.put(snapshot(2, cameras=c2w[:1]))
        page.wait(lambda m: m["type"] == "RemoveSceneNodeMessage" and m["name"] == "/cameras/1")


def test_a_panel_that_fails_is_told_once_and_the_others_go_on(caplog):
    channel = Channel(interval=0.0)
    broken = balls((LEFT, RED))
    object.__setattr__(broken, "covariances", broken.covariances[:5])
    with viewer(channel) as it, Page(it) as page:
        for step in (1, 2, 3):
            channel.put(snapshot(step, broken))
            page.wait(lambda m, step=step: f"step {step} of 100" in str(m.get("updates")))
        channel.put(snapshot(4))
        page.wait(is_splats)
    assert caplog.text.count("a panel of the viewer failed") == 1


# What pages steer


def test_buttons_and_settings_become_commands():
    channel = Channel(interval=0.0)
    channel.put(snapshot(1))
    known = {"guidance.scale": 7.5, "lr.factor": 1.0, "reward.toybox": 1.0}
    with viewer(channel, settings=known) as it, Page(it) as page:
        page.press("Pause")
        until(lambda: not channel.commands.empty())
        assert commands(channel) == [Command(kind="pause")]
        channel.put(snapshot(1, status="paused"))
        page.wait(lambda m: (m.get("updates") or {}).get("label") == "Continue")
        page.press("Pause")
        page.press("Take a checkpoint")
        page.press("Stop and keep")
        until(lambda: channel.commands.qsize() == 3)
        kinds = {c.kind for c in commands(channel)}
        assert kinds == {"continue", "checkpoint", "stop"}
        with Page(it) as other:  # to which they come from the server
            for label, value in (("guidance.scale", 4.0), ("reward toybox", 0.25)):
                page.fill(label, value)
                other.wait(lambda m, value=value: (m.get("updates") or {}).get("value") == value)
        assert commands(channel) == []  # not before they are applied
        page.press("Apply")
        until(lambda: channel.commands.qsize() == 2)
        assert commands(channel) == [
            Command(kind="set", setting="guidance.scale", value=4.0),
            Command(kind="set", setting="reward.toybox", value=0.25),
        ]
        page.press("Apply")
        page.wait(lambda m: "nothing was changed" in str(m.get("updates")))
        assert commands(channel) == []


def test_a_run_that_is_over_has_no_buttons_to_press():
    channel = Channel(interval=0.0)
    channel.put(snapshot(100, status="done"))
    with viewer(channel) as it, Page(it) as page:
        page.wait(lambda m: (m.get("updates") or {}).get("disabled") is True)


def test_the_picture_of_our_rasterizer_is_asked_for_from_the_camera_that_moved():
    channel = Channel(interval=0.0)
    channel.put(snapshot(1))
    with viewer(channel) as it, Page(it) as page:
        page.look((0.0, 0.0, 5.0))
        (client,) = until(it.server.get_clients).values()
        until(lambda: client.camera.position[2] == 5.0)
        settle(it, page)
        assert commands(channel) == []  # nobody wants it
        page.fill("Rasterized", True)
        until(lambda: not channel.commands.empty())
        (asked,) = commands(channel)
        expected = np.eye(4)
        expected[2, 3] = 5.0
        np.testing.assert_allclose(asked.look.c2w, expected, atol=1e-6)
        assert (asked.look.width, asked.look.height) == (120, 90)
        channel.put(snapshot(2, view=np.zeros((9, 12, 3), np.uint8)))
        page.wait(lambda m: b"JFIF" in ((m.get("updates") or {}).get("_data") or b""))
        page.fill("Rasterized", False)
        until(lambda: not channel.commands.empty())
        assert commands(channel) == [Command(kind="look")]


def test_every_page_that_asked_gets_the_file_and_no_other():
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it) as first, Page(it) as second, Page(it) as other:
        for page in (first, second):
            page.press("Save .ply")
        until(lambda: channel.commands.qsize() == 2)
        content = bytes(range(256)) * 5000  # of more than one part
        channel.files.put(SimpleNamespace(name="a.ply", content=content))
        for page in (first, second):
            page.wait(lambda m: m["type"] == "FileTransferPart" and m["part_index"] == 1)
            parts = [m["content"] for m in page.seen if m["type"] == "FileTransferPart"]
            assert b"".join(parts) == content
        so_far = len(first.seen)
        channel.files.put(SimpleNamespace(name="b.ply", content=b"b"))  # nobody waits for a second
        settle(it, first, other)
        assert not any("FileTransfer" in m["type"] for m in (*other.seen, *first.seen[so_far:]))


# What a run notices: nothing


def config(**change):
    values = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": ("toybox-mini",),
        "preference": "psd",
        "steps": 25,
        "device": "cpu",
        "views": ViewOptions(count=2, size=(16,)),
        "splats": SplatOptions(count=60),
        "output": OutputOptions(frames=0, size=16, checkpoint_seconds=0),
    }
    return Config(**{**values, **change})


def run(folder, channel=None, given=None):
    result = object_run.generate(given or config(), out=folder, command=["test"], channel=channel)
    parts = checkpoint.load_latest(result.run.checkpoints).parts
    return result, {f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"))[1]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_ten_pages_one_of_which_never_reads_change_nothing(tmp_path, plain):
    channel = Channel(interval=0.0)
    with viewer(channel) as it, contextlib.ExitStack() as stack:
        pages = [stack.enter_context(Page(it)) for _ in range(10)]
        stack.enter_context(Stalled(it))
        result, watched = run(tmp_path, channel)
        for page in pages:
            page.wait(lambda m: "step 25 of 25" in str(m.get("updates")))
            assert page.wait(is_splats)
    assert result.status == "done"
    assert_same(plain, watched)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pump_that_is_killed_does_not_matter(tmp_path, plain, monkeypatch):
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it):
        monkeypatch.setattr(it.page, "update", killed)
        _, watched = run(tmp_path, channel)
        until(lambda: not it.pump.thread.is_alive())
        monkeypatch.undo()
    assert_same(plain, watched)


def killed(_):
    raise SystemExit


def test_a_page_that_always_fails_does_not_matter(tmp_path, plain, monkeypatch, caplog):
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it):
        for panel in it.page.panels:
            monkeypatch.setattr(panel, "update", lambda _: 1 / 0)
        monkeypatch.setattr(it.page, "tick", lambda: 1 / 0)
        _, watched = run(tmp_path, channel)
        until(lambda: "ZeroDivisionError" in caplog.text)
    assert_same(plain, watched)


@pytest.mark.filterwarnings("ignore:Queued a:UserWarning")
def test_a_server_that_dies_does_not_matter(tmp_path, plain):
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it):
        it.server.stop()
        _, watched = run(tmp_path, channel)
    assert_same(plain, watched)


def test_without_a_page_a_run_makes_one_snapshot_and_its_numbers_are_kept(tmp_path):
    made = []

    class Counting(Channel):
        def put(self, snapshot):
            made.append(snapshot.step)
            super().put(snapshot)

    channel = Counting(interval=0.0)
    with viewer(channel) as it:
        result, _ = run(tmp_path, channel)
        assert made == [1, 25, 25]  # the last one says how it ended
        with Page(it) as page:
            page.wait(is_splats)
            until(lambda: "loss" in it.page.history.columns)
            until(lambda: len(it.page.history.steps) == 25)
    assert len(read_metrics(result.run.metrics)) == 25


def test_a_file_that_cannot_be_made_and_a_picture_that_fails_do_not_end_a_run(tmp_path, plain, monkeypatch):
    def fail(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr(object_snapshots, "ply", fail)
    monkeypatch.setattr(object_run, "ply", fail)
    monkeypatch.setattr(object_snapshots, "picture", fail)
    channel = Channel(interval=0.0)
    look = ViewRequest(c2w=np.eye(4, dtype=np.float32), fov=50.0, width=8, height=8)
    for command in (Command(kind="pause"), Command(kind="look", look=look), Command(kind="save")):
        channel.send(command)
    channel.send(Command(kind="continue"))
    _, watched = run(tmp_path, channel)
    assert_same(plain, watched)
    assert channel.messages.get_nowait() == "no file: no picture"


def test_the_file_of_a_run_is_what_its_splats_are(tmp_path):
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it) as page:
        page.press("Save .ply")
        until(lambda: not channel.commands.empty())
        result, parts = run(tmp_path / "runs", channel, config(steps=1))
        part = page.wait(lambda m: m["type"] == "FileTransferPart")
        start = next(m for m in page.seen if m["type"] == "FileTransferStartDownload")
    assert (start["filename"], start["save_immediately"]) == ("a-red-cube-step-000000.ply", True)
    (tmp_path / "saved.ply").write_bytes(part["content"])
    first = starting_splats(config())
    assert torch.equal(formats.load(tmp_path / "saved.ply").means, first.means)
    assert result.step == 1
    assert not torch.equal(parts["splats/means"], first.means)


def test_a_button_pauses_a_real_run_and_another_stops_it(tmp_path):
    channel = Channel(interval=0.0)
    with viewer(channel) as it, Page(it) as page:
        page.element("Pause")
        results = []
        given = config(steps=100_000)
        thread = threading.Thread(target=lambda: results.append(run(tmp_path, channel, given)[0]))
        thread.start()
        page.press("Pause")
        page.wait(lambda m: "· paused" in str(m.get("updates")))
        before = page.texts().rpartition("<b>step ")[2].split()[0]
        page.press("Stop and keep")
        thread.join(timeout=PATIENCE)
        (result,) = results
    assert result.status == "stopped"
    assert f"{result.step:,}" == before


# How much it holds


def test_a_page_that_never_reads_costs_what_one_update_costs():
    channel = Channel(interval=0.0)
    clouds = [balls((LEFT, RED), (RIGHT, BLUE), count=10_000, size=s) for s in (0.2, 0.3)]  # 640 kB each
    with viewer(channel) as it, Page(it) as page, Stalled(it):
        buffer = it.server._websock_server.get_message_buffer()
        sizes, waiting = [], []

        def ten_more_change_nothing():
            for step in range(10 * len(sizes) + 1, 10 * len(sizes) + 11):
                channel.put(snapshot(step, clouds[step % 2]))
                it.pump._turn(last=True)
            page.read(0.01)
            connections = it.server._websock_server._live_connections.values()
            waiting.append(max(c.transport.get_write_buffer_size() for c in list(connections)))
            sizes.append(len(buffer.message_from_id))
            return len(waiting) > 3 and len(set(waiting[-3:])) == 1 and waiting[-1] > 0

        until(ten_more_change_nothing)  # once the sockets on the way hold no more
    assert max(sizes) == sizes[1]  # once every kind of message has been there
    assert waiting[-1] == max(waiting) < 700_000  # the one message it is in the middle of


def test_while_nobody_can_read_more_no_snapshot_is_taken():
    channel = Channel(interval=0.0)
    cloud = balls((LEFT, RED), (RIGHT, BLUE), count=20_000)  # 1.3 MB
    with viewer(channel) as it, Stalled(it):
        taken = 0
        last = time.monotonic()
        while time.monotonic() < last + 1.0:
            if channel.wants():
                taken += 1
                cloud = balls((LEFT, RED), (RIGHT, BLUE), count=20_000, size=0.1 + taken / 100)
                channel.put(snapshot(taken, cloud))
                last = time.monotonic()
            time.sleep(0.01)
        assert 1 <= taken <= 8  # what the sockets on the way hold, and then no more
