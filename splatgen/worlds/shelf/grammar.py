"""The shelf's language: what a caption can say, and how a prompt is read.

    a taxi                                   one thing
    a red couch                              one thing in another colour, where its paint can be changed
    a pumpkin on top of a barrel             stacked
    a frog next to a mushroom                side by side, the first on the left seen from the front

The toybox's captions ("a red cube with a blue front") belong to it too. No torch here: the command line
checks prompts before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.words import (
    COLOR_NEAR,
    COLOR_SYNONYMS,
    FILLER,
    LINKS,
    NEAR_RELATIONS,
    RELATIONS,
    Relation,
)
from splatgen.worlds.toybox import grammar as toybox
from splatgen.worlds.toybox.grammar import VocabularyError

SPELLING = 0.8  # difflib's ratio, above which an unknown word is taken for a misspelt one
SHOWN = 8  # words that a refusal names
PHRASE_SPELLING = 0.88  # the same of several words together


@dataclass(frozen=True)
class Item:
    """A thing, in its own colour unless one is named."""

    noun: str
    color: str | None = None

    def __str__(self) -> str:
        return self.noun if self.color is None else f"{self.color} {self.noun}"


@dataclass(frozen=True)
class Caption:
    """One thing, or two in a relation."""

    first: Item
    relation: str | None = None  # "on top of" or "next to"
    second: Item | None = None

    def __str__(self) -> str:
        """The canonical text."""
        text = with_article(str(self.first))
        return text if self.second is None else f"{text} {self.relation} {with_article(str(self.second))}"

    @property
    def items(self) -> tuple[Item, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)


AnyCaption = Caption | toybox.Caption


@dataclass(frozen=True, kw_only=True)
class Read:
    """A run of a prompt's words and what it is."""

    kind: str  # noun, near (a noun that is near it), color, relation, link or unknown
    words: tuple[str, ...]
    means: str | Relation = ""


def with_article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def tokens(caption: AnyCaption | str) -> list[str]:
    """The words that the models read: the canonical text without its articles."""
    return [word for word in str(caption).split() if word not in ("a", "an")]


def parse(prompt: str) -> AnyCaption:
    """Read a prompt; VocabularyError names the words it cannot use and the nearest prompt it can do."""
    reads = _read(_words(prompt))
    caption, problems, unknown = _understand(reads)
    if caption is not None and not problems:
        return caption
    try:
        return toybox.parse(prompt)
    except toybox.VocabularyError as error:
        if _of_solids(reads):
            raise _refused(reads, error) from error
    near = str(caption or "")
    if not reads:
        problems = ["the prompt is empty"]
    listed = "`splatgen words` lists what it knows"
    listed = listed if prompt.isascii() else f"prompts are English, and {listed}"
    advice = f"the nearest prompt it can do is {near!r}" if near else listed
    raise VocabularyError(f"{'; '.join(problems)}; {advice}", unknown, near)


def _solids(reads: Sequence[Read]) -> list[Read]:
    """The reads that name a solid of the toybox."""
    names = [(name,) for name in (*toybox.SHAPES, "ball")]
    return [read for read in reads if read.kind != "noun" and read.words in names]


def _of_solids(reads: Sequence[Read]) -> bool:
    """Whether a prompt speaks of solids, and of nothing else."""
    solids = _solids(reads)
    return bool(solids) and all(r in solids for r in reads if r.kind in ("noun", "near"))


def _refused(reads: Sequence[Read], error: VocabularyError) -> VocabularyError:
    """The toybox's refusal of a prompt of solids, as the shelf says it."""
    if error.unknown:
        problem = f"the shelf does not know {_quoted(error.unknown)}"
    elif any(read.kind == "color" for read in reads):
        problem = "the shelf knows these words but not this sentence"
    else:
        problem = "a solid needs a colour"
    advice = f"the nearest prompt it can do is {error.nearest!r}"
    return VocabularyError(f"{problem}; {advice}", error.unknown, error.nearest)


def _words(prompt: str) -> list[str]:
    """Lower-case words; hyphens part them."""
    return re.findall(r"[^\s,.;:!?\"'()\-–—]+", prompt.lower().replace("'s", ""))


@cache
def _phrases() -> dict[tuple[str, ...], Read]:
    """Every phrase with a meaning, plurals included; of two meanings the first counts."""
    known = catalogue()
    names = {name: n.name for n in known.nouns.values() for name in (n.name, *n.synonyms)}
    tables: list[tuple[str, Mapping[str, str | Relation]]] = [
        ("noun", names),
        ("noun", _in_plural(names)),
        ("relation", RELATIONS),
        ("near relation", NEAR_RELATIONS),
        ("color", COLOR_SYNONYMS),
        ("near color", COLOR_NEAR),
        ("filler", dict.fromkeys(FILLER, "")),
        ("link", dict.fromkeys(LINKS, "")),
        ("near", known.near),
        ("near", _in_plural(known.near)),
    ]
    found: dict[tuple[str, ...], Read] = {}
    for kind, table in tables:
        for text, means in table.items():
            words = tuple(_words(text))
            found.setdefault(words, Read(kind=kind, words=words, means=means))
    return found


@cache
def _longest() -> int:
    """Words of the longest phrase."""
    return max(map(len, _phrases()))


def _in_plural(names: Mapping[str, str]) -> dict[str, str]:
    return {plural: means for name, means in names.items() for plural in _plurals(name)}


def _plurals(name: str) -> list[str]:
    if name.endswith("us"):
        return [f"{name[:-2]}i", f"{name}es"]
    return [f"{name}s", f"{name}es", *([f"{name[:-1]}ies"] if name.endswith("y") else [])]


def _read(words: Sequence[str]) -> list[Read]:
    """The longest known phrase at each place; fillers and what leads to a relation are dropped."""
    phrases = _phrases()
    found: list[Read] = []
    at = 0
    while at < len(words):
        for length in range(min(_longest(), len(words) - at), 0, -1):
            read = phrases.get(tuple(words[at : at + length]))
            if read is not None:
                break
        else:
            read, length = Read(kind="unknown", words=(words[at],)), 1
        if read.kind != "filler":
            found.append(read)
        at += length
    kept: list[Read] = []
    for read in reversed(found):  # "sitting on": a link says nothing before a relation
        if read.kind != "link" or not (kept and kept[-1].kind.endswith("relation")):
            kept.append(read)
    return kept[::-1]


def _understand(reads: Sequence[Read]) -> tuple[Caption | None, list[str], tuple[str, ...]]:
    """The nearest caption, what is wrong with the prompt if anything is, and the words it cannot use."""
    places = [n for n, read in enumerate(reads) if read.kind.endswith("relation")]
    split = places[0] if places else len(reads)
    parts = [reads[:split], reads[split + 1 : places[1] if len(places) > 1 else None]]
    rest = reads[places[1] :] if len(places) > 1 else ()
    items: list[Item | None] = []
    unused = [read for read in reads[split : split + 1] if read.kind != "relation"]
    problems: list[str] = []
    for part in parts if places else parts[:1]:
        item, left, problem = _item(part)
        items.append(item)
        unused += left
        problems += problem
    unused += rest
    unknown = tuple(dict.fromkeys(" ".join(read.words) for read in unused))
    problems = [*_useless(unused), *problems]
    if len(places) > 1:
        problems.append("two things at most can be put together")
    there = [item for item in items if item is not None]
    if places and len(there) < 2 and not unknown and not problems:
        problems.append(f"{' '.join(reads[split].words)!r} needs a thing on either side")
    if len(there) < 2:
        return (Caption(there[0]) if there else None), problems, unknown
    return _arranged(reads[split], there[0], there[1], problems, unknown)


def _useless(unused: Sequence[Read]) -> list[str]:
    """What to say of words that no caption takes: that nobody knows them, or not there."""
    solids = _solids(unused)
    found = []
    if solids:
        named = _quoted([" ".join(read.words) for read in solids])
        found.append(f"the shelf puts {named} together with other solids only")
    unused = [read for read in unused if read not in solids]
    for what, known in (("does not know", False), ("cannot use", True)):
        some = [r for r in unused if (r.kind in ("noun", "color", "link", "relation")) == known]
        words = list(dict.fromkeys(" ".join(read.words) for read in some))
        if words:
            more = " and more" if len(words) > SHOWN else ""
            found.append(f"the shelf {what} {_quoted(words)}{more}{' there' if known else ''}")
    return found


def _quoted(words: Sequence[str]) -> str:
    """The first of them, none of them long."""
    return ", ".join(repr(word[:30]) for word in words[:SHOWN])


def _arranged(
    read: Read, a: Item, b: Item, problems: list[str], unknown: tuple[str, ...]
) -> tuple[Caption, list[str], tuple[str, ...]]:
    assert isinstance(read.means, Relation)
    if a.noun == b.noun:
        problems.append(f"two of a kind ({a.noun!r}) can't be put together")
        return Caption(a), problems, unknown
    first, second = (b, a) if read.means.swapped else (a, b)
    return Caption(first, read.means.name, second), problems, unknown


def _item(reads: Sequence[Read]) -> tuple[Item | None, list[Read], list[str]]:
    """The thing that a part of a prompt names, the words it leaves, and what cannot be done."""
    reads = [*(_as_color(read) for read in reads[:-1]), *reads[-1:]]
    nouns = [read for read in reads if read.kind == "noun"]
    near = [read for read in reads if read.kind == "near"]
    colors = [read for read in reads if read.kind.endswith("color")]
    head = nouns[-1] if nouns else near[-1] if near else None
    phrase = _misspelt_phrase(reads)
    noun = phrase or (str(head.means) if head else _misspelt(reads))
    left = [read for read in reads if read is not head or not nouns or phrase]
    if noun is None:
        return None, left, []
    left = [read for read in left if read not in colors[:1] or read.kind == "near color"]
    color = str(colors[0].means) if colors else None
    thing = catalogue().nouns[noun]
    if color is None or thing.recolour:
        return Item(noun, color), left, []
    if not nouns and not phrase:
        return Item(noun), left, []  # nobody asked for this thing: its colour is no matter
    if color == thing.color:
        return Item(noun), left, []
    return Item(noun), left, [f"the colour of {with_article(noun)} can't be changed"]


def _as_color(read: Read) -> Read:
    """What a word means before another: an orange is a colour there."""
    color = COLOR_SYNONYMS.get(" ".join(read.words))
    return read if color is None else Read(kind="color", words=read.words, means=color)


def _spelt(text: str, cutoff: float) -> str | None:
    names = {" ".join(words): read for words, read in _phrases().items() if read.kind == "noun"}
    close = difflib.get_close_matches(text, names, n=1, cutoff=cutoff)
    return str(names[close[0]].means) if close else None


def _misspelt_phrase(reads: Sequence[Read]) -> str | None:
    """The noun of several words that these are but for a letter: a fire hidrant is no fire."""
    words = [word for read in reads if not read.kind.endswith("color") for word in read.words]
    if not 2 <= len(words) <= 4 or not any(read.kind == "unknown" for read in reads):
        return None
    return _spelt(" ".join(word[:30] for word in words), PHRASE_SPELLING)


def _misspelt(reads: Sequence[Read]) -> str | None:
    """The noun whose name looks most like the unknown words."""
    text = " ".join(word[:30] for read in reads[:20] if read.kind == "unknown" for word in read.words)
    attempts = dict.fromkeys((text, *reversed(text.split())))
    return next((found for attempt in attempts if (found := _spelt(attempt, SPELLING))), None)
