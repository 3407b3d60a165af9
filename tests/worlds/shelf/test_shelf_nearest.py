"""Exact pictures are nearest to their own caption, and those of a wrong one are not."""

import pytest

from splatgen.worlds.shelf import nearest
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import parse
from splatgen.worlds.shelf.sampling import right

SIDE = 24


@pytest.fixture(autouse=True)
def cold(shelf_of_boxes):
    """The pictures of other tests are of other models."""
    nearest.alternatives.cache_clear()
    yield
    nearest.alternatives.cache_clear()


@pytest.mark.parametrize("text", ["a cow on top of a taxi", "a frog next to a red couch", "a red cube"])
def test_the_truth_is_right_and_what_is_wrong_is_not(text):
    """Noise that leaves a picture nearest to itself changes no answer."""
    caption = parse(text)
    wrong = nearest.likely_wrong(caption)
    pictures = nearest.alternatives(caption, SIDE)
    assert len(pictures) == 1 + len(wrong)
    assert nearest.nearest_right(pictures[0], caption, size=SIDE)
    assert nearest.nearest_right(0.7 * pictures[0] + 0.3 * pictures[1], caption, size=SIDE)
    for n in range(1, len(pictures)):
        assert not nearest.nearest_right(pictures[n], caption, size=SIDE), wrong[n - 1]


def test_a_decision_is_of_all_views_together():
    """Right in most views is wrong where the others outweigh them."""
    caption = parse("a cow on top of a taxi")
    pictures = nearest.alternatives(caption, SIDE)
    far = int((pictures[1:] - pictures[0]).square().mean((1, 2, 3, 4)).argmax()) + 1
    mixed = pictures[0].clone()
    mixed[:2] = pictures[far, :2]
    assert nearest.nearest_right(mixed, caption, size=SIDE)
    mixed[2:6] += 4.0 * (pictures[far, 2:6] - pictures[0, 2:6])
    assert not nearest.nearest_right(mixed, caption, size=SIDE)


def test_wrong_captions_differ_in_one_respect():
    caption = parse("a cow next to a red couch")
    found = nearest.likely_wrong(caption)
    assert len(set(found)) == len(found)
    assert not any(right(other, caption) for other in found)
    texts = {str(other) for other in found}
    assert {"a red couch next to a cow", "a cow on top of a red couch", "a cow"} <= texts
    assert {"a cow next to a blue couch", "a dog next to a red couch"} <= texts
    groups = {noun.name: noun.group for noun in catalogue().nouns.values()}
    assert {groups[item.noun] for other in found for item in other.items} == {groups["cow"], groups["couch"]}
