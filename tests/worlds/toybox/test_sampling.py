"""What training draws, and captions that are wrong in a single respect."""

import random
from dataclasses import replace

import pytest

from splatgen.worlds.toybox import grammar, sampling
from splatgen.worlds.toybox.grammar import Caption, parse

EXAMPLES = [
    "a green cube",
    "a blue sphere with a white front",
    "a red and blue striped cone",
    "a red and blue checkered torus",
    "a red cube on top of a blue sphere",
    "a yellow cone next to a cyan cube",
    "a red cube next to a red cube",
]


def test_training_never_draws_a_held_out_caption_or_pair():
    drawn = sampling.draw(random.Random(0), 20_000)
    assert not any(map(grammar.held_out, drawn))
    pairs = {(item.color, item.shape) for caption in drawn for item in caption.items}
    assert not pairs & grammar.HELD_OUT_PAIRS
    assert len(pairs) == 36  # and every other pair


def test_evaluation_draws_nothing_else():
    assert all(map(grammar.held_out, sampling.draw(random.Random(0), 2_000, unseen=True)))


def test_the_split_is_disjoint_and_complete():
    seen, unseen = sampling.captions_by_kind(False), sampling.captions_by_kind(True)
    for kind in sampling.KIND_SHARE:
        assert seen[kind]
        assert unseen[kind]
        assert not set(seen[kind]) & set(unseen[kind])
    together = [c for pool in (seen, unseen) for captions in pool.values() for c in captions]
    assert sorted(map(str, together)) == sorted(map(str, grammar.all_captions()))


def test_kinds_come_by_their_shares():
    assert sum(sampling.KIND_SHARE.values()) == pytest.approx(1)
    kinds = [grammar.kind(c) for c in sampling.draw(random.Random(1), 20_000)]
    for kind, share in sampling.KIND_SHARE.items():
        assert kinds.count(kind) / 20_000 == pytest.approx(share, abs=0.015)


def test_the_same_source_draws_the_same():
    assert sampling.draw(random.Random("1/2"), 50) == sampling.draw(random.Random("1/2"), 50)


def test_the_view_is_appended():
    assert sampling.with_view("a red cube", None) == "a red cube"
    assert sampling.with_view("a red cube", "back") == "a red cube back view"


def attributes(caption):
    items = [(i.color, i.shape, i.pattern, i.color2, i.front) for i in caption.items]
    return items, caption.relation


def respects(a, b):
    """In how many respects two captions differ; exchanging two things counts as one."""
    (first, relation), (second, other) = attributes(a), attributes(b)
    if len(first) != len(second):
        # An object more or less; a style cannot stand beside another object and goes with it.
        longer, shorter = (a, b) if len(first) > len(second) else (b, a)
        plain = replace(shorter.first, pattern=None, color2=None, front=None)
        return 1 if plain in longer.items else 2
    if sorted(map(str, first)) == sorted(map(str, second)):
        return 1  # the same objects in exchanged places, or another relation
    if len(first) == 2 and relation == other and swapped(a) == b:
        return 1
    if len(first) == 1:
        x, y = a.first, b.first
        styles = (x.pattern, x.color2, x.front) != (y.pattern, y.color2, y.front)
        if x.front and y == replace(x, color=x.front, front=x.color):
            return 1
        return (x.color != y.color) + (x.shape != y.shape) + styles
    return (relation != other) + sum(
        p != q for i, j in zip(first, second, strict=True) for p, q in zip(i, j, strict=True)
    )


def swapped(caption):
    x, y = caption.first, caption.second
    return Caption(replace(x, color=y.color), caption.relation, replace(y, color=x.color))


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("text", EXAMPLES)
def test_hard_negatives_are_different_supported_and_off_in_one_respect(text, visible):
    caption = parse(text)
    for seed in range(20):
        found = sampling.hard_negatives(caption, random.Random(seed), 8, front_visible=visible)
        assert len(set(found)) == 8
        assert caption not in found
        for other in found:
            assert grammar.supported(other)
            assert respects(caption, other) == 1, f"{caption} / {other}"


def test_every_training_caption_has_enough_hard_negatives():
    for n, caption in enumerate(sampling.draw(random.Random(3), 300)):
        visible = n % 2 == 0
        found = sampling.hard_negatives(caption, random.Random(n), 8, front_visible=visible)
        assert len(set(found)) == 8
        assert caption not in found


@pytest.mark.parametrize("text", ["a blue sphere with a white front", "a blue sphere"])
def test_from_behind_a_front_is_no_difference(text):
    caption = parse(text)
    for seed in range(30):
        for other in sampling.hard_negatives(caption, random.Random(seed), 8, front_visible=False):
            assert replace(other, first=replace(other.first, front=None)) != parse("a blue sphere")


def test_exchanged_colours_of_a_pattern_are_no_difference():
    caption = parse("a red and blue striped cone")
    for seed in range(30):
        found = sampling.hard_negatives(caption, random.Random(seed), 8, front_visible=True)
        assert parse("a blue and red striped cone") not in found


def test_too_many_are_refused():
    with pytest.raises(RuntimeError, match="could not find 200 hard negatives for a green cube"):
        sampling.hard_negatives(parse("a green cube"), random.Random(0), 200, front_visible=True)
