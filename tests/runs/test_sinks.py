"""Rows of metrics beside metrics.jsonl: the same keys and numbers, and nothing of it ends a run."""

from __future__ import annotations

import importlib.util

import pytest

from splatgen.runs import run_folder, sinks

has_tensorboard = importlib.util.find_spec("tensorboard") is not None
has_wandb = importlib.util.find_spec("wandb") is not None


@pytest.fixture
def run(tmp_path):
    return run_folder.create(tmp_path, "a red cube", command=["test"], config={})


ROWS = [{"step": n, "loss": 1.0 / (n + 1), "reward/toybox": 0.1 * n, "skipped": 0.0} for n in range(6)]


def read_back(run):
    """What TensorBoard itself reads: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.skipif(
    not has_tensorboard, reason="tensorboard is not installed: pip install 'splatgen[tensorboard]'"
)
def test_tensorboard_has_the_keys_of_the_rows(run):
    with sinks.opened("tensorboard", run, 0) as send:
        for row in [*ROWS, {"step": 6, "loss": float("nan"), "note": "words", "reward/toybox": None}]:
            send(row)
    found = read_back(run)
    assert found.keys() == {"loss", "reward/toybox", "skipped"}
    assert found["loss"] == [(row["step"], pytest.approx(row["loss"])) for row in ROWS]


@pytest.mark.skipif(
    not has_tensorboard, reason="tensorboard is not installed: pip install 'splatgen[tensorboard]'"
)
def test_what_a_resumed_run_writes_again_is_there_once(run):
    for first, last in ((0, 6), (3, 6)):  # killed after step 5, its checkpoint is of step 3
        with sinks.opened("tensorboard", run, first) as send:
            for row in ROWS[first:last]:
                send(row)
    assert [step for step, _ in read_back(run)["loss"]] == [0, 1, 2, 3, 4, 5]


@pytest.mark.skipif(not has_wandb, reason="wandb is not installed: pip install 'splatgen[wandb]'")
def test_weights_and_biases_takes_rows_offline(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with sinks.opened("wandb", run, 0) as send:
        send(ROWS[1])
    assert list(run.folder.glob("wandb/offline-run-*"))


class Broken:
    def __init__(self, *_):
        self.calls = 0

    def write(self, step, numbers):
        self.calls += 1
        raise OSError("no network")

    def close(self):
        raise OSError("no network")


def test_one_that_breaks_says_so_once_and_the_rest_goes_on(run, monkeypatch, caplog):
    made = []
    monkeypatch.setitem(sinks.SINKS, "wandb", lambda *given: made.append(Broken()) or made[0])
    with sinks.opened("wandb", run, 0) as send:
        for row in ROWS:
            send(row)
    assert made[0].calls == 1
    assert [record.message for record in caplog.records] == [
        "--log wandb failed, and is left alone from now on: no network",
        "--log wandb failed at its end: no network",
    ]


def test_one_that_cannot_start_is_refused(run, monkeypatch):
    def refuse(*_):
        raise RuntimeError("log in first")

    monkeypatch.setitem(sinks.SINKS, "wandb", refuse)
    with (
        pytest.raises(ValueError, match="--log wandb cannot start: log in first"),
        sinks.opened("wandb", run, 0),
    ):
        pytest.fail("it started")


def test_a_package_that_is_not_there_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert sinks.missing("wandb") == "--log wandb needs the package wandb: pip install 'splatgen[wandb]'"
    assert sinks.missing("none") == ""
