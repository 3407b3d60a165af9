"""The small words of the shelf's language: colours, relations, and words that say nothing."""

from __future__ import annotations

from dataclasses import dataclass

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
COLOR_SYNONYMS = {
    **{color: color for color in COLORS},
    "violet": "purple",
    "crimson": "red",
    "scarlet": "red",
    "rose": "pink",
}
COLOR_NEAR = {
    "amber": "orange",
    "azure": "blue",
    "beige": "white",
    "brown": "orange",
    "cream": "white",
    "cyan": "blue",
    "gold": "yellow",
    "golden": "yellow",
    "gray": "white",
    "grey": "white",
    "indigo": "purple",
    "ivory": "white",
    "lavender": "purple",
    "lilac": "purple",
    "lime": "green",
    "magenta": "pink",
    "maroon": "red",
    "mauve": "purple",
    "navy": "blue",
    "olive": "green",
    "silver": "white",
    "tan": "orange",
    "teal": "green",
    "turquoise": "blue",
}


@dataclass(frozen=True)
class Relation:
    """How two things stand; swapped: the second named is the first of the canonical text."""

    name: str
    swapped: bool = False


ON, BESIDE = Relation("on top of"), Relation("next to")
UNDER, RIGHT = Relation("on top of", swapped=True), Relation("next to", swapped=True)
RELATIONS = {
    **dict.fromkeys(
        ("on top of", "on", "atop", "upon", "onto", "on the top of", "above", "over", "over the top of"), ON
    ),
    **dict.fromkeys(("below", "under", "underneath", "beneath", "at the bottom of"), UNDER),
    **dict.fromkeys(("next to", "beside", "besides", "by", "near", "close to", "alongside", "and"), BESIDE),
    **dict.fromkeys(("by the side of", "at the side of", "side by side with"), BESIDE),
    **dict.fromkeys(("to the left of", "left of", "on the left of", "at the left of"), BESIDE),
    **dict.fromkeys(("to the right of", "right of", "on the right of", "at the right of"), RIGHT),
}
NEAR_RELATIONS = {  # nothing says just this; what comes nearest
    **dict.fromkeys(("in", "inside", "into", "riding"), ON),
    **dict.fromkeys(("with", "behind", "in front of", "between", "against", "around", "plus"), BESIDE),
}
FILLER = (
    *("a", "an", "the", "one", "single", "some", "this", "that is a", "photo of", "picture of", "image of"),
    *("model of", "render of", "rendering of", "3d model of", "3d render of", "3d", "sculpture of"),
)
LINKS = (  # say nothing before a relation
    *("is", "are", "that", "which", "standing", "sitting", "lying", "placed", "resting", "stacked", "put"),
    *("stands", "sits", "lies", "rests", "set", "sat", "stood", "located", "balanced", "perched"),
)
