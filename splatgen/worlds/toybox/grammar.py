"""The toybox's language: what a caption can say, how it is read, and which captions stay unseen.

    a red cube                               single
    a red cube with a blue front             front: the side facing azimuth 0 has another colour
    a red and white striped cube             pattern: striped or checkered
    a red cube on top of a blue sphere       relation: stacked
    a red cube next to a blue sphere         relation: side by side, the first on the left seen from the front

No torch here: the command line checks prompts before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from dataclasses import dataclass, replace
from functools import cache

COLORS: dict[str, tuple[float, float, float]] = {  # display RGB in 0..1, before shading
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.93, 0.85, 0.10),
    "green": (0.10, 0.62, 0.18),
    "cyan": (0.12, 0.76, 0.82),
    "blue": (0.10, 0.22, 0.85),
    "purple": (0.52, 0.14, 0.72),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("sphere", "cube", "cylinder", "cone", "torus")
PATTERNS = ("striped", "checkered")
RELATIONS = ("on top of", "next to")

SYNONYMS = {
    "ball": "sphere",
    "orb": "sphere",
    "box": "cube",
    "block": "cube",
    "tube": "cylinder",
    "donut": "torus",
    "doughnut": "torus",
    "ring": "torus",
    "violet": "purple",
    "stripy": "striped",
    "checked": "checkered",
    "chequered": "checkered",
    "beside": "next to",
    "atop": "on top of",
}
# What the world has for words of relations: a relation, and whether the objects change places; None: nothing.
# In the order in which they count: "on the right of" is not "on".
OTHER_RELATIONS: dict[str, tuple[str, bool] | None] = {
    **dict.fromkeys(("below", "under", "beneath", "underneath"), ("on top of", True)),
    **dict.fromkeys(("right",), ("next to", True)),
    **dict.fromkeys(("left", "next", "near"), ("next to", False)),
    **dict.fromkeys(("inside", "within", "behind", "around", "through", "between", "against"), None),
    **dict.fromkeys(("top", "above", "over", "upon", "on"), ("on top of", False)),
    **dict.fromkeys(("in", "front"), None),
    **dict.fromkeys(("by", "and", "with"), ("next to", False)),
}
FILLER = frozenset({"a", "an", "the", "one", "single"})
# Whole colour-shape pairs that never occur in training, in any kind of caption: the strictest split.
HELD_OUT_PAIRS = frozenset({("red", "sphere"), ("purple", "cube"), ("cyan", "cone"), ("orange", "cylinder")})
HELD_OUT_SHARE = 0.1  # of the other captions, chosen by hash


@dataclass(frozen=True)
class Item:
    """One object. A pattern alternates color and color2; a front is a cap of another colour."""

    color: str
    shape: str
    pattern: str | None = None
    color2: str | None = None
    front: str | None = None

    def __str__(self) -> str:
        if self.pattern is not None:
            return f"{self.color} and {self.color2} {self.pattern} {self.shape}"
        return f"{self.color} {self.shape}" + (f" with a {self.front} front" if self.front else "")


@dataclass(frozen=True)
class Caption:
    """One object, or two in a relation."""

    first: Item
    relation: str | None = None
    second: Item | None = None

    def __str__(self) -> str:
        """The canonical text, the only form the models are trained on (`an` is written `a`)."""
        text = f"a {self.first}"
        return text if self.second is None else f"{text} {self.relation} a {self.second}"

    @property
    def items(self) -> tuple[Item, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)


class VocabularyError(ValueError):
    """A prompt outside the toybox's language; `unknown` lists the words, `nearest` a prompt that works."""

    def __init__(self, message: str, unknown: tuple[str, ...], nearest: str) -> None:
        super().__init__(message)
        self.unknown = unknown
        self.nearest = nearest


def vocabulary() -> tuple[str, ...]:
    """Every word a canonical caption can hold, in a fixed order (the tokenizer's)."""
    words = ["a", "and", "with", "front", "side", "back", "overhead", "view", "on", "top", "of", "next", "to"]
    return (*words, *COLORS, *SHAPES, *PATTERNS)


def words_of(prompt: str) -> list[str]:
    """Lower-case words with synonyms replaced and plain fillers dropped."""
    words = re.findall(r"[^\s,.;:!?\"']+", prompt.lower())
    expanded = " ".join(SYNONYMS.get(word, word) for word in words).split()
    return [word for word in expanded if word not in FILLER]


_COLOR = "|".join(COLORS)
_ITEM = (
    rf"(?P<c{{n}}>{_COLOR})(?: and (?P<d{{n}}>{_COLOR}) (?P<p{{n}}>{'|'.join(PATTERNS)}))?"
    rf" (?P<s{{n}}>{'|'.join(SHAPES)})"
    rf"(?: with (?P<f{{n}}>{_COLOR}) front)?"
)
_CAPTION = re.compile(
    _ITEM.format(n=1) + rf"(?: (?P<relation>{'|'.join(RELATIONS)}|on) {_ITEM.format(n=2)})?"
)


def parse(prompt: str) -> Caption:
    """Read a prompt; raise VocabularyError with the unknown words and the nearest possible prompt."""
    words = words_of(prompt)
    match = _CAPTION.fullmatch(" ".join(words))
    caption = _from_match(match.groupdict()) if match else None
    if caption is not None:
        return caption
    known = set(vocabulary())
    unknown = tuple(dict.fromkeys(word for word in words if word not in known))
    near = str(nearest(words))
    shown = ", ".join(repr(word[:30]) for word in unknown[:8])
    if not words:
        reason = "the prompt is empty"
    elif unknown:
        reason = f"the toybox prior does not know {shown}{' and more' if len(unknown) > 8 else ''}"
    else:
        reason = "the toybox prior knows these words but not this sentence"
    raise VocabularyError(f"{reason}; the nearest prompt it can do is {near!r}", unknown, near)


def _from_match(found: dict[str, str | None]) -> Caption | None:
    def item(n: int) -> Item:
        return Item(
            color=str(found[f"c{n}"]),
            shape=str(found[f"s{n}"]),
            pattern=found[f"p{n}"],
            color2=found[f"d{n}"],
            front=found[f"f{n}"],
        )

    relation = found["relation"]
    caption = (
        Caption(item(1))
        if relation is None
        else Caption(item(1), "on top of" if relation == "on" else relation, item(2))
    )
    return caption if supported(caption) else None


def supported(caption: Caption) -> bool:
    """Whether the world holds it: relations are between plain objects, second colours differ."""
    if caption.second is not None and any(i.pattern or i.front for i in caption.items):
        return False
    item = caption.first
    if item.pattern and item.front:
        return False
    return item.color not in (item.color2, item.front)


def nearest(words: list[str]) -> Caption:
    """A caption built from the recognisable words, spelling mistakes included."""

    def closest(word: str, choices: tuple[str, ...]) -> str | None:
        found = difflib.get_close_matches(word[:30], choices, n=1, cutoff=0.75)
        return found[0] if found else None

    colors = [c for w in words[:50] if (c := closest(w, tuple(COLORS)))]
    found = {i: s for i, w in enumerate(words[:50]) if (s := closest(SYNONYMS.get(w, w), SHAPES))}
    places, shapes = list(found), list(found.values())
    patterns = [p for w in words[:50] if (p := closest(w, PATTERNS))]
    first = Item(colors[0] if colors else "red", shapes[0] if shapes else "cube")
    others = [c for c in colors[1:] if c != first.color]
    if len(shapes) > 1:
        before, between = words[: places[0]], words[places[0] : places[1]]
        own = [[c for w in part if (c := closest(w, tuple(COLORS)))] for part in (before, between)]
        second = Item(own[1][-1] if own[1] else "blue", shapes[1])
        plain = "red" if second.color != "red" else "blue"
        return _related(Item(own[0][0] if own[0] else plain, shapes[0]), second, before, between)
    if patterns and others:
        return Caption(replace(first, pattern=patterns[0], color2=others[0]))
    if "front" in words and others:
        return Caption(replace(first, front=others[0]))
    return Caption(first)


def _related(first: Item, second: Item, before: list[str], between: list[str]) -> Caption:
    """Two objects as the words before and between them ask; the first alone where there is no such thing.

    What is below is the other on top, and what is to the right the other on the left. Words before both are
    about the second: below a sphere is a cube.
    """
    for words, other_way in ((between, False), (before, True)):
        for word, asked in OTHER_RELATIONS.items():
            if word in words and not (other_way and word in ("and", "with")):  # of its pattern
                if asked is None:
                    return Caption(first)
                relation, swapped = asked
                pair = (second, first) if swapped != other_way else (first, second)
                return Caption(pair[0], relation, pair[1])
    return Caption(first, "on top of", second)


def all_captions() -> tuple[Caption, ...]:
    """Every caption of the world: 40 singles, 280 fronts, 560 patterns, 3,200 relations."""
    plain = [Item(c, s) for c in COLORS for s in SHAPES]
    singles = [Caption(i) for i in plain]
    fronts = [Caption(replace(i, front=c)) for i in plain for c in COLORS if c != i.color]
    patterns = [
        Caption(replace(i, pattern=p, color2=c))
        for i in plain
        for p in PATTERNS
        for c in COLORS
        if c != i.color
    ]
    relations = [Caption(a, r, b) for r in RELATIONS for a, b in itertools.product(plain, plain)]
    return (*singles, *fronts, *patterns, *relations)


def kind(caption: Caption) -> str:
    """single, front, pattern, stacked or beside."""
    if caption.relation is not None:
        return "stacked" if caption.relation == "on top of" else "beside"
    return "front" if caption.first.front else "pattern" if caption.first.pattern else "single"


@cache
def held_out(caption: Caption) -> bool:
    """Whether training never shows this caption: a held-out pair, or its text's hash says so."""
    if any((i.color, i.shape) in HELD_OUT_PAIRS for i in caption.items):
        return True
    if kind(caption) == "single":
        return False
    digest = hashlib.blake2b(str(caption).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < HELD_OUT_SHARE
