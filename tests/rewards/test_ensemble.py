"""Several rewards as one: units, weights, parts, and rewards that only watch."""

import math

import pytest
import torch
from analytic_rewards import Linear, Near, ensemble, image
from hypothesis import given, settings
from hypothesis import strategies as st

few = settings(max_examples=25)
RAW = torch.tensor([[1.0, 2.0, 6.0], [10.0, 40.0, 10.0]], dtype=torch.float64)[..., None]  # [R, K, 1]
TWO = (Linear(mean=2.0, spread=0.5), Near(mean=10.0, spread=20.0))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_a_single_reward_is_raw_and_several_are_standard():
    assert ensemble(TWO[0]).units == "raw"
    assert ensemble(*TWO).units == "standard"
    assert ensemble(*TWO, units="raw").units == "raw"
    assert ensemble(TWO[0], units="candidates").units == "candidates"


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("raw", column(2 * 1 - 3 * 10, 2 * 2 - 3 * 40, 2 * 6 - 3 * 10)),
        ("standard", column(2 * -2 - 3 * 0, 2 * 0 - 3 * 1.5, 2 * 8 - 3 * 0)),
    ],
)
def test_the_sum_is_weighted_in_its_units(units, expected):
    """(1 - 2) / 0.5 = -2 and so on; a negative weight turns a reward."""
    p = ensemble(*TWO, weights=(2.0, -3.0), units=units)
    torch.testing.assert_close(p.ranked(RAW), expected)
    torch.testing.assert_close(p.fixed(RAW), expected)


def test_units_of_candidates_by_hand():
    """1, 2, 6 have mean 3 and variance 14/3; 10, 40, 10 have mean 20 and variance 200."""
    first = column(-2, -1, 3) / math.sqrt(14 / 3)
    second = column(-10, 20, -10) / math.sqrt(200)
    p = ensemble(*TWO, weights=(2.0, -3.0), units="candidates")
    torch.testing.assert_close(p.ranked(RAW), 2 * first - 3 * second, rtol=1e-6, atol=1e-6)


@few
@given(st.floats(0.01, 100), st.floats(-100, 100))
def test_units_of_candidates_do_not_see_a_rewards_scale_or_zero(scale, zero):
    p = ensemble(*TWO, units="candidates")
    moved = torch.cat([scale * RAW[:1] + zero, RAW[1:]])
    torch.testing.assert_close(p.ranked(moved), p.ranked(RAW), rtol=1e-4, atol=1e-4)


def test_every_item_has_units_of_its_own():
    both = torch.cat([RAW, 5 * RAW + 7], dim=-1)  # [R, K, 2]
    found = ensemble(*TWO, units="candidates").ranked(both)
    torch.testing.assert_close(found[:, 0], found[:, 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_reward_does_not_spoil_the_units_of_the_others(bad):
    three = torch.cat([RAW, torch.full((2, 1, 1), bad)], dim=1)
    p = ensemble(*TWO, units="candidates")
    found = p.ranked(three)
    torch.testing.assert_close(found[:3], p.ranked(RAW))
    assert not found[3].isfinite().any()


def test_candidates_that_are_alike_get_zero():
    p = ensemble(*TWO, units="candidates")
    assert p.ranked(torch.full((2, 4, 1), 0.3)).abs().max() < 1e-6


@pytest.mark.parametrize(("batch", "parts"), [(0, [7]), (1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (99, [7])])
def test_parts_give_what_the_whole_gives(batch, parts):
    reward, images = Linear(), image("pictures", (7, 3, 4, 4)).sigmoid()
    whole = ensemble(Linear()).each(images, ("a",) * 7)
    found = ensemble(reward, batch=batch).each(images, ("a",) * 7)
    assert reward.batches == parts
    torch.testing.assert_close(found, whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("batch", "parts"), [(1, [4, 4, 4]), (6, [4, 4, 4]), (9, [8, 4])])
def test_views_that_are_judged_together_stay_together(batch, parts):
    reward, images = Linear(views=4), image("pictures", (12, 3, 4, 4))
    ensemble(reward, batch=batch).each(images, ("a",) * 12)
    assert reward.batches == parts


def test_prompts_go_with_their_images():
    seen = []

    class Reading(Linear):
        def __call__(self, images, prompts):
            seen.extend(zip(images[:, 0, 0, 0].tolist(), prompts, strict=True))
            return super().__call__(images, prompts)

    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    ensemble(Reading(), batch=2).each(images, tuple("abcde"))
    assert seen == list(zip([0.0, 1.0, 2.0, 3.0, 4.0], "abcde", strict=True))


def test_scores_are_differentiable():
    images = image("pictures", (2, 3, 4, 4)).requires_grad_()
    p = ensemble(*TWO, weights=(1.0, 2.0))
    p.fixed(p.each(images, ("a", "a"))).sum().backward()
    linear, near = TWO
    expected = (
        linear.picture(images) / 0.5 / 48 - 2.0 / 20.0 * 2 * (images - near.picture(images)).detach() / 48
    )
    torch.testing.assert_close(images.grad, expected)
