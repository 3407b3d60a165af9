"""Prompts as the views see them."""

from __future__ import annotations

VIEW_WORDS = ("front", "side", "back", "overhead")
OVERHEAD = 52.0  # degrees of elevation above which a view is from overhead
FRONT = 45.0  # degrees to either side that still count as the front (or the back)
LIMITS = (FRONT, OVERHEAD)  # of the embedded worlds


def view_word(azimuth: float, elevation: float, limits: tuple[float, float] = LIMITS) -> str:
    """front, side, back or overhead for a viewing direction in degrees, by limits (front, overhead)."""
    front, overhead = limits
    if elevation > overhead:
        return "overhead"
    turn = abs((azimuth + 180.0) % 360.0 - 180.0)
    return "front" if turn <= front else "back" if turn >= 180.0 - front else "side"


def view_prompts(prompt: str) -> tuple[str, ...]:
    """The prompt for each of VIEW_WORDS, in the form of DreamFusion: "PROMPT, front view"."""
    return tuple(view_prompt(prompt, word) for word in VIEW_WORDS)


def view_prompt(prompt: str, word: str) -> str:
    """The prompt of a view by its word."""
    return f"{prompt}, {word} view"


def split_view(text: str) -> tuple[str, str | None]:
    """Undo `view_prompts`: the prompt and its view word, if it has one."""
    for word in VIEW_WORDS:
        suffix = f", {word} view"
        if text.endswith(suffix):
            return text[: -len(suffix)], word
    return text, None
