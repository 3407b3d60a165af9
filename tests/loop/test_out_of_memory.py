"""When memory runs out: half the batches until one image is left, then a checkpoint and the error."""

import dataclasses

import pytest
import torch
from analytic import GaussianPrior
from analytic_rewards import Linear, ensemble

from splatgen.config import (
    Config,
    DensifyOptions,
    GuidanceOptions,
    ImageConfig,
    ImageOptions,
    OutputOptions,
    RewardOptions,
    SplatOptions,
    ViewOptions,
    WeightedOptions,
)
from splatgen.loop import image_run, object_run
from splatgen.loop.out_of_memory import lighter, within_memory
from splatgen.loop.step import assemble
from splatgen.models.budget import BUDGETS
from splatgen.models.memory import is_out_of_memory
from splatgen.runs import checkpoint
from splatgen.runs import run_folder as runs
from splatgen.runs.metrics import read_metrics

WEIGHTED = WeightedOptions(candidates=4, top=1, bottom=1, stop=1.0)


class Small(GaussianPrior):
    """A card that holds so many images at once, after a number of calls."""

    def __init__(self, most, first=0):
        super().__init__(lambda cameras: torch.zeros(len(cameras), 3, 16, 16), spread=0.3)
        self.most, self.first, self.seen = most, first, []

    def predict(self, x_t, t, condition, cameras):
        self.seen.append(len(x_t))
        if len(self.seen) > self.first and len(x_t) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().predict(x_t, t, condition, cameras)


def config(**change):
    values = {
        "prompt": "a red cube",
        "reward": (),
        "steps": 3,
        "device": "cpu",
        "guidance": GuidanceOptions(scale=3.0),
        "views": ViewOptions(count=2, size=(16,)),
        "splats": SplatOptions(count=60),
        "densify": DensifyOptions(start=0.5, stop=0.5),
        "output": OutputOptions(frames=0, size=16, checkpoint_seconds=0),
        "score": "sds",
        "preference": "weighted",
        "weighted": WEIGHTED,
    }
    return Config(**{**values, **change})


def models(prior, given):
    given = dataclasses.replace(given, reward=("given",))
    return assemble(given, prior, ensemble(Linear(), batch=given.reward_options.batch), ())


def generate(folder, prior, **change):
    given = config(reward=("toybox",), **change)
    return object_run.generate(given, out=folder, command=["test"], models=models(prior, given))


def run_folder(folder):
    return runs.open_run(next(folder.iterdir()))


def test_half_the_batch_is_enough_and_the_run_goes_on(tmp_path):
    prior = Small(most=8)  # a step asks for 4 candidates x 2 views x 2 prompts = 16
    result = generate(tmp_path, prior)
    assert result.status == "done"
    data = runs.read(result.run)
    assert data["halved_at_step"] == 0
    assert prior.seen == [16, 8, 8, 8, 8, 8, 8]
    assert [row["guidance/model_calls"] for row in read_metrics(result.run.metrics)] == [16, 16, 16]


def test_a_step_that_was_taken_in_halves_is_the_same_step(tmp_path):
    whole, halves = generate(tmp_path / "a", Small(most=100)), generate(tmp_path / "b", Small(most=8))
    a, b = (checkpoint.load_latest(r.run.checkpoints).parts["splats"] for r in (whole, halves))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-6)


def test_when_one_image_is_too_much_a_checkpoint_of_the_last_whole_step_is_left(tmp_path):
    prior = Small(most=0, first=2)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        generate(tmp_path, prior)
    assert prior.seen == [16, 16, 16, 8, 4, 2, 1]  # two steps, the third, and its parts
    run = run_folder(tmp_path)
    assert runs.read(run)["status"] == "oom"
    assert checkpoint.load_latest(run.checkpoints).step == 2
    given = config(reward=("toybox",))
    resumed = object_run.resume(run.folder, command=["test"], models=models(Small(most=16), given))
    assert resumed.status == "done"
    straight = generate(tmp_path / "straight", Small(most=16)).run
    a, b = (checkpoint.load_latest(r.checkpoints).parts["splats"] for r in (straight, run))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_memory_that_gets_less_in_the_middle_of_a_run_is_met_with_smaller_parts(tmp_path):
    class Shrinking(Small):
        def predict(self, x_t, t, condition, cameras):
            self.most = 8 if len(self.seen) < 4 else 2
            return super().predict(x_t, t, condition, cameras)

    prior = Shrinking(most=8)
    result = generate(tmp_path, prior)
    assert result.status == "done"
    assert runs.read(result.run)["halved_at_step"] == 0
    assert prior.seen[:7] == [16, 8, 8, 8, 8, 4, 2]
    assert prior.seen[-1] == 2


def test_one_item_at_a_time_cannot_be_halved():
    prior = Small(most=100)
    given = config(guidance=GuidanceOptions(scale=3.0, batch=1), reward_options=RewardOptions(batch=1))
    single = models(prior, given)
    single = dataclasses.replace(single, encode=1)
    single.denoiser.learning = 1
    assert lighter(single) is None
    more = lighter(models(prior, dataclasses.replace(given, guidance=GuidanceOptions(batch=7))))
    assert (more.denoiser.options.batch, more.ensemble.options.batch, more.halved) == (3, 1, True)
    assert (more.denoiser.learning, more.encode) == (1, 1)  # of two prompts of one view


def test_other_errors_pass_through_at_once():
    calls = []

    def fail(given):
        calls.append(given)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        within_memory(fail, models(Small(most=1), config()), lambda: None)
    assert len(calls) == 1


def test_what_learns_is_shared_with_the_lighter_models():
    heavy = models(Small(most=100), config())
    heavy.denoiser.largest = 16
    less = lighter(heavy)
    assert less.score is heavy.score
    assert less.preference is heavy.preference


def test_a_2d_run_is_halved_too_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    prior = Small(most=4)
    given = ImageConfig(
        prompt="a red cube",
        steps=2,
        device="cpu",
        preference="weighted",
        weighted=WEIGHTED,
        image=ImageOptions(space="pixels", checkpoint_seconds=0),
    )
    loaded = models(prior, given)
    monkeypatch.setattr(image_run, "load_models", lambda *_: loaded)
    result = image_run.generate(given, out=tmp_path, command=["test"])
    assert runs.read(result.run)["halved_at_step"] == 0
    assert prior.seen[:3] == [8, 4, 4]
    prior.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        image_run.generate(given, out=tmp_path / "more", command=["test"])
    assert checkpoint.load_latest(run_folder(tmp_path / "more").checkpoints).step == 0


@pytest.mark.parametrize("name", [*BUDGETS])
def test_a_budget_bounds_what_goes_through_at_once_and_frees_the_text_encoders(name):
    freed = []

    class Counting(Small):
        def release(self):
            freed.append("prior")

    class Reward(Linear):
        def release(self):
            freed.append("reward")

    prior, budget = Counting(most=100), BUDGETS[name]
    given = config(budget=name, reward=("given",))
    held = assemble(given, prior, ensemble(Reward()), (Reward(name="watching"),))
    assert held.denoiser.options.batch == budget.denoise
    assert held.ensemble.options.batch == budget.decode
    assert (held.denoiser.learning, held.encode) == (budget.learning, budget.encode)
    assert freed == (["prior", "reward", "reward"] if budget.free_text else [])
    own = dataclasses.replace(given, guidance=GuidanceOptions(batch=3), reward_options=RewardOptions(batch=5))
    held = assemble(own, prior, ensemble(Linear()), ())
    assert (held.denoiser.options.batch, held.ensemble.options.batch) == (3, budget.decode)


def test_a_prompt_that_a_reward_cannot_read_shows_before_the_run_folder_is_made(tmp_path):
    class Picky(Linear):
        def prepare(self, prompts):
            raise ValueError(f"cannot read {prompts[0]!r}")

    given = config(reward=("given",))
    with pytest.raises(ValueError, match="cannot read 'a red cube'"):
        assemble(given, Small(most=100), ensemble(Picky()), ())


def test_want_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
