"""View words, and prompts with and without them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splatgen.scene import view_prompts


@pytest.mark.parametrize(
    ("azimuth", "elevation", "word"),
    [
        (0, 0, "front"),
        (45, 0, "front"),
        (-45, 10, "front"),
        (315, 10, "front"),
        (45.1, 0, "side"),
        (90, -15, "side"),
        (134.9, 0, "side"),
        (135, 0, "back"),
        (180, 0, "back"),
        (225, 0, "back"),
        (225.1, 0, "side"),
        (360, 52, "front"),
        (0, 52.1, "overhead"),
        (180, 90, "overhead"),
        (0, -90, "front"),
    ],
)
def test_view_words(azimuth, elevation, word):
    assert view_prompts.view_word(azimuth, elevation) == word


@pytest.mark.parametrize(
    ("azimuth", "elevation", "limits", "word"),
    [
        (0, 60, (45, 60), "front"),
        (0, 60.1, (45, 60), "overhead"),  # threestudio: overhead_threshold 60
        (30, 0, (30, 60), "front"),
        (31, 0, (30, 60), "side"),  # prolificdreamer: front and back_threshold 30
        (149, 0, (30, 60), "side"),
        (150, 0, (30, 60), "back"),
    ],
)
def test_other_projects_limits(azimuth, elevation, limits, word):
    assert view_prompts.view_word(azimuth, elevation, limits) == word


@given(st.floats(-360, 360), st.floats(-90, 90), st.integers(-3, 3))
def test_whole_turns_and_mirroring_change_no_word(azimuth, elevation, turns):
    word = view_prompts.view_word(azimuth, elevation)
    distance = min(abs((azimuth % 90) - 45), 1.0)
    if distance > 1e-6:  # away from the limits, where rounding decides
        assert view_prompts.view_word(azimuth + 360 * turns, elevation) == word
        assert view_prompts.view_word(-azimuth, elevation) == word


@given(st.text(max_size=50))
def test_view_prompts_can_be_undone(prompt):
    texts = view_prompts.view_prompts(prompt)
    assert [view_prompts.split_view(text) for text in texts] == [
        (prompt, word) for word in view_prompts.VIEW_WORDS
    ]


@pytest.mark.parametrize("text", ["", "front view", "a cube, top view", "a cube, front view please"])
def test_other_text_has_no_view(text):
    assert view_prompts.split_view(text) == (text, None)
