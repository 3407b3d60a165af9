"""The worlds of alignment.py: what of the study depends on what a prior knows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from alignment_arms import STEPS, Arms, arms, shelf_arms
from shelf_quality import unseen_colours, unseen_pairs

from splatgen.config import read_preset
from splatgen.worlds.toybox import grammar as toybox
from splatgen.worlds.toybox.sampling import captions_by_kind

if TYPE_CHECKING:
    from splatgen.scene.splats import Splats

KINDS = (
    "beside",
    "pattern",
    "stacked",
    "front",
    "beside",
    "pattern",
    "stacked",
    "beside",
    "pattern",
    "front",
)
OUTPUT = {"frames": 0, "size": 16, "checkpoint_seconds": 0.0, "log_every": 10, "reward_every": 1000}
BASE: dict[str, Any] = {
    "steps": STEPS,
    "reward": ["toybox"],
    "holdout_reward": ["toybox-judge"],
    "output": OUTPUT,
}
Captions = list[tuple[str, str]]  # kind, caption
Columns = Mapping[str, tuple[str, int]]  # of a table: key in a row, digits


@dataclass(frozen=True, kw_only=True)
class World:
    """Captions, settings and measures of one world."""

    needs: Callable[[], object]  # raises RuntimeError, in a line, where this machine lacks something
    base: Callable[[], dict[str, Any]]  # settings of every run
    steps: int  # of a run, unless --steps says others
    arms: Callable[[int], Arms]  # by steps of a run
    captions: Callable[[int, str], Captions]  # the first n of a longer list; the word chooses which
    reward: str
    judge: str  # the held-out reward
    evaluate: Callable[[Splats, str], dict[str, float]]  # splats of a caption against its truth
    measures: Columns  # in the table, as differences to SDS
    costs: Columns  # in the table, as they are


def toybox_captions(count: int, salt: str) -> Captions:
    """A fixed choice of unseen captions, kinds in turn."""
    source, pools = random.Random(salt), captions_by_kind(True)
    shuffled = {name: source.sample(pools[name], len(pools[name])) for name in sorted(set(KINDS))}
    found = [shuffled[KINDS[n % len(KINDS)]].pop() for n in range(count)]
    return [(toybox.kind(caption), str(caption)) for caption in found]


def toybox_quality(splats: Splats, text: str) -> dict[str, float]:
    from splatgen.models.budget import LoadOptions
    from splatgen.rewards import load_reward
    from splatgen.worlds.toybox.evaluation import evaluate

    return evaluate(splats, toybox.parse(text), load_reward("toybox-judge", LoadOptions())).row()


def shelf_models() -> object:
    """A run's truth is asked for when it has ended: too late to say that there are no models."""
    from splatgen.worlds.shelf import shelf_folder
    from splatgen.worlds.shelf.catalogue import catalogue
    from splatgen.worlds.shelf.folder import read_models

    return read_models(shelf_folder(), catalogue())


def shelf_base() -> dict[str, Any]:
    """The preset's settings, for a run that leaves little behind; without its stages, the last of which fits
    pictures whatever the method is."""
    rewards = {"reward": ["shelf"], "holdout_reward": ["shelf-judge"]}
    return {**read_preset("shelf"), **rewards, "stages": [], "output": OUTPUT}


def shelf_captions(count: int, salt: str) -> Captions:
    """A pair that training never showed, a colour that it never showed, and so on; the colours end first."""
    pairs, colours = iter(unseen_pairs(count)), iter(unseen_colours(count // 2))
    found: Captions = []
    while len(found) < count:
        found += [("pair", str(caption)) for caption in islice(pairs, 1)]
        found += [("colour", str(caption)) for caption in islice(colours, 1)]
    return found[:count]


def shelf_quality(splats: Splats, text: str) -> dict[str, float]:
    from splatgen.models.budget import LoadOptions
    from splatgen.rewards.shelf import load_judge
    from splatgen.worlds.shelf.evaluation import SIZES, evaluate, examination, seen
    from splatgen.worlds.shelf.grammar import parse
    from splatgen.worlds.shelf.nearest import share_ahead

    caption = parse(text)
    images, _ = seen(splats, examination(caption, SIZES[0]).cameras)
    ahead = share_ahead(images, caption)
    return {
        **evaluate(splats, caption, load_judge(LoadOptions())).row(),
        "nearest_right": float(ahead == 1.0),
        "ahead": ahead,
        "bound_right": float(share_ahead(images, caption, nouns=False) == 1.0),
    }


TOYBOX = World(
    needs=lambda: None,
    base=lambda: BASE,
    steps=STEPS,
    arms=lambda steps: arms(),
    captions=toybox_captions,
    reward="toybox",
    judge="toybox-judge",
    evaluate=toybox_quality,
    measures={
        "reward": ("reward", 3),
        "held-out reward": ("holdout", 3),
        "IoU": ("iou", 3),
        "PSNR dB": ("psnr", 2),
        "colour error": ("color_error", 3),
        "nearest right": ("nearest_right", 2),
        "judged right": ("judged_right", 2),
    },
    costs={"calls": ("calls", 1), "CPU s": ("cpu_seconds", 1)},
)
SHELF = World(
    needs=shelf_models,
    base=shelf_base,
    steps=300,
    arms=shelf_arms,
    captions=shelf_captions,
    reward="shelf",
    judge="shelf-judge",
    evaluate=shelf_quality,
    measures={
        "all right by judge": ("all_right", 2),
        "all right by truth": ("nearest_right", 2),
        "bound right by truth": ("bound_right", 2),
        "ahead by truth": ("ahead", 3),
        "held-out reward": ("holdout", 3),
        "reward": ("reward", 3),
        "IoU": ("iou", 3),
        "PSNR dB": ("psnr", 2),
    },
    costs={"calls": ("calls", 1), "calls a view": ("view_calls", 0), "seconds": ("seconds", 1)},
)
WORLDS: Mapping[str, World] = {"toybox": TOYBOX, "toybox-mini": TOYBOX, "shelf": SHELF}  # by prior
