"""Run folders that were cut, changed or taken away, steps that were added, and what bounds the splats."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import re
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli
from faults import fingerprint, only, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st

from splatgen.cli import main
from splatgen.commands import resume
from splatgen.commands.common import checks, errors
from splatgen.config import Config, DensifyOptions, SplatOptions
from splatgen.config.validation import validate
from splatgen.loop import object_run
from splatgen.loop.initial_splats import starting_splats
from splatgen.rasterizer import render
from splatgen.runs import atomic, checkpoint, metrics, run_folder, steering
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable
from splatgen.scene.parameters import Scene, load_scene, new_scene, save_scene, update
from splatgen.sweeps import ledger
from splatgen.sweeps.plan import line_up
from splatgen.sweeps.worker import Worker
from splatgen.worlds.toybox import weights_folder

SOURCE = Path(run_folder.__file__).parents[1]
TESTS = Path(__file__).parent
needs_weights = pytest.mark.skipif(
    any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward")),
    reason="the miniature toybox weights are not there",
)
MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--device", "cpu", "--quiet"]
TINY = [*MINI, "--views.count", "1", "--views.size", "16", "--splats.count", "40", "--output.size", "16"]
RUN = ["generate", "a red cube", *TINY, "--steps", "4", "--output.frames", "0"]
RUN += ["--output.checkpoint-seconds", "1e-9"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; look, don't touch."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*RUN, "--out", str(out)]) == 0
    return only(out)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, interrupted before its third step; look, don't touch."""
    out = tmp_path_factory.mktemp("halfway")
    with pytest.MonkeyPatch.context() as patch:
        before(patch, "advance", interrupt, call=3)
        assert main([*RUN, "--out", str(out)]) == errors.INTERRUPTED
    return only(out)


@pytest.fixture
def run(halfway: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(halfway, tmp_path / halfway.name))


def interrupt() -> None:
    raise KeyboardInterrupt


def before(patch: pytest.MonkeyPatch, name: str, event: Callable[[], object], call: int = 1) -> None:
    """Something happens once, before the n-th call of a function of the loop."""
    inside, count = getattr(object_run, name), iter(range(1, 10**6))

    def eventful(*args: Any, **options: Any) -> Any:
        if next(count) == call:
            event()
        return inside(*args, **options)

    patch.setattr(object_run, name, eventful)


def checkpoints(run: Path) -> dict[str, bytes]:
    """Everything in them, by name."""
    return {str(path.relative_to(run)): path.read_bytes() for path in (run / "checkpoints").rglob("*.*")}


def said(work: Callable[[], object], *codes: int) -> str | None:
    """None when it works, else the line that a user would see; anything else that is raised is a bug."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - any that is not expected fails the test
        expected = errors.describe(error)
        assert expected is not None, f"{type(error).__name__}: {error}"
        code, text = expected
        assert code in (codes or (2, 3, 6)), text
        assert errors.one_line(text)
        return text
    return None


def cut(path: Path, most: int | None = None) -> Iterator[int]:
    """Cut a file behind every byte, or behind so many at random."""
    data = path.read_bytes()
    ends = range(len(data)) if most is None else sorted(random.Random(3).sample(range(len(data)), most))
    for end in ends:
        path.write_bytes(data[:end])
        yield end
    path.write_bytes(data)


# Torn files


def check(run: Path) -> None:
    """What `splatgen resume` reads before it loads a model."""
    resume.check(resume.Resume(run=run))
    metrics.rewind_metrics(run / "metrics.jsonl", 10**6)
    steering.read(run / steering.FILE)


@needs_weights
@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_settings_cut_behind_any_byte_are_named_in_one_line(run: Path, name: str) -> None:
    kept = checkpoints(run)
    size = (run / name).stat().st_size
    for end in cut(run / name):
        text = said(lambda: check(run), 2)
        assert (text is None) == (end == size - 1), end  # without the last line's end
        assert text is None or name in text
    assert checkpoints(run) == kept
    assert said(lambda: check(run)) is None


@needs_weights
def test_metrics_cut_behind_any_byte_lose_a_row_and_nothing_else(run: Path) -> None:
    path = run / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    assert len(rows) == 2
    for end in cut(path):
        assert said(lambda: check(run)) is None
        assert path.read_bytes() == b"".join(rows[: 1 if end >= len(rows[0]) else 0])


@needs_weights
@pytest.mark.parametrize("name", ["state.json", "splats.safetensors", "optimizers.safetensors"])
def test_a_checkpoint_cut_anywhere_gives_way_to_the_one_before(
    run: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run / "checkpoints"
    newest = checkpoint.load_latest(folder).step
    path = folder / f"step-{newest:06d}" / name
    whole = path.stat().st_size - (name == "state.json")  # but for the last line's end
    for end in cut(path, 100):
        assert checkpoint.load_latest(folder).step == (newest if end == whole else newest - 1)
    assert checkpoint.load_latest(folder).step == newest


@needs_weights
@pytest.mark.parametrize("name", ["run.json", "config.json", "metrics.jsonl", "state.json", "latest"])
def test_a_resume_of_a_torn_folder_says_so_or_goes_on(cli: Cli, run: Path, whole: Path, name: str) -> None:
    """Through the command line, at a few places; above, at all of them."""
    kept = checkpoints(run)
    (path,) = [p for p in run.rglob(name) if p.parent.name != "step-000001"]
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"\n") + 20] if name == "metrics.jsonl" else data[: len(data) // 2])
    done = cli("resume", run, "--quiet")
    if name in ("run.json", "config.json"):
        assert name in refused(done.code, done.out, done.err, expected=2)
        assert checkpoints(run) == kept
        path.write_bytes(data)
        done = cli("resume", run, "--quiet")
    assert (done.code, done.out) == (0, f"{run}\n"), done.err
    if name != "metrics.jsonl":
        assert fingerprint(run) == fingerprint(whole)
    else:  # the rows are gone, the object is the same
        steps = [row["step"] for row in metrics.read_metrics(path)]
        assert steps == [0, 2, 3]
        shutil.copy(whole / name, path)
        assert fingerprint(run) == fingerprint(whole)


# Foreign content

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**400), st.just(-1)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
READ = ("status", "wall_time_s", "peak_memory_mb", "peak_gpu_memory_mb", "kind", "steps", "rewards", "error")


@settings(max_examples=80, deadline=None)
@example({"wall_time_s": 10**400, "peak_memory_mb": -(10**400)})
@example({"wall_time_s": math.nan, "peak_memory_mb": math.inf})
@given(st.one_of(JSON, st.dictionaries(st.sampled_from(READ), JSON)))
def test_any_json_as_run_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps(data))
    said(lambda: run_folder.update(run_folder.open_run(folder), status="running"), 2)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(JSON, st.fixed_dictionaries({"step": JSON})), max_size=3))
def test_any_json_as_metrics_is_rewound_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    if said(lambda: metrics.rewind_metrics(path, 3), 2) is not None:
        assert path.read_text() == text


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(JSON, st.fixed_dictionaries({"methods": JSON, "seeds": JSON, "prompts": JSON}), st.lists(JSON))
)
def test_any_json_as_a_sweep_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / ledger.FILE).write_text(json.dumps(data))
    said(lambda: ledger.read_plan(folder), 2)
    rows = data if isinstance(data, list) else [data]
    row = {"prompt": "a", "method": "b", "seed": 0, "folder": "c", "status": "done"}
    rows += [{**row, name: value} for value in rows for name in (*row, "numbers")]
    for entry in rows:
        (folder / ledger.ROWS).write_text(json.dumps(entry) + "\n{}\n")
        said(lambda: ledger.read_rows(folder), 2)


@pytest.mark.parametrize("name", ["run.json", "config.json", "metrics.jsonl", "steering.jsonl"])
@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe", b"\x00" * 50], ids=["deep", "utf-16", "zeros"])
@needs_weights
def test_bytes_that_are_none_of_ours_are_refused_with_the_files_name(
    run: Path, name: str, data: bytes
) -> None:
    kept = checkpoints(run)
    (run / name).write_bytes(data + b"\n{}\n")
    text = said(lambda: check(run), 2)
    assert text is not None
    assert name in text
    assert checkpoints(run) == kept


@pytest.mark.parametrize("data", [{"status": "done"}, {"status": "done", "rewards": 3}])
def test_a_run_of_a_sweep_that_is_none_of_its_runs_is_named(tmp_path: Path, data: Any) -> None:
    (tmp_path / "sds-0").mkdir()
    (tmp_path / "sds-0" / "run.json").write_text(json.dumps(data))
    (tmp_path / "sds-0" / "metrics.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "sds-0" / "splats.ply").touch()
    (task,) = line_up(["a red cube"], {"sds": Config()}, [0]).tasks()
    text = said(lambda: Worker(["test"], truth=False).make(task, tmp_path), 2)
    assert text is not None
    assert "sds-0 is no run of this sweep" in text


@needs_weights
@pytest.mark.parametrize("mixed", ["an image's", "an object's"])
def test_checkpoints_of_another_kind_of_run_are_refused(
    cli: Cli, run: Path, tmp_path: Path, mixed: str
) -> None:
    words = ["image", "a red cube", *MINI, "--steps", "2", "--image.checkpoint-seconds", "0"]
    assert cli(*words, "--out", tmp_path / "image").code == 0
    image = only(tmp_path / "image")
    giver, taker = (image, run) if mixed == "an image's" else (run, image)
    shutil.rmtree(taker / "checkpoints")
    shutil.copytree(giver / "checkpoints", taker / "checkpoints")
    kept = checkpoints(taker)
    done = cli("resume", taker, "--quiet", "--steps", "4")
    assert "checkpoint" in refused(done.code, done.out, done.err, expected=2)
    assert checkpoints(taker) == kept


# Things of the wrong kind


@needs_weights
@pytest.mark.parametrize("name", ["run.json", "config.json", "metrics.jsonl", "splats.ply", "preview.png"])
def test_a_folder_where_a_file_should_be_is_named(cli: Cli, run: Path, name: str) -> None:
    path = run / name
    if path.exists():
        path.unlink()
    (path / "inside").mkdir(parents=True)
    done = cli("resume", run, "--quiet")
    assert done.code in (2, 6)
    assert name in refused(done.code, done.out, done.err, expected=done.code)
    assert checkpoint.load_latest(run / "checkpoints").step >= 2
    shutil.rmtree(path)


@needs_weights
@pytest.mark.parametrize("place", ["out", "above out", "checkpoints", "step"])
def test_a_file_where_a_folder_should_be_is_named(
    cli: Cli, run: Path, whole: Path, tmp_path: Path, place: str
) -> None:
    if place in ("out", "above out"):
        file = tmp_path / "file"
        file.write_text("x")
        done = cli(*RUN, "--out", file if place == "out" else file / "deeper")
        assert "not a folder; use another --out: " in refused(done.code, done.out, done.err)
        assert file.read_text() == "x"
    elif place == "checkpoints":
        (run / "checkpoints").rename(run / "moved")
        (run / "checkpoints").write_text("x")
        done = cli("resume", run, "--quiet")
        assert "checkpoints" in refused(done.code, done.out, done.err)
        assert len(metrics.read_metrics(run / "metrics.jsonl")) == 2  # and not begun anew
    else:
        (run / "checkpoints" / "step-000009").write_text("x")
        (run / "checkpoints" / "latest").write_text("step-000009\n")
        assert cli("resume", run, "--quiet").code == 0
        assert fingerprint(run) == fingerprint(whole)


@needs_weights
@pytest.mark.parametrize("junk", [b"", b"\x00\xff" * 40, b"../../etc", b"step-999999\n"])
def test_junk_in_latest_does_not_matter(cli: Cli, run: Path, whole: Path, junk: bytes) -> None:
    (run / "checkpoints" / "latest").write_bytes(junk)
    assert cli("resume", run, "--quiet").code == 0
    assert fingerprint(run) == fingerprint(whole)


# Taken away


@needs_weights
@pytest.mark.parametrize("what", ["run", "out", "run.json"])
def test_a_folder_that_disappears_under_a_run_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    out = tmp_path / "out"

    def take() -> None:
        path = {"run": only(out), "out": out, "run.json": only(out) / "run.json"}[what]
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    before(monkeypatch, "advance", take, call=3)
    done = cli(*RUN, "--out", out)
    assert "No such file or directory: " in refused(done.code, done.out, done.err)
    assert checkpoint.load_latest(only(out) / "checkpoints").step == 4  # what there was is there again


@needs_weights
def test_checkpoints_that_disappear_under_a_run_are_written_again(
    cli: Cli, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, "advance", lambda: shutil.rmtree(only(tmp_path) / "checkpoints"), call=3)
    assert cli(*RUN, "--out", tmp_path).code == 0
    assert fingerprint(only(tmp_path)) == fingerprint(whole)


@needs_weights
def test_a_run_without_metrics_yet_goes_on(cli: Cli, run: Path) -> None:
    """As a kill between run.json and the first row leaves it."""
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    assert cli("resume", run, "--quiet").code == 0
    assert [row["step"] for row in metrics.read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3]


@needs_weights
def test_a_resume_sweeps_what_a_kill_left_half_written_and_nothing_else(cli: Cli, run: Path) -> None:
    ours = [".splats.0123abcd.tmp.ply", ".run.0123abcd.tmp.json", ".turntable.00000000.tmp.mp4"]
    theirs = [".notes.tmp", ".0123abcd.tmp", "splats.0123abcd.tmp.ply", ".hidden", ".a.0123abcd.tmp.ply~"]
    for name in (*ours, *theirs):
        (run / name).write_text("x")
    (run / ".folder.0123abcd.tmp").mkdir()
    assert cli("resume", run, "--quiet").code == 0
    there = {path.name for path in run.iterdir()}
    assert not there & set(ours)
    assert there >= {*theirs, ".folder.0123abcd.tmp"}


def test_a_temporary_name_of_any_file_is_one_that_is_swept(tmp_path: Path) -> None:
    for name in ("run.json", "a", "x" * 200 + ".mp4", "a.b.c"):
        with pytest.raises(KeyboardInterrupt), atomic.replacing(tmp_path / name) as temporary:
            raise KeyboardInterrupt
        temporary.write_text("x")  # as a kill leaves it
        atomic.sweep(tmp_path)
        assert not any(tmp_path.iterdir())
    atomic.sweep(tmp_path / "missing")


# More steps, and the same second


@needs_weights
def test_steps_that_are_added_are_remembered_by_later_resumes(
    cli: Cli, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = (Path(shutil.copytree(whole, tmp_path / name)) for name in ("a", "b"))
    assert cli("resume", straight, "--steps", "8", "--quiet").code == 0
    with monkeypatch.context() as patch:
        before(patch, "advance", interrupt, call=3)
        assert cli("resume", stopped, "--steps", "8", "--quiet").code == 130
    assert json.loads((stopped / "config.json").read_text())["steps"] == 8
    assert cli("resume", stopped, "--quiet").code == 0
    assert fingerprint(stopped) == fingerprint(straight) != fingerprint(whole)
    rows = metrics.read_metrics(stopped / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(8))
    done = cli("resume", stopped, "--steps", "5", "--quiet")
    assert "give a larger number" in refused(done.code, done.out, done.err, expected=2)
    assert fingerprint(stopped) == fingerprint(straight)


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_two_of_the_same_second_and_the_same_id_are_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    drawn: list[str] = []

    def draw(size: int) -> str:
        if size != 3:  # of temporary files
            return "00000000"
        drawn.append("aaaaaa" if len(drawn) < 3 else "bbbbbb")
        return drawn[-1]

    clock = namedtuple("Clock", "now")(lambda *_: datetime(2026, 1, 2, 3, 4, 5))
    monkeypatch.setattr(run_folder.secrets, "token_hex", draw)
    monkeypatch.setattr(run_folder, "datetime", clock)
    for _ in range(2):
        if kind == "run":
            run_folder.create(tmp_path, "a red cube", command=["test"], config={})
        else:
            ledger.make_folder(tmp_path, "compare", ["a red cube"])
    middle = "" if kind == "run" else "compare-"
    names = [f"20260102-030405-{middle}a-red-cube-{token * 6}" for token in "ab"]
    assert sorted(os.listdir(tmp_path)) == names
    assert drawn == ["aaaaaa"] * 3 + ["bbbbbb"]


# The cap


@st.composite
def growths(draw: st.DrawFn) -> Config:
    """Settings that grow as hard as they can."""
    count = draw(st.integers(2, 12))
    ends = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    densify = DensifyOptions(
        start=ends[0],
        stop=ends[1],
        rounds=draw(st.integers(1, 6)),
        grow=draw(st.sampled_from([1.0, 1.0, 0.5, 0.1])),
        split_scale=draw(st.sampled_from([1e-4, 0.07, 10.0])),
        prune_opacity=draw(st.sampled_from([1e-6, 0.02, 0.4])),
        prune_scale=draw(st.sampled_from([0.05, 0.5])),
        max_splats=count + draw(st.sampled_from([0, 0, 1, 5, 100])),
        reset=tuple(draw(st.lists(st.floats(0, 1), max_size=2))),
    )
    splats = SplatOptions(count=count, sh_degree=draw(st.integers(0, 1)))
    prompt, seed = "a red cube", draw(st.integers(0, 99))
    return validate(Config(prompt=prompt, steps=6, seed=seed, splats=splats, densify=densify))


def grow(config: Config, scene: Scene) -> None:
    """A step that follows a random gradient of the picture; the cap holds after it."""
    out = render(scene.splats, turntable(1, size=8))
    out.info["means2d"].retain_grad()
    out.rgb.backward(torch.randn(out.rgb.shape, generator=rng(config.seed, scene.step, "picture")))
    update(config, scene, torch.tensor(True))
    scene.densifier.after(scene.params, scene.optimizers, out.info, scene.step)
    scene.step += 1
    assert 1 <= len(scene.params["means"]) <= config.densify.max_splats
    for name, optimizer in scene.optimizers.items():
        assert optimizer.state[scene.params[name]]["exp_avg"].shape == scene.params[name].shape


@settings(max_examples=40, deadline=None)
@given(growths(), st.integers(0, 6))
def test_splats_never_pass_the_cap_also_after_a_resume(
    tmp_path_factory: pytest.TempPathFactory, config: Config, stop: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    straight = new_scene(config, starting_splats(config), "cpu")
    for step in range(config.steps):
        if step == stop:
            save_scene(folder, straight, {})
        grow(config, straight)
    if stop < config.steps:
        resumed, _ = load_scene(config, folder, "cpu")
        while resumed.step < config.steps:
            grow(config, resumed)
        for name, p in straight.params.items():
            assert torch.equal(p, resumed.params[name]), name


# Who writes files

# Every other call that writes goes through atomic, formats.save or checkpoint.save.
WRITERS = {
    "worlds/shelf/build.py": {"temporary.open": "within atomic.replacing"},
    "commands/words.py": {"sheet.save": "within atomic.replacing"},
    "runs/atomic.py": {
        "open": "a temporary file, which is synced and renamed",
        "file.write": "the same",
    },
    "runs/metrics.py": {
        "open": "appends; a torn last line is cut off",
        "self._file.write": "the same",
    },
    "loop/object_run.py": {"self.save": "a checkpoint"},
    "runs/sinks.py": {"sink.write": "of TensorBoard or W&B, whose files are theirs; what fails is logged"},
    "runs/checkpoint.py": {"safetensors.torch.save": "into memory"},
    "formats/__init__.py": {"_module(path, WRITTEN).save": "of the modules beside it"},
    "formats/ply.py": {"data.write": "within atomic.replacing"},
    "sweeps/sheet.py": {"sheet.save": "within atomic.replacing"},
    "sweeps/report.py": {"frames[0].save": "into memory"},
    "sweeps/ledger.py": {"self._rows.write": "of runs/metrics.py"},
    "runs/video.py": {
        "path.touch": "the temporary file of atomic.replacing",
        "pipe.write": "to ffmpeg, which writes within atomic.replacing",
        "pillow.fromarray(sheet).save": "within atomic.replacing",
        "pages[0].save": "into memory",
    },
    "commands/common/past_runs.py": {"small.save": "into memory", "path.touch": "an empty mark"},
    "commands/common/notebook.py": {"Image.fromarray(np.concatenate(list(self.rgb), 1)).save": "into memory"},
    "commands/common/signals.py": {"os.write": "to stderr"},
    "worlds/shelf/gallery.py": {"render().save": "a picture of the repository, made again by its command"},
    "worlds/training.py": {
        "save_file": "a training's state is renamed; its weights are exported again at its end",
        "(folder / f'{name}.json').write_text": "exported again at its end",
    },
}
SAFE = (
    "atomic.",
    "formats.",
    "checkpoint.",
    "kept.",
    "steering.",
    "metrics.",
    "trainer.",
    "subject.",
    "ledger.",
    "self.subject.",
)
WRITING = {"write", "write_text", "write_bytes", "save", "save_file", "touch", "dump", "tofile", "savez"}
MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]{1,3}")


def writes(path: Path) -> Iterator[str]:
    """Calls that may write a file, as they are spelled."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            words = [*node.args, *(keyword.value for keyword in node.keywords)]
            modes = [word.value for word in words if isinstance(word, ast.Constant)]
            opens = last == "open" and any(isinstance(m, str) and MODE.fullmatch(m) for m in modes)
            # a bare save() or write_bytes() is of this program
            if opens or (last in WRITING and "." in name) or name == "save_file":
                yield name


def test_every_file_is_written_atomically_or_is_known_to_survive() -> None:
    known = {f"splatgen/{name}": set(calls) for name, calls in WRITERS.items()}
    found = {
        path.relative_to(SOURCE.parent).as_posix(): set(writes(path))
        for path in [*SOURCE.rglob("*.py"), *(SOURCE.parent / "viewer").rglob("*.py")]
    }
    for name, calls in found.items():
        unknown = {call for call in calls if not call.startswith(SAFE)} - known.get(name, set())
        assert not unknown, f"{name}: write through atomic, or say in WRITERS why not"
    assert all(calls <= found.get(name, set()) for name, calls in known.items())


def test_the_page_about_faults_names_tests_that_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (TESTS.parent / "docs/reliability.md").read_text())
    assert len(named) > 30
    files = {path.name: path for path in TESTS.rglob("test_*.py")}
    for file, test in named:
        assert f"def {test}(" in files[file].read_text(encoding="utf-8"), f"{file}::{test}"
