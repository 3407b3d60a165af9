"""Pictures of the last step, as HTML."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from pages import candidate
from PIL import Image
from splatgen_viewer.candidates import figure, gap_of, page, png


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (96, 96, 3)])
def test_a_picture_survives_as_png(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)


def test_a_part_of_a_larger_picture_does_too():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)[::2, ::-1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)


def test_what_is_not_known_is_not_told():
    text = page([candidate(reward=None)], None, None)
    assert "reward" not in text
    assert "strength" not in text
    assert "weight 1" in text


def test_one_that_was_left_out_says_so_and_words_stay_words():
    assert "left out" in figure(candidate(role=""))
    assert "&lt;script&gt;" in figure(dataclasses.replace(candidate(), role="<script>"))


def test_the_numbers_of_a_pair_belong_together():
    pair = [candidate(role="win", reward=0.9124), candidate(role="lose", reward=0.4006)]
    text = page(pair, 0.25, 2.0)
    assert "reward 0.912" in text
    assert "reward 0.401" in text
    assert "win − lose = 0.511 (all views: 0.250) · strength 2" in text
    assert gap_of(pair[:1]) is None
    assert gap_of([candidate(role="win", reward=None), pair[1]]) is None
