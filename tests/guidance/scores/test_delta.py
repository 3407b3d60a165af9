"""The difference of two scores: nothing to do where there is nothing to edit."""

import pytest
import torch
from analytic import ConstantPrior, GroupPrior, moment, normal, seen

from splatgen.config import GuidanceOptions, SDIOptions
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import SDI, SDS, Delta
from splatgen.guidance.scores.base import Noised

BASES = [SDS(), SDI(SDIOptions())]
OPTIONS = GuidanceOptions(scale=7.5, clamp=False)


def value(step, score):
    return gradient(step, score, NoPreference(), None).value


def edit(prior, x, source, prompt="a", was="a", options=OPTIONS):
    before = seen(prior, source, was, options=options)
    return moment(prior, x, 0.6, options=options, prompt=prompt, source=before)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "options",
    [OPTIONS, GuidanceOptions(scale=3.0, clamp=False, view_prompts="blend", perp_neg=True)],
)
def test_a_source_like_the_target_gives_exactly_nothing(base, options):
    x = normal("x")
    step = edit(GroupPrior(1), x, x, options=options)
    assert torch.equal(value(step, Delta(base)), torch.zeros_like(x))


class Told(SDS):
    """SDS with a noise that is told."""

    def __init__(self, noise):
        self.noise = noise

    def noises(self, moment, count):
        return Noised(noise=self.noise)


def test_it_is_the_difference_of_two_steps_of_sds_with_one_noise():
    prior, x, source = GroupPrior(2), normal("x"), normal("source")
    noise = Told(normal("n", 1, 2, 3, 6, 6))
    found = value(edit(prior, x, source, "a red cat", "a dog"), Delta(noise))
    target, start = (
        value(moment(prior, z, 0.6, options=OPTIONS, prompt=p), noise)
        for z, p in ((x, "a red cat"), (source, "a dog"))
    )
    torch.testing.assert_close(found, target - start, rtol=1e-12, atol=1e-12)
    assert found.abs().max() > 0.1


@pytest.mark.parametrize("base", BASES)
def test_another_prompt_or_another_picture_gives_something(base):
    x = normal("x")
    words = value(edit(GroupPrior(1), x, x, "a red cat"), Delta(base))
    picture = value(edit(GroupPrior(1), x, x + 0.5), Delta(base))
    assert words.abs().max() > 0.1
    assert picture.abs().max() > 0.01


@pytest.mark.parametrize("base", BASES)
def test_a_denoiser_that_sees_no_difference_makes_none(base):
    step = edit(ConstantPrior(0.7), normal("x"), normal("source"), "a red cat", "a dog")
    assert torch.equal(value(step, Delta(base)), torch.zeros(2, 3, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("base", BASES)
def test_times_and_weights_are_those_of_the_score_inside(base):
    assert (Delta(base).times, Delta(base).weighting) == (base.times, base.weighting)


def test_four_images_a_view_go_through_the_denoiser():
    prior = GroupPrior(1)
    step = edit(prior, normal("x"), normal("source"))
    assert gradient(step, Delta(SDS()), NoPreference(), None).model_calls == prior.calls == 4 * 2


def test_without_a_source_it_says_so():
    with pytest.raises(ValueError, match="compares with a source: this run has none"):
        value(moment(GroupPrior(1), normal("x"), 0.5), Delta(SDS()))
