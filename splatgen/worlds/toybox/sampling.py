"""What training draws: captions, the text that goes with a view, and hard negatives."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

from splatgen.worlds.toybox.grammar import (
    COLORS,
    PATTERNS,
    SHAPES,
    Caption,
    Item,
    all_captions,
    held_out,
    kind,
    supported,
)

KIND_SHARE = {"single": 0.22, "front": 0.18, "pattern": 0.18, "stacked": 0.26, "beside": 0.16}


@cache
def captions_by_kind(unseen: bool) -> dict[str, tuple[Caption, ...]]:
    """The training captions (unseen=False) or the held-out ones, by kind."""
    found: dict[str, list[Caption]] = {name: [] for name in KIND_SHARE}
    for caption in all_captions():
        if held_out(caption) == unseen:
            found[kind(caption)].append(caption)
    return {name: tuple(captions) for name, captions in found.items()}


def draw(source: random.Random, count: int, *, unseen: bool = False) -> list[Caption]:
    """Random captions: a kind by its share, then one of the kind, all alike."""
    pools = captions_by_kind(unseen)
    kinds = source.choices(list(KIND_SHARE), weights=list(KIND_SHARE.values()), k=count)
    return [source.choice(pools[name]) for name in kinds]


def with_view(text: str, word: str | None) -> str:
    """The caption as the models read it from a given side."""
    return text if word is None else f"{text} {word} view"


def hard_negatives(
    caption: Caption,
    source: random.Random,
    count: int,
    *,
    front_visible: bool,
    order_visible: bool = True,
    unseen: bool = True,
) -> list[Caption]:
    """Captions that differ from this one in a single respect, all different and none of them it.

    One attribute is wrong (colour, shape, pattern, front), two are swapped, or an object is missing
    or too many. `front_visible` says whether the picture can tell a front from none, `order_visible`
    whether it can tell which of two objects side by side is the left one. With unseen=False held-out
    captions are left out: training must not learn them as answers that are always wrong.
    """
    found: dict[Caption, None] = {}
    makers = [_recolor, _reshape, _swap, _more_or_less]
    if caption.first.front is None or front_visible:
        makers.append(_restyle)
    for _ in range(200):
        if len(found) == count:
            return list(found)
        other = source.choice(makers)(caption, source)
        if other is None or other == caption or not supported(other):
            continue
        if not unseen and held_out(other):
            continue
        if not front_visible and _without_front(other) == _without_front(caption):
            continue
        if _looks_alike(other, caption) or (not order_visible and _mirrors(other, caption)):
            continue
        found[other] = None
    raise RuntimeError(f"could not find {count} hard negatives for {caption}")


def _without_front(caption: Caption) -> Caption:
    return replace(caption, first=replace(caption.first, front=None))


def _looks_alike(a: Caption, b: Caption) -> bool:
    """Same pattern in exchanged colours: told apart only by the phase, too fine for a hard negative."""
    x, y = a.first, b.first
    return (
        x.pattern is not None
        and (x.pattern, x.shape) == (y.pattern, y.shape)
        and {x.color, x.color2} == {y.color, y.color2}
    )


def _mirrors(a: Caption, b: Caption) -> bool:
    """The same two objects side by side in the other order."""
    return a.relation == b.relation == "next to" and (a.first, a.second) == (b.second, b.first)


def _change(caption: Caption, source: random.Random, **change: str) -> Caption:
    if caption.second is not None and source.random() < 0.5:
        return replace(caption, second=replace(caption.second, **change))
    return replace(caption, first=replace(caption.first, **change))


def _recolor(caption: Caption, source: random.Random) -> Caption | None:
    color = source.choice(list(COLORS))
    if caption.first.pattern and source.random() < 0.5:
        return replace(caption, first=replace(caption.first, color2=color))
    return _change(caption, source, color=color)


def _reshape(caption: Caption, source: random.Random) -> Caption | None:
    return _change(caption, source, shape=source.choice(SHAPES))


def _swap(caption: Caption, source: random.Random) -> Caption | None:
    """Exchange the places of the objects, or only their colours, or the colours of a front."""
    a, b = caption.first, caption.second
    if b is not None:
        if source.random() < 0.5:
            return Caption(b, caption.relation, a)
        return Caption(replace(a, color=b.color), caption.relation, replace(b, color=a.color))
    if a.front is not None:
        return Caption(replace(a, color=a.front, front=a.color))
    return None


def _more_or_less(caption: Caption, source: random.Random) -> Caption | None:
    """Drop an object or a pattern, add an object, or exchange the relation."""
    a, b = caption.first, caption.second
    if b is not None:
        other = "next to" if caption.relation == "on top of" else "on top of"
        return source.choice([Caption(a), Caption(b), Caption(a, other, b)])
    plain = Item(a.color, a.shape)
    extra = Item(source.choice(list(COLORS)), source.choice(SHAPES))
    return source.choice([Caption(plain), Caption(plain, source.choice(["on top of", "next to"]), extra)])


def _restyle(caption: Caption, source: random.Random) -> Caption | None:
    """Add, change or exchange a pattern or a front."""
    if caption.second is not None:
        return None
    item = Item(caption.first.color, caption.first.shape)
    color = source.choice(list(COLORS))
    if source.random() < 0.5:
        return Caption(replace(item, front=color))
    second = caption.first.color2 or color
    return Caption(replace(item, pattern=source.choice(PATTERNS), color2=second))
