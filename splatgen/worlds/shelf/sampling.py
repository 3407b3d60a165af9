"""What training draws: captions, those it never sees, viewpoints, and hard negatives."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from splatgen.scene.cameras import Cameras, orbit
from splatgen.worlds.shelf.catalogue import Noun, catalogue
from splatgen.worlds.shelf.grammar import AnyCaption, Caption, Item
from splatgen.worlds.shelf.words import COLORS
from splatgen.worlds.toybox import sampling as toybox_sampling
from splatgen.worlds.toybox.grammar import held_out as toybox_held_out

TOY_SHARE = 0.06
PAIR_SHARE = 0.27
COLORED_SHARE, COLORED_IN_PAIRS = 0.6, 0.35  # of the things whose colour can be changed
RECOLOURABLE_SHARE = 0.12  # drawn among these alone, for they have more pictures to learn
HELD_OUT_PAIRS = 0.06
RELATIONS = ("on top of", "next to")


def _share(text: str) -> float:
    """A number in 0..1 that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


@cache
def recolourable() -> tuple[str, ...]:
    return tuple(noun.name for noun in catalogue().nouns.values() if noun.recolour)


@cache
def _groups() -> dict[str, list[Noun]]:
    return catalogue().groups()


@cache
def held_out_colors() -> frozenset[tuple[str, str]]:
    """Nouns with colours that training never shows, neither alone nor in pairs."""
    pairs = sorted((_share(f"colour/{n}/{c}"), n, c) for n in recolourable() for c in COLORS)
    return frozenset((n, c) for _, n, c in pairs[: max(16, len(pairs) // 12)])


def held_out_pair(caption: Caption) -> bool:
    """Whether training never shows these two nouns in this relation, in any colour."""
    if caption.second is None:
        return False
    text = f"pair/{caption.first.noun}/{caption.relation}/{caption.second.noun}"
    return _share(text) < HELD_OUT_PAIRS


def held_out(caption: AnyCaption) -> bool:
    """Whether training never shows this caption."""
    if not isinstance(caption, Caption):
        return toybox_held_out(caption)
    if any((item.noun, item.color) in held_out_colors() for item in caption.items):
        return True
    return held_out_pair(caption)


def draw(source: random.Random, *, pairs: float = PAIR_SHARE, toys: float = TOY_SHARE) -> AnyCaption:
    """A random caption that is not held out."""
    if source.random() < toys:
        return toybox_sampling.draw(source, 1)[0]
    if source.random() >= pairs:
        return Caption(_item(source, COLORED_SHARE))
    while True:
        a, b = _item(source, COLORED_IN_PAIRS), _item(source, COLORED_IN_PAIRS)
        caption = Caption(a, source.choice(RELATIONS), b)
        if a.noun != b.noun and not held_out_pair(caption):
            return caption


def draw_unseen(source: random.Random, *, pairs: float = 0.6) -> Caption:
    """A random caption that is held out: a pair never shown, or a colour never shown."""
    if source.random() >= pairs:
        return Caption(Item(*source.choice(sorted(held_out_colors()))))
    nouns = [*catalogue().nouns]
    while True:
        a, b = source.sample(nouns, 2)
        caption = Caption(Item(a), source.choice(RELATIONS), Item(b))
        if held_out_pair(caption):
            return caption


def _item(source: random.Random, colored: float) -> Item:
    some = source.random() < RECOLOURABLE_SHARE
    noun = source.choice(recolourable() if some else [*catalogue().nouns])
    if noun not in recolourable() or source.random() >= colored:
        return Item(noun)
    while True:
        color = source.choice(COLORS)
        if (noun, color) not in held_out_colors():
            return Item(noun, color)


def viewpoints(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Azimuths and elevations [count] in degrees: all around, a tenth from high above, a tenth from below."""
    u = torch.rand(3, count, generator=generator)
    high, low, usual = 50.0 + 30.0 * u[2], -50.0 + 35.0 * u[2], -15.0 + 65.0 * u[2]
    return 360.0 * u[0], torch.where(u[1] < 0.1, high, torch.where(u[1] < 0.2, low, usual))


def random_cameras(generator: torch.Generator, count: int, size: int, near: float, far: float) -> Cameras:
    """Cameras at viewpoints, at distances between near and far."""
    azimuth, elevation = viewpoints(generator, count)
    away = near + (far - near) * torch.rand(count, generator=generator)
    return orbit(azimuth, elevation, size=size, distance=away)


def hard_negatives(
    caption: AnyCaption, source: random.Random, count: int, *, order_visible: bool, unseen: bool = False
) -> list[AnyCaption]:
    """Captions that differ from this one in a single respect, all different and none of them right.

    Another noun of the same group or of any, another colour, places or colours exchanged, an object missing
    or too many, the other relation. order_visible says whether the picture can tell which of two things side
    by side is the left one. With unseen=False held-out captions are left out: training must not learn
    them as answers that are always wrong.
    """
    if not isinstance(caption, Caption):
        return [
            *toybox_sampling.hard_negatives(
                caption, source, count, front_visible=False, order_visible=order_visible, unseen=unseen
            )
        ]
    found: dict[AnyCaption, None] = {}
    if order_visible and caption.relation == "next to" and caption.second is not None:
        mirrored = replace(caption, first=caption.second, second=caption.first)
        found |= {mirrored: None} if unseen or not held_out(mirrored) else {}  # the hardest to learn
    for _ in range(100 * count):
        if len(found) == count:
            return list(found)
        other = source.choice(_MAKERS)(caption, source)
        if other is None or right(other, caption, order_visible=order_visible):
            continue
        if other.second is not None and other.second.noun == other.first.noun:
            continue
        if unseen or not held_out(other):
            found[other] = None
    raise RuntimeError(f"could not find {count} hard negatives for {caption}")


def right(text: AnyCaption, shown: AnyCaption, *, order_visible: bool = True) -> bool:
    """Whether a caption is right of the picture of another, as far as the picture can tell."""
    if not isinstance(text, Caption) or not isinstance(shown, Caption):
        return text == shown
    if text.relation != shown.relation:
        return False
    if _agree(text, shown):
        return True
    if order_visible or text.second is None or text.relation != "next to":
        return False
    return _agree(replace(text, first=text.second, second=text.first), shown)


def _agree(text: Caption, shown: Caption) -> bool:
    pairs = zip(text.items, shown.items, strict=True)
    return all(a.noun == b.noun and _same_color(a, b) for a, b in pairs)


def _same_color(text: Item, shown: Item) -> bool:
    """A thing is also called by its own colour, and by none."""
    own = catalogue().nouns[shown.noun].color
    return text.color in (None, shown.color) or (shown.color is None and text.color == own)


Maker = Callable[[Caption, random.Random], Caption | None]


def _with_item(
    caption: Caption, source: random.Random, change: Callable[[Item], Item | None]
) -> Caption | None:
    """The caption with one of its items changed."""
    second = caption.second is not None and source.random() < 0.5
    item = change(caption.second if second and caption.second is not None else caption.first)
    if item is None:
        return None
    return replace(caption, second=item) if second else replace(caption, first=item)


def _sibling(caption: Caption, source: random.Random) -> Caption | None:
    """Another noun of the same group."""

    def change(item: Item) -> Item:
        other = source.choice(_groups()[catalogue().nouns[item.noun].group])
        return Item(other.name, item.color if other.recolour else None)

    return _with_item(caption, source, change)


def _stranger(caption: Caption, source: random.Random) -> Caption | None:
    """Any other noun."""
    return _with_item(caption, source, lambda item: Item(source.choice([*catalogue().nouns])))


def _repaint(caption: Caption, source: random.Random) -> Caption | None:
    """Another colour."""

    def change(item: Item) -> Item | None:
        return replace(item, color=source.choice(COLORS)) if item.noun in recolourable() else None

    return _with_item(caption, source, change)


def _swap(caption: Caption, source: random.Random) -> Caption | None:
    """The places of the things exchanged, or only their colours."""
    a, b = caption.first, caption.second
    if b is None:
        return None
    both = a.noun in recolourable() and b.noun in recolourable() and a.color != b.color
    if both and source.random() < 0.5:
        return replace(caption, first=replace(a, color=b.color), second=replace(b, color=a.color))
    return replace(caption, first=b, second=a)


def _more_or_less(caption: Caption, source: random.Random) -> Caption | None:
    """A thing missing, a thing too many, or the other relation."""
    a, b = caption.first, caption.second
    if b is None:
        extra = Item(source.choice([*catalogue().nouns]))
        first, second = (a, extra) if source.random() < 0.5 else (extra, a)
        return Caption(first, source.choice(RELATIONS), second)
    other = RELATIONS[1 - RELATIONS.index(str(caption.relation))]
    return source.choice([Caption(a), Caption(b), Caption(a, other, b)])


_MAKERS: tuple[Maker, ...] = (_sibling, _sibling, _stranger, _repaint, _swap, _more_or_less)
