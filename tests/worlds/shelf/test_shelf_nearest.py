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
    pictures = nearest.alternatives(caption, SIDE)
    assert 5 < len(pictures) <= 1 + len(nearest.likely_wrong(caption))
    assert nearest.share_ahead(pictures[0], caption, size=SIDE) == 1
    assert nearest.share_ahead(0.7 * pictures[0] + 0.3 * pictures[1], caption, size=SIDE) == 1
    for n in range(1, len(pictures)):
        assert nearest.share_ahead(pictures[n], caption, size=SIDE) < 1, n


def test_what_cannot_be_told_apart_is_no_question(monkeypatch):
    """A mean squared difference of 30 dB, as in the toybox."""
    caption = parse("a red couch")
    pictures = nearest.alternatives(caption, SIDE)
    differences = (pictures[1:] - pictures[0]).square().mean((1, 2, 3, 4))
    assert float(differences.min()) > nearest.VISIBLE
    monkeypatch.setattr(nearest, "VISIBLE", float(differences.median()))
    nearest.alternatives.cache_clear()
    fewer = nearest.alternatives(caption, SIDE)
    assert len(fewer) == 1 + int((differences > differences.median()).sum()) < len(pictures)
    assert (fewer[0] == pictures[0]).all()


def test_a_decision_is_of_all_views_together():
    """Right in most views is wrong where the others outweigh them."""
    caption = parse("a cow on top of a taxi")
    pictures = nearest.alternatives(caption, SIDE)
    far = int((pictures[1:] - pictures[0]).square().mean((1, 2, 3, 4)).argmax()) + 1
    mixed = pictures[0].clone()
    mixed[:2] = pictures[far, :2]
    assert nearest.share_ahead(mixed, caption, size=SIDE) == 1
    mixed[2:6] += 4.0 * (pictures[far, 2:6] - pictures[0, 2:6])
    assert nearest.share_ahead(mixed, caption, size=SIDE) < 1


def test_the_share_counts_the_captions_that_are_farther():
    """What lies between a wrong picture and the right one, nearer to the wrong one, is behind that one."""
    caption = parse("a cow on top of a taxi")
    pictures = nearest.alternatives(caption, SIDE)
    near = int((pictures[1:] - pictures[0]).square().mean((1, 2, 3, 4)).argmin()) + 1
    images = 0.45 * pictures[0] + 0.55 * pictures[near]
    errors = [float((p - images).square().mean()) for p in pictures]
    behind = sum(error <= errors[0] for error in errors[1:])
    assert behind >= 1
    expected = 1 - behind / (len(pictures) - 1)
    assert nearest.share_ahead(images, caption, size=SIDE) == pytest.approx(expected)


def test_without_nouns_only_the_binding_is_asked():
    """Another thing in the right place and colour is forgiven; another colour is not."""
    caption = parse("a cow next to a red couch")
    every, asked = nearest.likely_wrong(caption), nearest.likely_wrong(caption, nouns=False)
    assert set(asked) < set(every)
    assert all({item.noun for item in other.items} <= {"cow", "couch"} for other in asked)
    pictures = nearest.alternatives(caption, SIDE, False)
    assert nearest.share_ahead(pictures[0], caption, nouns=False, size=SIDE) == 1
    for n in range(1, len(pictures)):
        assert nearest.share_ahead(pictures[n], caption, nouns=False, size=SIDE) < 1
    truth = nearest.alternatives(caption, SIDE)
    sibling = next(p for p in truth if not any((p == q).all() for q in pictures))
    near = 0.4 * truth[0] + 0.6 * sibling
    assert nearest.share_ahead(near, caption, size=SIDE) < 1
    assert nearest.share_ahead(near, caption, nouns=False, size=SIDE) == 1


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
