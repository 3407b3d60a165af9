"""What each view is told: words, blends of neighbours, and what to keep away from."""

import math

import pytest
import torch
from analytic import GroupPrior
from hypothesis import given
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions
from splatgen.guidance.conditioning import blend, conditions, embed_prompt, mix, repeat, take
from splatgen.scene.cameras import orbit
from splatgen.scene.view_prompts import VIEW_WORDS, view_word

PRIOR = GroupPrior()
TOLD, DULL = embed_prompt(PRIOR, "a cat"), PRIOR.embed(["dull"])
COLOURS = dict(zip(VIEW_WORDS, TOLD.views["colour"], strict=True))


def views(azimuths, elevations=None):
    azimuth = torch.tensor(azimuths)
    return orbit(azimuth, torch.zeros_like(azimuth) if elevations is None else elevations, size=4)


def told(cameras, **options):
    return conditions(TOLD, DULL, cameras, GuidanceOptions(**options))


def decay(a, b, c, r):
    return a * math.exp(-b * r) + c


# The blend


@pytest.mark.parametrize(
    ("azimuth", "words", "share"),
    [
        (0.0, ("front", "side"), 1.0),
        (45.0, ("front", "side"), 0.5),
        (-45.0, ("front", "side"), 0.5),
        (330.0, ("front", "side"), 2 / 3),
        (90.0, ("side", "back"), 1.0),
        (-135.0, ("side", "back"), 0.5),
        (180.0, ("side", "back"), 0.0),
        (540.0, ("side", "back"), 0.0),
    ],
)
def test_a_view_lies_between_two_words(azimuth, words, share):
    found = blend(azimuth, 0.0)
    assert found.words == words
    assert found.share == pytest.approx(share)


@given(st.floats(-720, 720), st.floats(-90, 52))
def test_weights_follow_the_published_constants_and_are_never_above_zero(azimuth, elevation):
    """Perp-Neg's f(r) = a exp(-b r) + c for front-side and side-back neighbours."""
    found = blend(azimuth, elevation)
    turn = abs(math.remainder(azimuth, 360.0))
    if turn < 90:
        r = 1 - turn / 90
        expected = -decay(4, 0.5, -2.426, r), -decay(4, 0.5, -2.426, 1 - r)
        assert found.away == ("front", "side")
    else:
        r = 2 - turn / 90
        expected = -decay(1, 0.5, -0.606, r), -decay(1, 0.5, 0.967, r)
        assert found.away == ("side", "front")
    assert found.weights == pytest.approx(expected, abs=1e-9)
    assert max(found.weights) <= 0


def test_the_front_keeps_away_from_the_side_and_the_back_from_both():
    front, back = blend(0.0, 0.0), blend(180.0, 0.0)
    assert front.weights == pytest.approx((0.0, -1.574), abs=2e-4)
    assert back.weights == pytest.approx((-0.394, -1.967), abs=2e-4)


@given(st.floats(-360, 360), st.floats(52.001, 90))
def test_from_overhead_nothing_is_kept_away(azimuth, elevation):
    found = blend(azimuth, elevation)
    assert (found.words, found.share) == (("overhead", "overhead"), 1.0)
    assert found.weights == (0.0, 0.0)


def test_the_blend_is_continuous_and_symmetric_in_the_azimuth():
    azimuths = torch.linspace(-200, 200, 4001)  # steps of 0.1 degree
    colour = told(views(azimuths.tolist()), view_prompts="blend").positive["colour"]
    longest = max(float((COLOURS[a] - COLOURS[b]).norm()) for a in COLOURS for b in COLOURS)
    assert colour.diff(dim=0).norm(dim=1).max() < 1.5 * longest * 0.1 / 90
    torch.testing.assert_close(colour, colour.flip(0), rtol=0, atol=1e-5)


def test_the_weights_are_nearly_continuous_where_the_neighbours_change():
    """At the side; each word's own weight, whose order differs between the two halves."""
    before, after = blend(89.999, 0.0), blend(90.001, 0.0)
    for word in ("front", "side"):
        weights = [dict(zip(b.away, b.weights, strict=True))[word] for b in (before, after)]
        assert weights[0] == pytest.approx(weights[1], abs=2e-3)


def test_whole_views_are_the_words_themselves():
    cameras = views([0.0, 90.0, 180.0, 270.0, 10.0], torch.tensor([0.0, 0.0, 0.0, 0.0, 80.0]))
    colour = told(cameras, view_prompts="blend").positive["colour"]
    for row, word in zip(colour, ("front", "side", "back", "side", "overhead"), strict=True):
        torch.testing.assert_close(row, COLOURS[word])


# Rows


def test_words_are_told_by_view():
    cameras = views([0.0, 44.0, 100.0, 181.0, 300.0, 0.0], torch.tensor([0.0, 0, 0, 0, 0, 60]))
    found = told(cameras, view_prompts="words")
    words = [view_word(*pair) for pair in zip(cameras.azimuth, cameras.elevation, strict=True)]
    assert words == ["front", "front", "side", "back", "side", "overhead"]
    assert torch.equal(found.positive["colour"], torch.stack([COLOURS[word] for word in words]))
    assert torch.equal(found.negative["colour"], DULL["colour"].expand(6, 3))
    assert found.away == ()
    assert found.away_weights is None


def test_without_words_all_views_get_the_prompt_itself():
    found = told(views([0.0, 180.0]), view_prompts="none")
    assert torch.equal(found.positive["colour"], PRIOR.embed(["a cat"] * 2)["colour"])


def test_what_to_keep_away_from_has_a_row_and_a_weight_for_every_view():
    cameras = views([20.0, 100.0, 0.0], torch.tensor([0.0, 0.0, 80.0]))
    found = told(cameras, view_prompts="blend", perp_neg=True)
    blends = [blend(a, e) for a, e in ((20.0, 0.0), (100.0, 0.0), (0.0, 80.0))]
    for n in range(2):
        expected = torch.stack([COLOURS[b.away[n]] for b in blends])
        assert torch.equal(found.away[n]["colour"], expected)
        assert found.away_weights[n].tolist() == pytest.approx([b.weights[n] for b in blends], abs=1e-5)


def test_rows_can_be_taken_in_any_order_and_more_than_once():
    found = told(views([20.0, 100.0, 200.0]), view_prompts="blend", perp_neg=True)
    rows = torch.tensor([2, 0, 2])
    some = found.take(rows)
    assert torch.equal(some.positive["colour"], found.positive["colour"][rows])
    assert torch.equal(some.negative["colour"], found.negative["colour"][rows])
    assert torch.equal(some.away[1]["colour"], found.away[1]["colour"][rows])
    assert torch.equal(some.away_weights, found.away_weights[:, rows])
    assert told(views([20.0]), view_prompts="none").take(torch.tensor([0, 0])).away_weights is None


def test_what_is_no_floating_point_number_is_not_mixed():
    a = {"states": torch.ones(2, 3, 4), "mask": torch.tensor([[True, False]] * 2)}
    b = {"states": torch.zeros(2, 3, 4), "mask": torch.tensor([[True, True]] * 2)}
    found = mix(a, b, torch.tensor([0.25, 1.0]))
    assert found["states"][:, 0, 0].tolist() == [0.25, 1.0]
    assert torch.equal(found["mask"], a["mask"])


def test_a_row_is_repeated_and_taken_in_every_tensor():
    one = {"states": torch.arange(6.0).view(1, 2, 3), "pooled": torch.ones(1, 5)}
    many = repeat(one, 4)
    assert {name: tuple(value.shape) for name, value in many.items()} == {
        "states": (4, 2, 3),
        "pooled": (4, 5),
    }
    assert torch.equal(take(many, torch.tensor([3, 0]))["states"][0], one["states"][0])


def test_the_limits_of_views_are_those_of_the_options():
    cameras = views([40.0, 0.0, 140.0], torch.tensor([0.0, 56.0, 0.0]))
    own = told(cameras, view_limits=(30.0, 60.0)).positive["colour"]
    assert torch.equal(own, torch.stack([COLOURS[word] for word in ("side", "front", "side")]))
    usual = told(cameras).positive["colour"]
    assert torch.equal(usual, torch.stack([COLOURS[word] for word in ("front", "overhead", "back")]))
    high = views([0.0], torch.tensor([56.0]))
    blended = [
        told(high, view_prompts="blend", view_limits=(45.0, z)).positive["colour"][0] for z in (52.0, 60.0)
    ]
    torch.testing.assert_close(blended[0], COLOURS["overhead"])
    torch.testing.assert_close(blended[1], COLOURS["front"])


def test_the_empty_prompt_is_a_third_condition():
    null = PRIOR.embed([""])
    found = conditions(TOLD, DULL, views([0.0, 90.0]), GuidanceOptions(), null)
    assert torch.equal(found.null["colour"], null["colour"].expand(2, 3))
    assert torch.equal(found.unprompted.negative["colour"], found.null["colour"])
    assert torch.equal(found.negative["colour"], DULL["colour"].expand(2, 3))
    some = found.take(torch.tensor([1, 1, 0])).repeated(2)
    assert some.null["colour"].shape == (6, 3)
    assert told(views([0.0])).unprompted.negative is not None
