"""Training never draws what is held out, and hard negatives are wrong, whatever the picture can tell."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splatgen.worlds.shelf import sampling
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import Caption, Item, parse
from splatgen.worlds.shelf.sampling import draw, draw_unseen, hard_negatives, held_out, right

seeds = st.integers(0, 10**6)


@given(seeds)
def test_what_is_drawn_is_never_held_out_and_the_unseen_always_is(seed):
    source = random.Random(seed)
    assert not held_out(draw(source))
    unseen = draw_unseen(source)
    assert held_out(unseen)
    assert (
        str(parse(str(unseen))) == str(unseen)
        or unseen.first.color == catalogue().nouns[unseen.first.noun].color
    )


def test_what_is_drawn_has_the_shares_it_should():
    source = random.Random(0)
    found = Counter()
    for _ in range(4000):
        caption = draw(source)
        kind = "toy" if not isinstance(caption, Caption) else "pair" if caption.second else "single"
        found[kind] += 1
    assert found["toy"] / 4000 == pytest.approx(sampling.TOY_SHARE, abs=0.015)
    assert found["pair"] / 4000 == pytest.approx(sampling.PAIR_SHARE * (1 - sampling.TOY_SHARE), abs=0.03)


def test_the_held_out_set_is_the_one_the_models_were_trained_without():
    """Its hash is a promise: a changed rule would turn unseen captions into seen ones."""
    colors = sampling.held_out_colors()
    assert len(colors) == max(16, 9 * len(sampling.recolourable()) // 12)
    assert {("armchair", "orange"), ("armchair", "pink"), ("castle", "purple")} <= colors
    assert held_out(parse("a cow next to a fox"))
    assert held_out(parse("a cow on top of a stag"))
    assert not held_out(parse("a cow on top of a fox"))
    pairs = [Caption(Item(a), r, Item(b)) for a in list(catalogue().nouns)[:40] for r in sampling.RELATIONS
             for b in list(catalogue().nouns)[40:80]]  # fmt: skip
    share = sum(map(sampling.held_out_pair, pairs)) / len(pairs)
    assert share == pytest.approx(sampling.HELD_OUT_PAIRS, abs=0.01)


@given(seeds, st.booleans())
def test_hard_negatives_are_wrong_different_and_as_many_as_asked(seed, ordered):
    source = random.Random(seed)
    caption = draw(source)
    found = hard_negatives(caption, source, 5, order_visible=ordered)
    assert len(set(found)) == len(found) == 5
    assert not any(held_out(other) for other in found)
    assert not any(right(other, caption, order_visible=ordered) for other in found)


def test_places_exchanged_are_among_them_where_they_can_be_told():
    caption, mirrored = parse("a castle next to a cactus"), parse("a cactus next to a castle")
    assert not held_out(mirrored)
    for seed in range(5):
        assert mirrored in hard_negatives(caption, random.Random(seed), 3, order_visible=True)
        assert mirrored not in hard_negatives(caption, random.Random(seed), 3, order_visible=False)


@pytest.mark.parametrize(
    ("text", "shown", "ordered", "expected"),
    [
        ("a taxi", "a taxi", True, True),
        ("a couch", "a red couch", True, True),  # of a red couch, "a couch" is no lie
        ("a red couch", "a couch", True, False),
        ("a blue couch", "a couch", True, True),  # it is blue
        ("a red couch", "a green couch", True, False),
        ("a frog next to a crab", "a crab next to a frog", True, False),
        ("a frog next to a crab", "a crab next to a frog", False, True),
        ("a frog on a crab", "a crab on a frog", False, False),
        ("a frog", "a frog next to a crab", True, False),
        ("a red cube", "a red cube", True, True),
        ("a red cube", "a taxi", True, False),
    ],
)
def test_what_is_right_of_a_picture(text, shown, ordered, expected):
    color = None if shown != "a green couch" else "green"
    picture = parse(shown) if color is None else Caption(Item("couch", color))
    assert right(parse(text), picture, order_visible=ordered) is expected


def test_viewpoints_are_all_around_and_a_few_from_above_and_below():
    azimuth, elevation = sampling.viewpoints(torch.Generator().manual_seed(0), 4000)
    assert azimuth.min() >= 0
    assert azimuth.max() <= 360
    assert (elevation > 50).float().mean() == pytest.approx(0.1, abs=0.02)
    assert (elevation < -15).float().mean() == pytest.approx(0.1, abs=0.02)
    assert elevation.min() >= -50
    assert elevation.max() <= 80
    histogram = torch.histc(azimuth, 8)
    assert histogram.min() > 400
