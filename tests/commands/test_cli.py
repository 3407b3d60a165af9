"""The command line: what it refuses, what it prints where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from splatgen.cli import VERBS
from splatgen.commands.common import checks, errors
from splatgen.commands.common.progress import Reporter, duration, line
from splatgen.commands.common.signals import on_signals
from splatgen.worlds.toybox import weights_folder

Cli = Callable[..., Any]

MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini"]
TINY = [
    "--steps",
    "3",
    "--views.count",
    "2",
    "--splats.count",
    "200",
    "--output.frames",
    "4",
    "--output.size",
    "32",
]

needs_weights = pytest.mark.skipif(
    any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward")),
    reason="the miniature toybox weights are not there",
)

FLAGS = """
--ascent.form --ascent.pure --ascent.start --ascent.straight-through --ascent.target --ascent.weight
--budget --config --densify.grow --densify.max-splats --densify.prune-opacity --densify.prune-scale
--densify.reset --densify.rounds --densify.split-scale --densify.start --densify.stop --device --dpo.form
--dpo.gap --force --guidance.anneal --guidance.batch --guidance.clamp --guidance.no-clamp
--guidance.no-perp-neg --guidance.perp-neg --guidance.rescale --guidance.scale --guidance.t-max
--guidance.t-min --guidance.t-min-start --guidance.times --guidance.view-prompts --guidance.weighting
--help --holdout-reward --host --init --ism.interval --ism.offset --ism.step --json --log --lr.decay-from
--lr.final --lr.means --lr.opacities --lr.quats --lr.scales --lr.sh --negative --open --out
--output.checkpoint-seconds --output.frames --output.log-every --output.reward-every --output.size
--patience --port --preference --preset --prior --prior.camera --prior.compile --prior.dtype --prior.lora
--prior.lora-scale --prior.model --prior.no-camera --prior.no-compile --prior.no-t5 --prior.prediction
--prior.preview --prior.revision --prior.t5 --psd.anneal --psd.gap --psd.interval --psd.learn --psd.lr
--psd.no-learn --psd.rho --psd.t-limit --psd.temperature --quiet --refine.rounds --refine.ssim --refine.steps
--refine.time --refine.views --regularise.aspect --regularise.max-aspect
--regularise.max-radius --regularise.opacity --regularise.radius --regularise.scale --render.backend --reward
--reward.batch --reward.no-view-prompts --reward.units --reward.view-prompts --score --sdi.entropy
--sdi.entropy-at --sdi.no-renoise --sdi.renoise --sdi.scale --sdi.steps --sdi.tau --seed --splats.count
--splats.opacity --splats.radius --splats.scale --splats.sh-degree --stages --steering --steps --viewer
--viewer-wait
--views.background --views.count --views.distance --views.elevation --views.fov --views.no-relative
--views.relative --views.size --vsd.camera --vsd.camera-dropout --vsd.lr --vsd.no-camera --vsd.prompt
--vsd.rank --vsd.weight-decay --weighted.bottom --weighted.bottom-weight --weighted.candidates
--weighted.lookahead --weighted.normalise --weighted.scale --weighted.start --weighted.stop
--weighted.strategy --weighted.temperature --weighted.top --weighted.top-weight --weights
"""
FLAGS += """
--bridge.flaws --bridge.quality --bridge.start --guidance.clip --guidance.clip-over --guidance.noise
--guidance.noise-cell --guidance.noise-renewals --guidance.null-scale --guidance.scale-end
--guidance.scale-over --guidance.shift --guidance.view-limits --ism.interval-start --ism.start --ism.warmup
--lr.betas --lr.means-fall --lr.opacities-fall --lr.quats-fall --lr.scales-fall --lr.sh-fall --nfsd.limit
--regularise.axes --regularise.depth-tv --regularise.mass --regularise.normal-tv --regularise.position
--regularise.tv --sdi.reverse --views.elevation-law --vsd.betas --vsd.eps --vsd.start --weighted.levels
"""


def spawn(*argv: object, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """The program in another process."""
    start = ["-c", code] if code else ["-m", "splatgen.cli"]
    command = [sys.executable, *start, *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# --- what is cheap -------------------------------------------------------------------------------


def test_help_and_refusals_import_no_torch(tmp_path: Path) -> None:
    """One process for all of them: once imported, a module stays in sys.modules."""
    code = """
import sys
from splatgen.cli import VERBS, main
for words in [["--help"], ["--version"], ["nonsense"], *([verb, "--help"] for verb in VERBS)]:
    assert main(words) == (2 if words == ["nonsense"] else 0), words
for words in [["corgi"], ["--steps", "0"], ["a red cube", "--prior", "x"], ["a red cube", "--out", "f/x"]]:
    assert main(["generate", *words]) in (2, 3, 6), words
for words in [["render", "missing.ply"], ["export", "f", "g.ply"], ["resume", "f"]]:
    assert main(words) == 2, words
heavy = {"torch", "numba", "diffusers", "transformers", "gsplat", "viser"} & set(sys.modules)
assert not heavy, heavy
"""
    (tmp_path / "f").touch()
    done = spawn(code=code, cwd=tmp_path)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]


REFUSED = {  # words after `generate "a red cube"`: part of the message
    "--weighted.candidates 8": "it acts with --preference weighted only, and preference is none",
    "--preference dpo --psd.rho 0": "it acts with --preference psd only, and preference is dpo",
    "--score sdi --vsd.rank 8": "it acts with --score vsd only, and score is sdi",
    "--preference weighted --weighted.candidates 3": "min-max takes the 2 best and the 2 worst of them",
    "--preference psd --guidance.scale 1": "psd measures its pair by what guidance adds: give more than 1",
    "--score csd --guidance.scale 1": "csd is what guidance adds: give more than 1",
    "--preference weighted --reward": "--preference weighted needs at least one",
    "--preference none --reward.units candidates": "there are candidates with --preference weighted, dpo or",
    "--score vsd --prior frozen": "and 'frozen' has no adapter: use another",
    "--reward four": "the reward 'four' judges 4 views together, and the prior 'toybox' has 1 at a time",
    "--holdout-reward four": "the reward 'four' judges 4 views together",
    "--prior multi --views.count 6": "the prior 'multi' denoises 4 views together, give a multiple of 4",
    "--reward toybox-judge": "no reward 'toybox-judge'; it only watches: give it to --holdout-reward",
    "--reward hpsv9": "no reward 'hpsv9'; did you mean 'hpsv3'",
    "--holdout-reward jugde": "no reward 'jugde'; there are: toybox",
    "--reward toybox=high": "reward is 'toybox=high': write NAME or NAME=WEIGHT",
    "--reward toybox=nan": "reward toybox is nan: give a weight that is finite and not 0",
    "--reward toybox=-inf": "reward toybox is -inf: give a weight that is finite and not 0",
    "--reward toybox=0": "reward toybox is 0.0: give a weight that is finite and not 0",
    "--reward toybox=1 --reward toybox=2": "the reward 'toybox' is there twice: name it once",
    "--reward toybox=0.5 --holdout-reward toybox": "the reward 'toybox' guides and is held out: name it once",
    "--guidance.perp-neg": "it takes --guidance.view-prompts blend",
}


def test_what_does_not_go_together_is_two_before_torch(tmp_path: Path) -> None:
    """One process for all of them, with a prior and a reward that are entries and nothing else."""
    code = f"""
import contextlib, io, sys
from splatgen import priors, rewards
from splatgen.cli import main
priors.PRIORS["frozen"] = priors.PriorEntry(loader="nowhere:load", adapter=False)
priors.PRIORS["multi"] = priors.PriorEntry(loader="nowhere:load", views=4)
four = rewards.RewardEntry(loader="nowhere:load", about="x", views=4)
rewards.REWARDS["four"] = rewards.JUDGES["four"] = four
for words, message in {REFUSED!r}.items():
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["generate", "a red cube", *words.split(), "--out", "out"])
    text = err.getvalue()
    assert (code, text.count("\\n")) == (2, 1) and message in text, (words, code, text)
assert not {{"torch", "numba", "diffusers", "gsplat"}} & set(sys.modules)
"""
    done = spawn(code=code, cwd=tmp_path)
    out, err = done.communicate(timeout=120)
    assert (done.returncode, out) == (0, ""), err
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_the_choices_and_the_methods(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    text = re.sub(r"\x1b\[[0-9;]*m", "", cli("generate", "--help").out)
    for choice in (
        "{sds,sdi,vsd,csd,nfsd,ism,bridge,refine}",
        "{none,weighted,dpo,psd,ascent}",
        "{auto,raw,standard,candidates}",
        "NAME[=WEIGHT] ...",
        "reward3d with a four-view prior",
    ):
        assert choice in text
    for paper in ("RewardSDS", "RewardVSD", "DreamDPO", "DreamReward", "Perp-Neg"):
        assert paper in text


def test_the_help_names_every_verb_and_exit_code(cli: Cli) -> None:
    done = cli("--help")
    assert (done.code, done.err) == (0, "")
    for word in (*VERBS, "130", "143", "SPLATGEN_DEBUG"):
        assert word in done.out
    assert cli().code == 2
    assert re.fullmatch(r"splatgen \d+\.\d+\.\d+\S*\n", cli("--version").out)


def test_generate_has_these_options_and_no_others(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option is a promise: add it here, with its documentation, or do not add it."""
    monkeypatch.setenv("COLUMNS", "200")
    text = re.sub(r"\x1b\[[0-9;]*m", "", cli("generate", "--help").out)
    found = {flag.rstrip(".") for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", text)}
    assert found == set(FLAGS.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["genrate", "a red cube"], "did you mean 'generate'?"),
        (["a red cube"], 'splatgen generate "a red cube"'),
        (["--steps", "3"], "a verb comes first"),
    ],
)
def test_a_wrong_verb_is_two_with_a_hint(cli: Cli, words: list[str], message: str) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the prompt is empty"),
        ([""], "the prompt is empty"),
        (["  \u3000 "], "the prompt is empty"),
        (["a red cube\na blue cone"], "write it on one line"),
        (["a red\u2028cube"], "write it on one line"),
        (["a red\0cube"], "control character '\\x00'"),
        (["a red\x1b[31m cube"], "control character '\\x1b'"),
        (["a red \udcff cube"], "not valid UTF-8"),
        (["red " * 2500], "10,000 characters: shorten it to 2,000"),
        (["\U0001f438"], "does not know '\U0001f438'"),
        (["../../x", "--prior", "toybox"], "the toybox prior does not know '/'"),
        (["a red corgi in a hat", "--prior", "toybox"], "the nearest prompt it can do is 'a red cube'"),
        (["a corgi", "--prior", "toybox"], "sphere, cube, cylinder, cone, torus in red, orange"),
        (["a corgi"], "Free prompts need a larger prior: `splatgen fetch sd15`"),
        (["a corgi"], "the shelf does not know 'corgi'; the nearest prompt it can do is 'a dog'"),
        (
            ["a shiny old taxi"],
            "the shelf does not know 'shiny', 'old'; the nearest prompt it can do is 'a taxi'",
        ),
        (["a red cube and a blue cube and a green cube", "--prior", "toybox"], "not this sentence"),
        (["a red cube", "--negative", "ugly"], "negative prompt: "),
        (["a red cube", "--negative", "\n"], "negative prompt has a line break"),
        (["a red cube", "--steps", "0"], "steps is 0: give at least 1"),
        (["a red cube", "--guidance.scale", "nan"], "guidance.scale is nan: give a finite number"),
        (["a red cube", "--preset", "toybx"], "no preset 'toybx'; did you mean 'toybox'?"),
        (["a red cube", "--preset", "../toybox"], "no preset"),
        (["a red cube", "--prior", "toyboks"], "no prior 'toyboks'; did you mean 'toybox'?"),
        (["a red cube", "--prior", "zzz"], "there are: toybox"),
        (["a red cube", "--reward", "toybox", "hpsv9"], "no reward 'hpsv9'"),
        (["a red cube", "--reward", "toybox", "toybox"], "name it once"),
        (["a red cube", "--reward", "toybox", "--reward", "toybox"], "name it once"),
        (["--reward", "toybox", "a red cube"], "put it before --reward"),
        (["a red cube", "--config", "missing.toml"], "cannot read missing.toml"),
    ],
)
def test_refusals_are_two_one_line_and_leave_nothing(
    cli: Cli, tmp_path: Path, words: list[str], message: str
) -> None:
    done = cli("generate", "--out", tmp_path / "out", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("splatgen: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stpes", "3"], "--steps"),
        (["--steps", "three"], "--steps"),
        (["--steps"], "--steps"),
        (["--device", "tpu"], "--device"),
        (["--score", "vds"], "sds"),
        (["--preference", "dop"], "dpo"),
        (["--weighted.lookahed", "2"], "--weighted.lookahead"),
        (["another prompt"], "another prompt"),
        (["--guidance.t-max", "0.9"], "--guidance.t-max"),
    ],
)
def test_unknown_and_malformed_options_are_two_with_a_hint(
    cli: Cli, tmp_path: Path, words: list[str], message: str
) -> None:
    done = cli("generate", "a red cube", *words, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_settings_in_a_file_are_two_with_a_hint(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[guidance]\nscal = 3\n")
    done = cli("generate", "a red cube", "--config", file, "--out", tmp_path / "out")
    assert done.code == 2
    assert "unknown setting guidance.scal; did you mean guidance.scale?" in done.err


def test_missing_weights_are_three(cli: Cli, tmp_path: Path) -> None:
    done = cli("generate", "a red cube", "--prior.model", tmp_path, "--out", tmp_path / "out")
    assert done.code == 3
    assert "prior.safetensors is missing: --prior.model is a folder" in done.err
    assert not (tmp_path / "out").exists()


@needs_weights
def test_cuda_without_cuda_is_three(cli: Cli, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    done = cli("generate", "a red cube", *MINI, "--device", "cuda", "--out", tmp_path / "out")
    assert done.code == 3
    assert "--device cpu" in done.err
    assert not (tmp_path / "out").exists()


# --- the disk ------------------------------------------------------------------------------------


@needs_weights
def test_an_output_folder_that_is_a_file_is_six(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        done = cli("generate", "a red cube", *MINI, "--out", out)
        assert done.code == 6
        assert "not a folder" in done.err
    assert (tmp_path / "file").read_text() == "precious"


@needs_weights
def test_a_read_only_output_folder_is_six(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    if not hasattr(os, "geteuid") or os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    done = cli("generate", "a red cube", *MINI, "--out", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert (done.code, done.out) == (6, "")
    assert "no permission" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many megabytes, where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(megabytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no file system can be mounted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@needs_weights
def test_a_full_disk_is_six_before_anything_is_made(cli: Cli, small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(2)
    done = cli("generate", "a red cube", *MINI, "--out", folder / "out")
    assert done.code == 6
    assert "MB free" in done.err
    assert list(folder.iterdir()) == []


@needs_weights
def test_a_disk_that_fills_up_during_the_run_is_six(
    cli: Cli, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from splatgen.runs import run_folder

    folder, create = small_disk(60), run_folder.create

    def create_and_fill(*args: Any, **options: Any) -> run_folder.Run:
        run = create(*args, **options)
        with open(folder / "ballast", "wb") as file:
            file.write(b"\0" * (shutil.disk_usage(folder).free - 20_000))
        return run

    monkeypatch.setattr(run_folder, "create", create_and_fill)
    done = cli("generate", "a red cube", *MINI, *TINY, "--out", folder)
    assert (done.code, done.out) == (6, "")
    assert "MB free, a checkpoint takes" in done.err
    assert not list(folder.rglob("*.tmp*"))  # nothing half-written


# --- signals, progress, errors -------------------------------------------------------------------


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with on_signals() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        assert stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_term_asks_too_and_ctrl_c_after_it_still_interrupts() -> None:
    with on_signals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def progress(step: int, **changes: Any) -> Any:
    from splatgen.loop.loop import Progress

    given = {"steps": 10, "loss": 0.5, "splats": 1234, "rewards": {"toybox": 0.25}, "seconds": float(step)}
    return Progress(step=step, **{**given, **changes})


def test_a_progress_line_says_everything() -> None:
    text = line(progress(6), progress(2))
    assert text == " 60%  step 6/10  0:04 left  toybox 0.250  1.0 it/s  loss 0.5  1,234 splats"
    assert duration(3725.4) == "1:02:05"


@pytest.mark.parametrize("room", range(20, 120, 7))
def test_a_line_without_room_leaves_out_what_matters_least(room: int) -> None:
    rewards = {"reward/toybox": 0.25, "holdout/a-very-long-name-of-a-reward": 0.5}
    now = progress(6, rewards=rewards)
    text = line(now, progress(2), room)
    assert len(text) <= room
    assert text.startswith(" 60%  step 6/10")
    shown = text.split("  ")
    assert shown == line(now, progress(2), 1000).split("  ")[: len(shown)]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Screen, io.StringIO])
def test_progress_is_throttled_but_shows_the_last_step(kind: type[io.StringIO]) -> None:
    stream, now = kind(), [0.0]
    report = Reporter(stream, quiet=False, clock=lambda: now[0])
    for step in range(1, 11):
        now[0] += 0.01
        report(progress(step, loss=float("nan") if step > 1 else 0.5))
    report.close()
    text = stream.getvalue()
    assert set(re.findall(r"step \d+", text)) == {"step 1", "step 10"}
    assert "step 10/10" in text
    assert "nan" not in text  # the loss is not measured at every step
    assert text.count("\n") == (1 if kind is Screen else 2)
    assert ("\x1b[2K" in text) == (kind is Screen)  # a line that is drawn over


def test_a_live_line_never_wraps_and_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    screen, silent = Screen(), Screen()
    report = Reporter(screen, quiet=False)
    report(progress(1, rewards={"a-long-name": 0.5}))
    report.close()
    Reporter(silent, quiet=True)(progress(1))
    rows = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))
    assert any("step 1/10" in row for row in rows)
    assert all(len(row) <= 30 for row in rows)
    assert silent.getvalue() == ""


def an_error(name: str) -> BaseException:
    import torch
    from safetensors import SafetensorError

    from splatgen.loop.loop import Diverged

    return {
        "diverged": Diverged("no finite gradient"),
        "cuda memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "cpu memory": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes"),
        "weights": SafetensorError("header too large"),
    }[name]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Failure(3, "x"), 3),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 5),
        ("diverged", 4),
        ("cuda memory", 5),
        ("cpu memory", 5),
        ("weights", 3),
        (ModuleNotFoundError("No module named 'gsplat'"), 3),
        (RuntimeError("numba cannot keep compiled kernels: set NUMBA_CACHE_DIR"), 3),
        (RuntimeError("ffmpeg failed with status 1: No space left on device"), 6),
        (OSError(28, "No space left on device", "/x"), 6),
        (BrokenPipeError(), 6),
        (ValueError("bad"), 2),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 2),
        (RuntimeError("a bug"), None),
        (KeyError("a bug"), None),
    ],
)
def test_every_expected_error_has_its_code(error: BaseException | str, code: int | None) -> None:
    found = errors.describe(an_error(error) if isinstance(error, str) else error)
    assert (found and found[0]) == code
    assert found is None or found[1]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@needs_weights
def test_errors_are_one_line_unless_debugging(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splatgen.loop import loop, object_run

    monkeypatch.setattr(object_run, "generate", raising(loop.Diverged("no finite\ngradient")))
    words = ["generate", "a red cube", *MINI, "--quiet", "--out", tmp_path]
    done = cli(*words)
    assert (done.code, done.out, done.err) == (4, "", "splatgen: error: no finite gradient\n")
    monkeypatch.setenv("SPLATGEN_DEBUG", "1")
    done = cli(*words)
    assert done.code == 4
    assert "Traceback" in done.err
    monkeypatch.setattr(object_run, "generate", raising(KeyError("bug")))
    with pytest.raises(KeyError):
        cli(*words)


@needs_weights
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    from splatgen.loop import loop, object_run
    from splatgen.runs import run_folder

    def generate(config: Any, *, out: Path, command: Sequence[str], should_stop: Any, **_: Any) -> Any:
        assert command[:3] == ["splatgen", "generate", "a red cube"]
        run = run_folder.create(out, config.prompt, command=command, config={})
        os.kill(os.getpid(), number)
        assert should_stop()
        run_folder.update(run, status="stopped")
        return loop.Result(run=run, status="stopped", step=7)

    monkeypatch.setattr(object_run, "generate", generate)
    done = cli("generate", "a red cube", *MINI, "--out", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert (done.code, done.out) == (code, f"{folder}\n")
    assert f"stopped after step 7; continue with: splatgen resume {folder}" in done.err


# --- splat files ---------------------------------------------------------------------------------


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    """A sound file of ten splats."""
    import torch

    from splatgen import formats
    from splatgen.scene.splats import random_ball

    generator = torch.Generator().manual_seed(0)
    splats = random_ball(generator, count=10, radius=0.5, scale=0.1, opacity=0.5)
    formats.save(splats, tmp_path / "ten.ply")
    return tmp_path / "ten.ply"


def damaged(data: bytes, how: str) -> bytes:
    head, body = data.split(b"end_header\n")
    return {
        "empty": b"",
        "truncated": data[:-5],
        "header only": head,
        "nan": head + b"end_header\n" + b"\xff\xff\xff\xff" + body[4:],
        "huge count": data.replace(b"vertex 10\n", b"vertex 999999999999\n"),
        "negative count": data.replace(b"vertex 10\n", b"vertex -1\n"),
        "mesh": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n",
        "other": b"\x89PNG\r\n" + data,
    }[how]


HOWS = ["empty", "truncated", "header only", "nan", "huge count", "negative count", "mesh", "other"]


@pytest.mark.parametrize("how", HOWS)
def test_broken_splat_files_are_two_and_leave_nothing(cli: Cli, ply: Path, how: str) -> None:
    bad = ply.with_name("bad.ply")
    bad.write_bytes(damaged(ply.read_bytes(), how))
    verbs = [["render", bad], ["export", bad, ply.with_name("out.ply")]]
    for words in verbs[: 1 if how == "nan" else 2]:  # an export leaves broken splats out
        done = cli(*words)
        assert (done.code, done.out) == (2, ""), done.err
        assert done.err.startswith("splatgen: error: ")
        assert done.err.count("\n") == 1
    assert sorted(path.name for path in ply.parent.iterdir()) == ["bad.ply", "ten.ply"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["render", "missing.ply"], "does not exist"),
        (["render", "."], "holds no splats.ply"),
        (["render", "text.txt"], "no suffix of a splat format: use .ply"),
        (["render", "ten.ply", "--out", "a.jpg"], "give a folder, an .mp4"),
        (["render", "ten.ply", "--out", "a.mp4", "--frames", "0"], "give a folder, an .mp4"),
        (["render", "ten.ply", "--size", "4"], "--size 4: give 16 to 2048"),
        (["render", "ten.ply", "--elevation", "nan"], "--elevation nan"),
        (["export", "ten.ply", "out.obj"], "out.obj is a mesh: add --mesh"),
        (["export", "ten.ply", "out.xyz"], "use .ply, .splat, .spz, .glb"),
        (["export", "ten.ply", "."], ". is a folder: name the file to write, as in object.ply"),
        (["export", "ten.ply", ".", "--mesh"], ". is a folder: name the file to write, as in object.glb"),
        (["export", "ten.ply", "ten.ply"], "--overwrite"),
        (["export", "ten.ply", "out.ply", "--sh", "4"], "--sh"),
        (["export", "ten.ply", "out.ply", "--frame", "xyz"], "--frame"),
        (["resume", "."], "has no run.json"),
        (["resume", "missing"], "has no run.json"),
    ],
)
def test_unusable_inputs_are_two_and_leave_nothing(
    cli: Cli, ply: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(ply.parent)
    Path("text.txt").touch()
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert sorted(path.name for path in ply.parent.iterdir()) == ["ten.ply", "text.txt"]


def test_render_writes_where_it_says(cli: Cli, ply: Path) -> None:
    small = ["--frames", "3", "--size", "32"]
    beside = cli("render", ply, *small)
    assert (beside.code, beside.err) == (0, "")
    film, sheet = map(Path, beside.out.split())
    assert film.with_suffix("") == ply.with_name("ten-turntable")
    assert sheet == ply.with_name("ten-preview.png")
    assert film.stat().st_size > 0
    assert sheet.stat().st_size > 0
    folder = ply.with_name("new")
    inside = map(Path, cli("render", ply, "--out", folder, *small).out.split())
    assert {path.parent for path in inside} == {folder}
    assert cli("render", ply, "--out", ply.with_name("a.png"), *small).out == f"{ply.with_name('a.png')}\n"
    (only,) = cli("render", ply, "--out", ply.with_name("a.mp4"), "--background", "black", *small).out.split()
    assert Path(only).stem == "a"


def test_export_turns_pads_and_keeps(cli: Cli, ply: Path) -> None:
    from splatgen import formats

    out = ply.with_name("out.ply")
    done = cli("export", ply, out, "--frame", "rdf", "--sh", "2", "--keep-invisible")
    assert (done.code, done.out) == (0, f"{out}\n")
    before, after = formats.load(ply), formats.load(out, frame="rdf")
    assert after.sh_degree == 2
    assert (after.means == before.means).all()
    assert cli("export", ply, out, "--overwrite").code == 0
    assert formats.load(out).sh_degree == 0
    assert cli("export", ply, ply.parent / "none" / "x.ply").code == 6


# --- the whole program ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A real run in another process: its folder, what --json printed, and stderr."""
    out = tmp_path_factory.mktemp("runs")
    done = spawn("generate", "a red cube", *MINI, *TINY, "--json", "--out", out)
    text, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    (folder,) = out.iterdir()
    return folder, json.loads(text), err


@needs_weights
def test_a_run_prints_its_result_and_nothing_else(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, printed, err = finished
    assert printed["run"] == str(folder)
    assert (printed["status"], printed["step"]) == ("done", 3)
    assert printed["splats"] > 0
    assert printed["seconds"] > 0
    assert set(printed["rewards"]) == {"reward/toybox-mini"}
    assert {"splats", "turntable", "preview", "metrics", "config", "metadata"} == set(printed["files"])
    assert all(Path(path).is_file() for path in printed["files"].values())
    assert "toybox-mini prior" in err.splitlines()[0]
    assert "CPU rasterizer" in err.splitlines()[0] or "gsplat" in err.splitlines()[0]
    assert "step 3/3" in err


@needs_weights
def test_a_run_folder_can_be_rendered_and_exported(cli: Cli, finished: tuple[Path, Any, str]) -> None:
    folder = finished[0]
    film, sheet = map(Path, cli("render", folder, "--frames", "2", "--size", "32").out.split())
    assert film.with_suffix("") == folder / "turntable"
    assert sheet == folder / "preview.png"
    out = folder.parent.parent / "exported.ply"
    assert cli("export", folder, out, "--overwrite").code == 0
    assert folder.name.encode() in out.read_bytes()[:500]


@needs_weights
def test_force_makes_the_nearest_prompt_and_says_so(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "generate", "a blue corgi cone", "--force", *MINI, *TINY, "--output.frames", "0", "--out", tmp_path
    )
    (folder,) = tmp_path.iterdir()
    assert (done.code, done.out) == (0, f"{folder}\n")
    assert "making 'a blue cone' instead" in done.err
    assert json.loads((folder / "run.json").read_text())["prompt"] == "a blue cone"


@needs_weights
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space through /proc")
def test_a_run_that_blows_up_is_four_and_too_large_a_one_is_five(cli: Cli, tmp_path: Path) -> None:
    wild = ["--steps", "60", "--guidance.scale", "1e38", "--guidance.no-clamp"]
    done = cli("generate", "a red cube", *MINI, *TINY, *wild, "--out", tmp_path)
    assert (done.code, done.out) == (4, ""), done.err
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300 * 2**20, hard))
    try:
        huge = ["--splats.count", "10000000", "--densify.max-splats", "10000000"]  # 560 MB of parameters
        done = cli("generate", "a red cube", *MINI, *TINY, *huge, "--out", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (done.code, done.out) == (5, ""), done.err
    assert "--densify.max-splats" in done.err


@needs_weights
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX knows them")
def test_ctrl_c_saves_a_checkpoint_and_resume_goes_on(cli: Cli, tmp_path: Path) -> None:
    long = ["--steps", "1000000", "--output.checkpoint-seconds", "0"]
    words = ["a red cube", *MINI, *TINY, *long, "--out", tmp_path]
    # stdin is closed and the group is new, so that only our signal reaches it
    running = spawn("generate", *words, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        assert running.stderr is not None
        while "step " not in (row := running.stderr.readline()):
            assert row or running.poll() is None, "it ended before its first step"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
    (folder,) = tmp_path.iterdir()
    assert (running.returncode, out) == (130, f"{folder}\n"), err
    assert f"splatgen resume {folder}" in err
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    step = int(re.search(r"stopped after step (\d+)", err)[1])  # type: ignore[index]
    assert cli("render", folder, "--frames", "0", "--size", "32").code == 0
    assert "splats.ply, preview.png" in err
    done = cli("resume", folder, "--steps", step + 2, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["step"] == step + 2
    done = cli("resume", folder, "--steps", "1")
    assert done.code == 2
    assert "give a larger number" in done.err
