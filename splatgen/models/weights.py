"""Weights on this machine: whether a model is here, whole, and where. No torch here, and nothing downloads.

A model is looked for in `WEIGHTS/NAME/`, where a folder of weights is given, else in the Hugging Face cache.
`splatgen fetch` puts it there.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splatgen.models.catalogue import PUBLISHED, Part, Published, published

__all__ = [
    "PUBLISHED", "SINGLE_FILES", "Inventory", "ModelFiles", "Part", "Published", "WeightsError", "cached",
    "choose", "find", "given", "inventory", "missing", "published", "torn",
]  # fmt: skip

SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
_ID = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]{0,99}(/\w[\w.-]{0,99}){0,4}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LFS = b"version https://git-lfs"


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, or of another architecture; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where the parts of a model are, by their folders, and which revisions those are."""

    folders: Mapping[str, Path]
    sources: Mapping[str, str] = field(default_factory=dict)  # repo@revision, or the path

    @property
    def main(self) -> Path:
        return self.folders[""]

    @property
    def source(self) -> str:
        """One line for run.json."""
        return ", ".join(self.sources.values())


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What of a published model is on this machine."""

    found: ModelFiles
    files: tuple[Path, ...]  # that it takes
    lacking: tuple[str, ...]  # patterns that nothing answers to, below their folders
    torn: tuple[Path, ...]  # files that are cut short, or pointers to the real ones

    @property
    def whole(self) -> bool:
        return not self.lacking and not self.torn

    @property
    def gigabytes(self) -> float:
        return sum(path.stat().st_size for path in self.files) / 1e9


def find(
    name: str, weights: str | None = None, *, small: bool = False, without: tuple[str, ...] = ()
) -> ModelFiles:
    """Where a published model is, whole; small asks for its configurations and tokenizers only.

    Files whose patterns begin with one of `without` may be missing.
    Raises WeightsError that names what is missing or damaged and how to get it, ValueError for a name that
    is not in the table.
    """
    model = published(name)
    into = f" --weights {shlex.quote(weights)}" if weights else ""
    command = f"splatgen fetch {name}{' --small' if small else ''}{into}"
    here = inventory(name, weights, small=small, without=without)
    if here is None:
        where = f"neither in {weights} nor in the cache" if weights else "not on this machine"
        size = "" if small else f" ({model.gigabytes:g} GB)"
        accept = f" after accepting the licence at {model.gate}" if model.gate else ""
        raise WeightsError(f"{name} is {where}: `{command}` gets it{size}{accept}")
    if here.lacking:
        own = ", or take that folder away to use the cache" if _own(name, model, weights) else ""
        raise WeightsError(f"{name} lacks {here.lacking[0]}: `{command}` completes it{own}")
    if here.torn:
        raise WeightsError(f"{here.torn[0]} is cut short or no weights: `{command}` replaces it")
    return here.found


def inventory(
    name: str, weights: str | None = None, *, small: bool = False, without: tuple[str, ...] = ()
) -> Inventory | None:
    """What of a published model is in `WEIGHTS/NAME/` or else in the cache; None when parts are nowhere."""
    model = published(name)
    found = _own(name, model, weights) or _in_cache(model)
    if found is None:
        return None
    files: dict[Path, None] = {}
    lacking = []
    for part in model.parts:
        folder = found.folders[part.folder]
        for entry in needed(part, small=small, without=without):
            chosen = choose(entry, _listing(folder, entry))
            files |= dict.fromkeys(folder / each for each in chosen)
            if not chosen:
                lacking.append(f"{entry.split('|')[0]} in {folder}")
    torn_files = tuple(path for path in files if torn(path))
    return Inventory(found=found, files=tuple(files), lacking=tuple(lacking), torn=torn_files)


def _own(name: str, model: Published, weights: str | None) -> ModelFiles | None:
    own = Path(weights).expanduser() / name if weights else None
    if own is None or not own.is_dir():
        return None
    folders = {part.folder: own / part.folder for part in model.parts}
    return ModelFiles(folders=folders, sources={"": str(own)})


def _in_cache(model: Published) -> ModelFiles | None:
    folders, sources = {}, {}
    for part in model.parts:
        folder = elsewhere(part) if part.url else cached(part.repo, part.revision)
        if folder is None or not folder.is_dir():
            return None
        folders[part.folder] = folder
        sources[part.folder] = f"{part.repo}@{folder.name}"
    return ModelFiles(folders=folders, sources=sources)


def elsewhere(part: Part) -> Path:
    """Where the one file of a part is kept that is not on the hub: beside the hub's cache."""
    from huggingface_hub import constants

    name = part.repo.replace("/", "--")
    return Path(constants.HF_ASSETS_CACHE) / "splatgen" / name / part.revision


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The folder of a repository's revision in the Hugging Face cache, or None.

    Read from the cache's own layout: what the library returns depends on files that are not needed here.
    """
    from huggingface_hub import constants

    name = revision or "main"
    if not _ID.fullmatch(repo) or not _REVISION.fullmatch(name):
        return None
    home = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    try:
        commit = name if _COMMIT.fullmatch(name) else (home / "refs" / name).read_text("ascii").strip()
        folder = home / "snapshots" / commit
        return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None
    except (OSError, UnicodeDecodeError):
        return None


def given(model: str, revision: str | None = None) -> ModelFiles:
    """Weights that a user names: a folder, a single file, or an id in the Hugging Face cache.

    Raises WeightsError when there is none, or a file that can't be weights.
    """
    shown = repr(model if len(model) < 200 else f"{model[:200]}...")
    try:
        path = Path(model).expanduser()
        kind = "nothing" if not model.strip() else "folder" if path.is_dir() else "file"
        kind = kind if kind != "file" or path.is_file() else "other" if path.exists() else "nothing"
    except (OSError, RuntimeError, ValueError) as error:  # too long, of an unknown user, unreadable
        raise WeightsError(f"{shown} can't be looked up ({_reason(error)}): {_ADVICE}") from error
    if kind == "other" or (kind == "file" and path.suffix not in SINGLE_FILES):
        raise WeightsError(f"{shown} is no file of weights: give a folder, or {', '.join(SINGLE_FILES)}")
    if kind == "file" and torn(path):
        raise WeightsError(f"{shown} is cut short or no weights: fetch it again")
    if kind in ("file", "folder"):
        return ModelFiles(folders={"": path}, sources={"": str(path)})
    folder = cached(model, revision)
    if folder is None:
        raise WeightsError(f"there are no weights at {shown}: {_hint(model, revision)}")
    return ModelFiles(folders={"": folder}, sources={"": f"{model}@{folder.name}"})


_ADVICE = "give a folder, a file, or an id that is in the Hugging Face cache"


def _hint(model: str, revision: str | None) -> str:
    if model.startswith((".", "~", os.sep)) or model.count("/") != 1 or not _ID.fullmatch(model):
        return _ADVICE
    if Path(model).suffix in SINGLE_FILES:
        return _ADVICE
    at = f" --revision {revision}" if revision and _REVISION.fullmatch(revision) else ""
    return f"`hf download {model}{at}` gets it, if there is such a model"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def missing(folder: Path, files: Iterable[str]) -> list[str]:
    """The patterns that nothing whole in a folder answers to."""
    return [entry for entry in files if not choose(entry, _listing(folder, entry))]


def needed(part: Part, *, small: bool = False, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The patterns of a part; small leaves out those of weights, without those that begin with one of it."""
    skipped = SINGLE_FILES if small else ()
    return tuple(e for e in part.files if not e.endswith(skipped) and not e.startswith(without))


def choose(entry: str, names: Collection[str], *, full: bool = False) -> list[str]:
    """The names that an entry of a Part asks for, of those there are: its first alternative that is whole.

    full puts half precision (fp16) last.
    """
    patterns = sorted(entry.split("|"), key=lambda pattern: full and ".fp16" in pattern)
    for pattern in patterns:
        depth = pattern.count("/")
        chosen = [n for n in names if n.count("/") == depth and fnmatch.fnmatchcase(n, pattern)]
        if chosen and _all_shards(chosen):
            return sorted(chosen)
    return []


def _all_shards(names: Iterable[str]) -> bool:
    totals = [int(found[1]) for name in names if (found := _SHARD.search(name))]
    return not totals or len(totals) == totals[0]


def _listing(folder: Path, entry: str) -> list[str]:
    """Files of a folder that an entry may mean, relative to it; links that lead nowhere are none."""
    names = []
    for below in {pattern.rpartition("/")[0] for pattern in entry.split("|")}:
        try:
            with os.scandir(folder / below) as there:
                names += [f"{below}/{each.name}".lstrip("/") for each in there if each.is_file()]
        except OSError:
            continue
    return names


def torn(path: Path) -> bool:
    """Whether a file of weights is cut short, empty, or only the pointer to it that git-lfs leaves.

    Reads a header or a zip's directory, so a file of the right length with wrong numbers passes; so does a
    .pt file of the time before zip.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_LFS))
            if size == 0 or start == _LFS:
                return True
            if path.suffix == ".safetensors":
                file.seek(8)
                return size != 8 + _safetensors_bytes(int.from_bytes(start[:8], "little"), file.read)
        return start.startswith(b"PK") and not zipfile.is_zipfile(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # of a header's JSON
        return True


def _safetensors_bytes(length: int, read: Callable[[int], bytes]) -> int:
    """What follows a header's length in a .safetensors file: that header and the tensors it lists."""
    if length > MAX_HEADER:
        return -1
    header = json.loads(read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return length + max(ends, default=0)
