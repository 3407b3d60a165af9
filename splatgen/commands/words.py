"""`splatgen words`: what the embedded prior of real things knows."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.errors import MISSING, USAGE, Failure
from splatgen.config.hints import did_you_mean
from splatgen.runs import atomic
from splatgen.worlds.shelf import gallery, grammar
from splatgen.worlds.shelf.catalogue import Noun, catalogue
from splatgen.worlds.shelf.words import COLORS
from splatgen.worlds.toybox import grammar as toybox

WIDTH = 100  # characters of a line
LABEL = 13  # pixels of a line of text under a picture
ACROSS = 8  # pictures in a row
CELL = 104  # pixels: a name has to find room


@dataclass(frozen=True, kw_only=True)
class Words:
    """List what `--prior shelf` knows: things by group, colours, relations; or look words up."""

    prompts: Annotated[tuple[str, ...], Positional, arg(metavar="[PROMPT ...]", help_behavior_hint="")] = ()
    """Words to look up: what each is taken for, or the nearest there is."""
    group: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Only this group of things, such as animals."""
    pictures: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Write a sheet with a picture of every thing."""
    json: Switch = False
    """Print a JSON object."""


def main(argv: Sequence[str]) -> int:
    options = parse(Words, "words", argv)
    if options.prompts:
        return look_up(options)
    groups = chosen(options.group)
    if options.pictures is not None:
        write_pictures(options.pictures, [noun for nouns in groups.values() for noun in nouns])
    if options.json:
        print(json.dumps(as_data(groups), indent=2, ensure_ascii=False))
    elif options.pictures is not None:
        print(options.pictures)
    else:
        print(listing(groups, whole=options.group is None))
    return 0


def look_up(options: Words) -> int:
    """Say what prompts are taken for; Failure beside what belongs to the whole list."""
    if options.group is not None or options.pictures is not None:
        raise Failure(USAGE, "a prompt is looked up by itself: leave out --group and --pictures")
    found = [looked_up(prompt) for prompt in options.prompts]
    if options.json:
        print(json.dumps({"prompts": found}, indent=2, ensure_ascii=False))
    for entry in () if options.json else found:
        print(f"{entry['prompt']}: {entry['problem'] or entry['means']}")
    return 0


def looked_up(prompt: str) -> dict[str, str | None]:
    """What a prompt means, or what is wrong with it and the nearest one."""
    try:
        return {"prompt": prompt, "means": str(grammar.parse(prompt)), "problem": None, "nearest": None}
    except toybox.VocabularyError as error:
        return {"prompt": prompt, "means": None, "problem": str(error), "nearest": error.nearest or None}


def chosen(group: str | None) -> Mapping[str, Sequence[Noun]]:
    """All groups or one; Failure for one that is not there."""
    groups = catalogue().groups()
    if group is None:
        return groups
    if group not in groups:
        raise Failure(USAGE, f"--group {group[:60]!r} is no group; {did_you_mean(group, groups)}")
    return {group: groups[group]}


def listing(groups: Mapping[str, Sequence[Noun]], *, whole: bool) -> str:
    """For people; a star marks what can be had in other colours."""
    lines = []
    for group, nouns in groups.items():
        names = ", ".join(f"{noun.name}{'*' if noun.recolour else ''}" for noun in nouns)
        lines += [f"{group} ({len(nouns)})", *(f"    {line}" for line in textwrap.wrap(names, WIDTH))]
    if whole:
        solids = f"{', '.join(toybox.SHAPES)} in {', '.join(toybox.COLORS)}; {', '.join(toybox.PATTERNS)}"
        lines += [
            "",
            f"* also in {', '.join(COLORS)}: a red couch",
            "Two things: a pumpkin on top of a barrel, a frog next to a mushroom, a barrel under a pumpkin",
            f"Solids: {solids}: a red cube on top of a blue sphere",
        ]
    return "\n".join(lines)


def as_data(groups: Mapping[str, Sequence[Noun]]) -> dict[str, Any]:
    """For machines."""
    things = [
        {
            "name": noun.name,
            "group": group,
            "synonyms": list(noun.synonyms),
            "colours": list(COLORS) if noun.recolour else [],
        }
        for group, nouns in groups.items()
        for noun in nouns
    ]
    return {"things": things, "colours": list(COLORS), "relations": ["on top of", "next to"]}


def write_pictures(path: Path, nouns: Sequence[Noun]) -> None:
    """A sheet of labelled thumbnails as PNG."""
    from PIL import Image, ImageDraw, ImageFont

    if path.suffix.lower() != ".png":
        raise Failure(USAGE, f"--pictures {path}: give a file that ends in .png")
    if not gallery.path().is_file():
        raise Failure(MISSING, f"{gallery.path()} is missing: install splatgen again")
    found, side = gallery.thumbnails(), gallery.SIDE
    font = ImageFont.load_default(11)
    rows = -(-len(nouns) // ACROSS)
    sheet = Image.new("RGB", (min(len(nouns), ACROSS) * CELL, rows * (side + LABEL + 6)), "white")
    draw = ImageDraw.Draw(sheet)
    for n, noun in enumerate(nouns):
        left, top = n % ACROSS * CELL, n // ACROSS * (side + LABEL + 6)
        sheet.paste(found[noun.name], (left + (CELL - side) // 2, top))
        draw.text((left + CELL // 2, top + side + 1), noun.name, "black", font, anchor="ma")
    with atomic.replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
