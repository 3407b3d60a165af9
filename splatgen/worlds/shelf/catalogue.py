"""What the shelf holds: its nouns, the order of its words, and the nearest noun for words it does not know.

All of it is data, in catalogue.json. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Model:
    """The one model of a noun, and where it is from."""

    id: str  # in shelf.npz
    file: str  # in its repository
    repository: str  # owner/name on GitHub
    licence: str
    faces: int
    yaw: float  # degrees about +Y that turn its front to +Z
    without: tuple[str, ...] = ()  # parts whose name holds one of these are left out


@dataclass(frozen=True, kw_only=True)
class Noun:
    """A thing that a caption can name."""

    name: str
    caption: str  # with its article
    synonyms: tuple[str, ...]
    group: str
    recolour: bool  # whether its main paint can have another colour
    color: str | None  # what one would call its own, if anything
    model: Model


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Nouns by name, in their order; words in the tokenizer's order."""

    nouns: Mapping[str, Noun]
    words: tuple[str, ...]
    near: Mapping[str, str]  # a common word outside the vocabulary: the noun that comes nearest

    def groups(self) -> dict[str, list[Noun]]:
        """The nouns of each group, in order."""
        found: dict[str, list[Noun]] = {}
        for noun in self.nouns.values():
            found.setdefault(noun.group, []).append(noun)
        return found


def read(path: Path) -> Catalogue:
    """A catalogue from its JSON file; ValueError in a line for one that contradicts itself."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        nouns = [_noun(entry, data["licences"]) for entry in data["nouns"]]
        words, near = tuple(data["words"].split()), dict(data["near"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is no catalogue of the shelf ({error!r}): restore the file") from error
    _check_names(nouns, path.name)
    unknown = sorted(set(near.values()) - {noun.name for noun in nouns})
    if unknown:
        raise ValueError(f"{path.name} sends a word to {unknown[0]!r}, which is no noun of it: correct it")
    return Catalogue(nouns=MappingProxyType({n.name: n for n in nouns}), words=words, near=near)


def _noun(entry: Mapping[str, Any], licences: Mapping[str, str]) -> Noun:
    model = entry["model"]
    return Noun(
        name=entry["name"],
        caption=entry["caption"],
        synonyms=tuple(entry["synonyms"]),
        group=entry["group"],
        recolour=entry["recolour"],
        color=entry["color"],
        model=Model(
            id=model["id"],
            file=model["file"],
            repository=model["repository"],
            licence=licences[model["repository"]],
            faces=model["faces"],
            yaw=model["yaw"],
            without=tuple(model.get("without", ())),
        ),
    )


def _check_names(nouns: Sequence[Noun], where: str) -> None:
    """Raise ValueError where one word would mean two things."""
    owner: dict[str, str] = {}
    for noun in nouns:
        for word in (noun.name, *noun.synonyms):
            if word in owner:
                raise ValueError(
                    f"{where}: {word!r} names {owner[word]!r} and {noun.name!r}: give it to one of them"
                )
            owner[word] = noun.name


@cache
def catalogue() -> Catalogue:
    """The packaged catalogue."""
    return read(Path(__file__).with_name("catalogue.json"))
