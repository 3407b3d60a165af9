"""The loop: deterministic, resumable bit for bit, and safe against broken gradients.

Everything runs on the miniature models of 16 pixels. Nothing here asserts quality but the last test.
"""

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from analytic import GaussianPrior
from run_states import assert_same, stop_at, tensors

from splatgen import formats
from splatgen.config import (
    Config,
    DensifyOptions,
    GuidanceOptions,
    LearningOptions,
    OutputOptions,
    PSDOptions,
    RegulariseOptions,
    RewardOptions,
    SplatOptions,
    ViewOptions,
    VSDOptions,
)
from splatgen.loop import encoding, loop, object_run
from splatgen.loop import step as one_step
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import advance, assemble, load_models, make_moment, render_views
from splatgen.priors.toybox import ToyboxPrior
from splatgen.rasterizer import render
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.rewards.toybox import ToyboxReward
from splatgen.runs import checkpoint, packing, run_folder
from splatgen.runs.metrics import read_metrics
from splatgen.scene.cameras import Cameras, turntable
from splatgen.scene.parameters import new_scene, rates
from splatgen.scene.view_prompts import view_word
from splatgen.worlds.toybox.grammar import parse
from splatgen.worlds.toybox.world import ground_truth

STEPS = 8
REFINED = DensifyOptions(start=0.1, stop=0.8, rounds=3, grow=0.3, max_splats=200, reset=(0.5,))


def config(**change):
    values = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": ("toybox-mini",),
        "steps": STEPS,
        "device": "cpu",
        "views": ViewOptions(count=2, size=(16,)),
        "splats": SplatOptions(count=100),
        "densify": REFINED,
        "output": OutputOptions(frames=0, size=16, checkpoint_seconds=0, reward_every=2),
    }
    return Config(**{**values, **change})


def start(folder, given=None, **options):
    return object_run.generate(given or config(), out=folder, command=["test"], **options)


def ply(run):
    """Hash of the file without its comments, which hold the run's id."""
    header, end, body = run.splats_ply.read_bytes().partition(b"end_header\n")
    lines = [line for line in header.split(b"\n") if not line.startswith(b"comment")]
    return hashlib.sha256(b"\n".join(lines) + end + body).hexdigest()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run that others are compared with."""
    return start(tmp_path_factory.mktemp("straight"))


def fresh(given):
    """Models and a scene for `advance`."""
    return load_models(given, "cpu"), new_scene(given, starting_splats(given), "cpu")


# What a run leaves


def test_a_run_ends_with_its_files_and_status(straight):
    data = run_folder.read(straight.run)
    assert (straight.status, straight.step) == ("done", STEPS)
    assert data["status"] == "done"
    assert data["steps"] == STEPS
    assert data["prompt"] == "a red cube"
    assert data["splats"] == len(tensors(straight.run)["splats/means"]) > 100
    assert list(data["rewards"]) == ["reward/toybox-mini"]
    assert math.isfinite(data["rewards"]["reward/toybox-mini"])
    assert 0 < len(formats.load(straight.run.splats_ply)) <= data["splats"]
    assert straight.run.preview.is_file()


def test_metrics_have_a_row_for_every_step_and_finite_numbers(straight):
    rows = read_metrics(straight.run.metrics)
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row in rows:
        assert all(isinstance(v, int | float) and math.isfinite(v) for v in row.values())
        assert row["skipped"] == 0
        assert row["guidance/model_calls"] == 4  # two views, prompt and negative
        assert ("reward/toybox-mini" in row) == (row["step"] % 2 == 0 or row["step"] == STEPS - 1)
        assert {"time/render_ms", "time/model_ms", "time/backward_ms", "time/update_ms"} <= row.keys()
    counts = [row["splats/count"] for row in rows]
    assert counts[0] == 100
    assert max(counts) > 100


def test_rows_can_be_thinned(tmp_path):
    output = OutputOptions(frames=0, size=16, checkpoint_seconds=0, log_every=3, reward_every=5)
    result = start(tmp_path, config(output=output, steps=9))
    rows = read_metrics(result.run.metrics)
    assert [row["step"] for row in rows] == [0, 3, 5, 6, 8]
    assert [row["step"] for row in rows if "reward/toybox-mini" in row] == [0, 5, 8]


def test_progress_is_reported_after_every_step(tmp_path):
    seen = []
    start(tmp_path, report=seen.append)
    assert [p.step for p in seen] == list(range(1, STEPS + 1))
    assert all(p.steps == STEPS and p.splats >= 1 and p.seconds >= 0 for p in seen)
    assert set(seen[-1].rewards) == {"reward/toybox-mini"}
    assert math.isfinite(seen[-1].loss)


# Determinism


def test_two_runs_are_equal_bit_for_bit(straight, tmp_path):
    again = start(tmp_path)
    assert again.run.id != straight.run.id
    assert_same(tensors(again.run), tensors(straight.run))
    assert ply(again.run) == ply(straight.run)


def test_another_seed_gives_another_object(straight, tmp_path):
    other = start(tmp_path, config(seed=1))
    assert ply(other.run) != ply(straight.run)


def test_the_global_generator_neither_matters_nor_moves(straight, tmp_path):
    torch.manual_seed(99)
    assert_same(tensors(start(tmp_path).run), tensors(straight.run))
    given = config()
    models, scene = fresh(given)
    before = torch.get_rng_state()
    while scene.step < STEPS:
        advance(given, models, scene)
        scene.step += 1
    assert torch.equal(torch.get_rng_state(), before)


def test_rewards_that_only_watch_change_nothing(straight, tmp_path):
    assert_same(tensors(start(tmp_path, config(reward=())).run), tensors(straight.run))


@pytest.mark.parametrize(
    "change",
    [
        {"reward": ()},
        {"guidance": GuidanceOptions(scale=9.0, weighting="sigma")},
        {"prompt": "a blue sphere"},
        {"regularise": RegulariseOptions(radius=0, aspect=0)},
        {"score": "vsd"},
        {"preference": "dpo"},
    ],
)
def test_methods_of_one_seed_see_the_same_cameras_and_times(change):
    def watch(given):
        models, scene = fresh(given)
        seen = []
        for _ in range(2):
            _, cameras = render_views(given, scene, scene.step / given.steps)
            found = advance(given, models, scene)
            scene.step += 1
            seen.append((cameras, found.t_max))
        return seen

    for (a, t_a), (b, t_b) in zip(watch(config()), watch(config(**change)), strict=True):
        assert torch.equal(a.c2w, b.c2w)
        assert torch.equal(a.K, b.K)
        assert t_a == t_b


# Stopping and resuming


@pytest.mark.parametrize("stops", [(0,), (3,), (5,), (2, 2, 3)])
def test_stopping_and_resuming_equals_a_straight_run_bit_for_bit(straight, tmp_path, stops):
    result = start(tmp_path, should_stop=stop_at(stops[0]))
    for more in stops[1:]:
        assert run_folder.read(result.run)["status"] == result.status == "stopped"
        result = object_run.resume(result.run.folder, command=["test"], should_stop=stop_at(more))
    assert result.step == sum(stops)
    result = object_run.resume(result.run.folder, command=["test"])
    assert (result.status, result.step) == ("done", STEPS)
    assert_same(tensors(result.run), tensors(straight.run))
    assert ply(result.run) == ply(straight.run)
    assert [row["step"] for row in read_metrics(result.run.metrics)] == list(range(STEPS))


@pytest.mark.parametrize("sh_degree", [1])
def test_higher_harmonics_resume_bit_for_bit(tmp_path, sh_degree):
    given = config(splats=SplatOptions(count=60, sh_degree=sh_degree), steps=6)
    whole = start(tmp_path, given)
    part = start(tmp_path, given, should_stop=stop_at(3))
    part = object_run.resume(part.run.folder, command=["test"])
    assert "splats/shN" in tensors(whole.run)
    assert_same(tensors(part.run), tensors(whole.run))


METHODS = [
    ("vsd", "none", {"vsd": VSDOptions(lr=0.02)}),
    ("sdi", "none", {}),
    ("csd", "none", {}),
    ("ism", "none", {}),
]


@pytest.mark.parametrize(("score", "preference", "change"), METHODS)
def test_every_score_resumes_bit_for_bit(tmp_path, score, preference, change):
    """With what it learned, and the averages of the optimiser that trains it."""
    given = config(score=score, preference=preference, steps=4, **change)
    whole = start(tmp_path, given)
    part = start(tmp_path, given, should_stop=stop_at(2))
    part = object_run.resume(part.run.folder, command=["test"])
    found = tensors(whole.run)
    assert_same(tensors(part.run), found)
    learned = {name for name in found if name.startswith("score/")}
    assert bool(learned) == (score == "vsd")
    if score == "vsd":
        assert any(name.endswith("exp_avg") for name in learned)
        losses = [[row["score/lora_loss"] for row in read_metrics(r.run.metrics)] for r in (whole, part)]
        assert losses[0] == losses[1]
        assert len(losses[0]) == 4


def test_what_a_score_learned_is_not_dropped_on_the_way_to_another(tmp_path):
    given = config(score="vsd", steps=4)
    stopped = start(tmp_path, given, should_stop=stop_at(2))
    saved = json.loads(stopped.run.config_json.read_text())
    stopped.run.config_json.write_text(json.dumps({**saved, "score": "sds"}))
    with pytest.raises(ValueError, match="what another score learned"):
        object_run.resume(stopped.run.folder, command=["test"])


def test_a_killed_run_goes_on_from_its_last_checkpoint(straight, tmp_path):
    """Rows after the checkpoint are written again, and nothing shows afterwards."""
    output = OutputOptions(frames=0, size=16, checkpoint_seconds=1e-9, reward_every=2)
    given = config(output=output)

    def killed(progress):
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, given, report=killed)
    (folder,) = tmp_path.iterdir()
    run = run_folder.open_run(folder)
    assert run_folder.read(run)["status"] == "stopped"
    checkpoints = sorted(path.name for path in run.checkpoints.glob("step-*"))
    assert checkpoints == ["step-000005", "step-000006"]
    for path in (run.checkpoints / "step-000006").iterdir():
        path.write_bytes(b"")  # the newest is damaged
    result = object_run.resume(folder, command=["test"])
    assert result.status == "done"
    assert_same(tensors(result.run), tensors(straight.run))
    assert [row["step"] for row in read_metrics(run.metrics)] == list(range(STEPS))


def test_a_finished_run_can_be_made_longer(tmp_path):
    result = start(tmp_path, config(steps=5))
    result = object_run.resume(result.run.folder, steps=9, command=["test"])
    assert (result.status, result.step) == ("done", 9)
    assert run_folder.read(result.run)["steps"] == 9
    assert [row["step"] for row in read_metrics(result.run.metrics)] == list(range(9))
    again = object_run.resume(result.run.folder, command=["test"])  # the new length is remembered
    assert again.step == 9


def test_a_run_cannot_be_made_shorter_than_it_is(tmp_path):
    result = start(tmp_path, should_stop=stop_at(4))
    before = result.run.run_json.read_bytes(), result.run.config_json.read_bytes()
    with pytest.raises(ValueError, match="--steps is 3, but the run is already at step 4"):
        object_run.resume(result.run.folder, steps=3, command=["test"])
    assert (result.run.run_json.read_bytes(), result.run.config_json.read_bytes()) == before


# Failures


def broken_at(monkeypatch, steps, value=math.nan):
    """The real prior, whose predictions have a bad number at some calls (counted from 0)."""
    predict, calls = ToyboxPrior.predict, iter(range(10**6))

    def bad(self, *args):
        eps = predict(self, *args)
        if next(calls) in steps:
            eps[:, 0, 5, 5] = value
        return eps

    monkeypatch.setattr(ToyboxPrior, "predict", bad)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_broken_prediction_moves_nothing_and_is_counted(monkeypatch, bad, value):
    given = config(guidance=GuidanceOptions(clamp=False), densify=DensifyOptions(rounds=0))
    broken_at(monkeypatch, {bad}, value)
    models, scene = fresh(given)

    def state(name):  # Adam forgets the step, too, but for its number
        packed, _ = packing.pack(scene.optimizers[name].state_dict()["state"])
        return {key: v.clone() for key, v in packed.items() if "exp_avg" in key}

    for step in range(4):
        before = {name: (p.detach().clone(), state(name)) for name, p in scene.params.items()}
        seen = advance(given, models, scene)
        scene.step += 1
        assert float(seen.failed) == (step == bad)
        for name, p in scene.params.items():
            old, moments = before[name]
            assert p.isfinite().all()
            assert torch.equal(p, old) == (step == bad), name
            if step == bad > 0:
                assert_same(state(name), moments)
            elif step == bad:
                assert all((value == 0).all() for value in state(name).values())


def test_a_skipped_step_leaves_no_trace_in_the_statistics_of_growth(monkeypatch, tmp_path):
    """The round after a broken step grows as many splats as without it."""
    densify = DensifyOptions(start=0.0, stop=0.5, rounds=1, grow=0.3, max_splats=200)
    given = config(densify=densify, guidance=GuidanceOptions(clamp=False))
    whole = read_metrics(start(tmp_path / "whole", given).run.metrics)
    broken_at(monkeypatch, {1})
    result = start(tmp_path / "broken", given)
    rows = read_metrics(result.run.metrics)
    assert [row["skipped"] for row in rows] == [0, 1, *[0] * (STEPS - 2)]
    assert [row["splats/count"] for row in rows] == [row["splats/count"] for row in whole]
    assert rows[-1]["splats/count"] > 100
    assert all(value.isfinite().all() for value in tensors(result.run).values())


OFTEN = OutputOptions(frames=0, size=16, checkpoint_seconds=1e-9)
UNCLAMPED = GuidanceOptions(clamp=False)


def only_run(folder):
    (found,) = folder.iterdir()
    return run_folder.open_run(found)


def test_a_run_without_finite_gradients_diverges_with_finite_splats(monkeypatch, tmp_path):
    """It goes back once, to before its first bad step."""
    broken_at(monkeypatch, range(2, 100))
    with pytest.raises(loop.Diverged, match="no finite gradient in 3 steps up to step 4"):
        start(tmp_path, config(output=OFTEN, guidance=UNCLAMPED, patience=3))
    run = only_run(tmp_path)
    data = run_folder.read(run)
    assert data["status"] == "diverged"
    assert data["went_back_at_step"] == 4
    assert data["error"].startswith("Diverged: no finite gradient")
    assert [row["skipped"] for row in read_metrics(run.metrics)] == [0, 0, 1, 1, 1]
    assert all(v.isfinite().all() for v in tensors(run).values())


def test_a_run_that_was_lost_for_a_while_ends_as_if_nothing_had_been(monkeypatch, tmp_path):
    given = config(output=OFTEN, guidance=UNCLAMPED, patience=3)
    whole = start(tmp_path / "whole", given)
    broken_at(monkeypatch, {3, 4, 5})
    lost = start(tmp_path / "lost", given)
    assert lost.status == "done"
    assert run_folder.read(lost.run)["went_back_at_step"] == 5
    assert "went_back_at_step" not in run_folder.read(whole.run)
    assert_same(tensors(whole.run), tensors(lost.run))
    assert [row["skipped"] for row in read_metrics(lost.run.metrics)] == [0] * STEPS


def test_without_a_checkpoint_to_go_back_to_the_run_ends(monkeypatch, tmp_path):
    broken_at(monkeypatch, range(100))
    with pytest.raises(loop.Diverged, match="up to step 2"):
        start(tmp_path, config(guidance=UNCLAMPED, patience=3))
    run = only_run(tmp_path)
    assert "went_back_at_step" not in run_folder.read(run)
    assert checkpoint.load_latest(run.checkpoints).step == 2


def test_patience_starts_anew_after_a_good_step(monkeypatch, tmp_path):
    broken_at(monkeypatch, {1, 2, 4, 5})
    assert start(tmp_path, config(guidance=UNCLAMPED, patience=3)).status == "done"


def test_bad_steps_are_counted_also_between_rows(monkeypatch, tmp_path):
    """With a row every 4 steps, three bad steps in a row are noticed at the next one."""
    output = dataclasses.replace(OFTEN, log_every=4, reward_every=4, checkpoint_seconds=0)
    broken_at(monkeypatch, range(2, 100))
    with pytest.raises(loop.Diverged, match="up to step 4"):
        start(tmp_path, config(output=output, guidance=UNCLAMPED, patience=3))


def spoil(monkeypatch, place):
    """NaN at one place of step 2."""
    if place == "prediction":
        broken_at(monkeypatch, {2})
    elif place == "render":
        whole = one_step.render_views

        def render_views(config, scene, fraction):
            out, cameras = whole(config, scene, fraction)
            rgb = out.rgb * math.nan if scene.step == 2 else out.rgb
            return dataclasses.replace(out, rgb=rgb), cameras

        monkeypatch.setattr(one_step, "render_views", render_views)
    elif place == "reward":
        call, calls = ToyboxReward.__call__, iter(range(10**6))

        def judged(self, images, prompts):
            found = call(self, images, prompts)
            return found * math.nan if next(calls) == 2 * 2 else found  # ranked and logged in turn

        monkeypatch.setattr(ToyboxReward, "__call__", judged)
    else:
        inside = encoding.inject

        def inject(x, value, *rest):
            inside(x, value * math.inf if x.step == 2 else value, *rest)

        count = iter(range(10**6))

        def numbered(x, value, *rest):
            x.step = next(count)
            inject(x, value, *rest)

        monkeypatch.setattr(encoding, "inject", numbered)


@pytest.mark.parametrize("place", ["render", "prediction", "reward", "gradient"])
def test_what_is_not_finite_anywhere_skips_its_step_and_says_where(monkeypatch, tmp_path, place):
    given = config(
        preference="dpo",
        guidance=UNCLAMPED,
        output=OutputOptions(frames=0, size=16, checkpoint_seconds=0, reward_every=1),
    )
    spoil(monkeypatch, place)
    result = start(tmp_path, given)
    rows = read_metrics(result.run.metrics)
    assert [row["skipped"] for row in rows] == [0, 0, 1, *[0] * (STEPS - 3)]
    said = {name for name in rows[2] if name.startswith("skipped/")}
    assert (f"skipped/{place}" in said) == (place != "gradient")
    assert not any(name.startswith("skipped/") for row in rows[:2] + rows[3:] for name in row)
    assert all(v.isfinite().all() for v in tensors(result.run).values())


def test_skipped_steps_are_named_in_the_record(monkeypatch, tmp_path):
    broken_at(monkeypatch, {2, 3})
    result = start(tmp_path, config(guidance=UNCLAMPED))
    assert result.status == "done"
    assert run_folder.read(result.run)["skipped"] == 2
    monkeypatch.undo()
    assert "skipped" not in run_folder.read(start(tmp_path / "whole", config()).run)


def test_a_run_without_a_step_that_counted_is_not_done(monkeypatch, tmp_path):
    """However short it is: patience would not have run out. It says what was not finite, and what to do."""
    broken_at(monkeypatch, range(100))
    with pytest.raises(
        loop.Diverged, match=f"none of {STEPS} steps counted: the prior's predictions are not"
    ):
        start(tmp_path, config(guidance=UNCLAMPED, patience=1000))
    run = only_run(tmp_path)
    assert run_folder.read(run)["status"] == "diverged"
    assert not run.splats_ply.exists()
    assert all(v.isfinite().all() for v in tensors(run).values())


def test_the_advice_is_about_what_was_not_finite(monkeypatch, tmp_path):
    broken_at(monkeypatch, range(100))
    words = "no finite gradient in 3 steps.*predictions are not finite: try --prior.dtype float32"
    with pytest.raises(loop.Diverged, match=words):
        start(tmp_path / "prediction", config(guidance=UNCLAMPED, patience=3))
    monkeypatch.undo()

    inject = encoding.inject
    monkeypatch.setattr(encoding, "inject", lambda x, value, *rest: inject(x, value * math.nan, *rest))
    with pytest.raises(loop.Diverged, match=r"no finite gradient.*lower --lr\.means or --guidance\.scale"):
        start(tmp_path / "gradient", config(patience=3))


def test_what_learns_beside_the_splats_stays_finite_too(monkeypatch, tmp_path):
    for change in ({"score": "vsd"}, {"preference": "psd", "psd": PSDOptions(interval=1, t_limit=1.0)}):
        name = next(iter(change.values()))
        broken_at(monkeypatch, {4, 5, 6, 7})
        run = start(tmp_path / name, config(guidance=UNCLAMPED, **change)).run
        assert sum(row["skipped"] for row in read_metrics(run.metrics)) >= 1
        held = tensors(run)
        assert any(part.startswith(("score/", "preference/")) for part in held)
        assert all(value.isfinite().all() for value in held.values() if value.is_floating_point())
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("broken"), "failed"), (MemoryError(), "oom"), (KeyboardInterrupt(), "stopped")],
)
def test_a_run_that_raises_says_so_in_its_status(tmp_path, error, status):
    def report(progress):
        raise error

    with pytest.raises(type(error)):
        start(tmp_path, report=report)
    (folder,) = tmp_path.iterdir()
    data = run_folder.read(run_folder.open_run(folder))
    assert data["status"] == status
    assert data["error"].startswith(type(error).__name__)


def test_a_failure_of_the_last_scores_is_a_failure(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no score")

    monkeypatch.setattr(object_run, "score_final", fail)
    with pytest.raises(RuntimeError, match="no score"):
        start(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert run_folder.read(run_folder.open_run(folder))["status"] == "failed"


def test_an_error_is_forgotten_when_the_run_goes_on(tmp_path):
    def report(progress):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        start(
            tmp_path, config(output=OutputOptions(frames=0, size=16, checkpoint_seconds=1e-9)), report=report
        )
    (folder,) = tmp_path.iterdir()
    data = run_folder.read(object_run.resume(folder, command=["again"]).run)
    assert data["status"] == "done"
    assert not data.get("error")
    assert data["resumed"] == ["again"]


def test_bad_settings_leave_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"prompt|know|nearest"):
        start(tmp_path, config(prompt="a corgi"))
    with pytest.raises(ValueError, match="no reward 'toybox-mini2'"):
        start(tmp_path, config(reward=("toybox-mini2",)))
    assert not list(tmp_path.iterdir())


def test_a_run_without_penalties_works(tmp_path):
    off = RegulariseOptions(radius=0, scale=0, aspect=0, opacity=0)
    assert start(tmp_path, config(regularise=off, steps=3)).status == "done"


# Schedules


@pytest.mark.parametrize(
    ("fraction", "factor"), [(0, 1), (0.5, 1), (0.75, 0.1**0.5), (1, 0.1), (0.999999, 0.1)]
)
def test_learning_rates_fall_geometrically_in_the_second_half(fraction, factor):
    options = LearningOptions(means=1, scales=2, quats=3, opacities=4, sh=20, decay_from=0.5, final=0.1)
    found = rates(options, fraction)
    expected = {"means": 1, "scales": 2, "quats": 3, "opacities": 4, "sh0": 20, "shN": 1}
    assert found == pytest.approx({name: rate * factor for name, rate in expected.items()}, rel=1e-5)


def test_rates_that_never_fall():
    assert rates(LearningOptions(means=1, decay_from=1.0), 0.999)["means"] == 1


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75])
def test_schedules_are_fractions_of_the_run(fraction):
    """The same fraction of a short and a long run has the same times, sizes and rates."""
    found = []
    for steps in (8, 32):
        given = config(
            steps=steps,
            views=ViewOptions(count=2, size=(8, 16)),
            guidance=GuidanceOptions(times="annealed"),
        )
        models, scene = fresh(given)
        scene.step = round(fraction * steps)
        _, cameras = render_views(given, scene, fraction)
        seen = advance(given, models, scene)
        rate = {name: o.param_groups[0]["lr"] for name, o in scene.optimizers.items()}
        found.append((seen.t_max, seen.picture.shape[-1], rate))
        assert cameras.width == seen.picture.shape[-1]
    assert found[0] == found[1]
    assert found[0][1] == (8 if fraction < 0.5 else 16)


def observed(given, models, scene):
    """The first step as score and preference see it, and its cameras."""
    out, cameras = render_views(given, scene, 0.0)
    x = models.prior.encode(out.rgb)
    seen = make_moment(given, models, step=0, x=x, images=out.rgb, cameras=cameras, before=None)
    return seen, cameras


@pytest.mark.parametrize("told", [False, True])
def test_each_view_gets_the_prompt_of_its_side(told):
    """The prior always; rewards where they are told."""
    given = config(views=ViewOptions(count=8, size=(16,)), reward_options=RewardOptions(view_prompts=told))
    models, scene = fresh(given)
    moment, cameras = observed(given, models, scene)
    angles = zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    words = [view_word(*pair) for pair in angles]
    assert len(set(words)) >= 3
    texts = tuple(f"a red cube, {word} view" for word in words)
    assert moment.prompts == (texts if told else ("a red cube",) * 8)
    for condition, prompts in (
        (moment.conditions.positive, texts),
        (moment.conditions.negative, [""] * 8),
        (moment.plain().positive, ["a red cube"] * 8),
    ):
        expected = models.prior.embed(prompts)
        for name in expected:
            torch.testing.assert_close(condition[name], expected[name], rtol=1e-5, atol=1e-5)


def test_the_views_of_an_item_share_their_time():
    class Pairs(ToyboxPrior):
        views = 2

    given = config(views=ViewOptions(count=4, size=(16,)))
    net = load_models(given, "cpu").prior.net
    models = make_models(given, Pairs(net, name="pairs", camera=True))
    t = observed(given, models, new_scene(given, starting_splats(given), "cpu"))[0].t
    assert t[0] == t[1] != t[2] == t[3]


# What comes out


def make_models(given, prior):
    ensemble = RewardEnsemble(rewards=(), weights=(), options=given.reward_options)
    return assemble(given, prior, ensemble, ())


def run_scene(given, models):
    scene = new_scene(given, starting_splats(given), "cpu")
    while scene.step < given.steps:
        advance(given, models, scene)
        scene.step += 1
    return scene.splats.detach()


def image_error(splats, caption, cameras):
    """Root mean square difference to the ground truth on grey."""
    grey = torch.full((3,), 0.5)
    truth = ground_truth(parse(caption), cameras, grey).rgb
    return float((render(splats, cameras, grey).rgb.clamp(0, 1) - truth).square().mean().sqrt())


def test_splats_recover_the_object_of_an_analytic_prior():
    """Data N(ground truth of the camera, 0.1^2): SDS through the renderer finds it in unseen views."""
    caption = "a red cube with a blue front"

    def mean(cameras: Cameras):
        return 2 * ground_truth(parse(caption), cameras, torch.full((3,), 0.5)).rgb - 1

    given = config(
        prompt=caption,
        steps=120,
        reward=(),
        splats=SplatOptions(count=200, scale=0.1),
        views=ViewOptions(count=2, size=(16,), background="grey"),
        guidance=GuidanceOptions(scale=1.0),
        densify=DensifyOptions(rounds=0),
        lr=LearningOptions(means=0.012),
    )
    unseen = turntable(6, size=16, elevation=22.0)
    before = image_error(starting_splats(given), caption, unseen)
    after = image_error(
        run_scene(given, make_models(given, GaussianPrior(mean, spread=0.1))), caption, unseen
    )
    print(f"root mean square error {before:.3f} -> {after:.3f}")
    assert after < 0.06
    assert after < 0.4 * before


CHOICES = ("a red cube", "a blue sphere", "a green cone", "a yellow cylinder", "a purple torus")


@pytest.mark.parametrize("prompt", CHOICES[1:3])
def test_mini_prior_makes_the_right_object(prompt):
    """Needs trained weights: the ground truth nearest to the result is the prompt's."""
    given = config(
        prompt=prompt,
        steps=120,
        reward=(),
        splats=SplatOptions(count=200, scale=0.1),
        densify=DensifyOptions(rounds=0),
        lr=LearningOptions(means=0.012),
        guidance=dataclasses.replace(GuidanceOptions(), scale=3.0),
    )
    splats = run_scene(given, load_models(given, "cpu"))
    errors = {caption: image_error(splats, caption, turntable(6, size=16)) for caption in CHOICES}
    print({caption: round(error, 3) for caption, error in errors.items()})
    assert min(errors, key=lambda caption: errors[caption]) == prompt
