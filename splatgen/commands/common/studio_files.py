"""Files that people bring to the studio's page or take from it, and what differs between two runs."""

from __future__ import annotations

import hashlib
import json
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatgen import formats
from splatgen.commands.common.past_runs import PastRun
from splatgen.commands.common.past_runs import settings as settings_of_kind
from splatgen.config import Config, ConfigError, to_dict
from splatgen.runs import atomic
from splatgen.runs.run_folder import slug

if TYPE_CHECKING:
    from splatgen_viewer import studio_program as page

    from splatgen.commands.common.studio_settings import Settings
    from splatgen.scene.splats import Splats

FOLDER = ".opened"  # in the folder of runs: runs that begin with a file name it
MOST_BYTES = 1_000_000_000
MOST_CONFIG = 1_000_000


class OpenedFiles:
    """Files of pages, kept under names of ours."""

    def __init__(self, out: Path) -> None:
        self._folder = out / FOLDER
        self._paths: dict[str, Path] = {}
        self._configs: dict[str, Config] = {}

    def path(self, name: str) -> Path:
        """Where an opened file of splats lies; ValueError for a name that none has."""
        if name not in self._paths:
            raise ValueError(f"the file {name[:60]!r} is not open any more: open it again")
        return self._paths[name].absolute()

    def config(self, name: str) -> Config | None:
        """The settings of a file that held some."""
        return self._configs.get(name)

    def splats(self, name: str) -> Splats:
        """What is in an opened file, for an edit."""
        from splatgen.commands.edit import nearby

        path = self.path(name)
        return nearby(formats.read(path), path).splats()

    def open(self, name: str, content: bytes, settings: Settings, runs: Mapping[str, PastRun]) -> page.Opened:
        """What is in a file; ValueError for one that nothing can be done with."""
        suffix = Path(name).suffix.lower()
        if suffix in (".json", ".toml"):
            return self._settings(name, content, settings, runs)
        if suffix not in formats.FORMATS:
            known = ", ".join(formats.FORMATS)
            raise ValueError(f"{name[:60]!r} cannot be opened: give {known}, or a run's config.json")
        if formats.packed(name):
            raise ValueError(f"{name[:60]!r}: {formats.packed(name)}")
        if len(content) > MOST_BYTES:
            raise ValueError(f"{name[:60]!r} has {len(content) / 1e9:.1f} GB: give 1 GB at most")
        return self._splats(name, suffix, content)

    def _splats(self, name: str, suffix: str, content: bytes) -> page.Opened:
        from splatgen_viewer.studio_program import Opened

        from splatgen.commands.common.inputs import framed
        from splatgen.loop.object_snapshots import cloud

        known = f"{slug(Path(name).stem)}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / known
        atomic.write_bytes(path, content)
        try:
            file = formats.read(path)
        except ValueError:
            path.unlink(missing_ok=True)
            raise
        self._paths[known] = path
        told = (
            f"{name[:60]}: {len(file):,} splats. Write a prompt to go on from it, or say under It shows "
            "what it is, to edit it into the prompt"
        )
        return Opened(name=known, told=told, cloud=cloud(framed(file, path, "auto")))

    def _settings(
        self, name: str, content: bytes, settings: Settings, runs: Mapping[str, PastRun]
    ) -> page.Opened:
        from splatgen_viewer.studio_program import Opened

        values = table(name, content)
        found = settings_of_kind("image" if "image" in values else None, values)
        if not isinstance(found, Config):
            raise ValueError(f"{name[:60]!r} is of a picture: splatgen image --config takes it")
        if found.source:
            raise ValueError(f"{name[:60]!r} is of an edit, which starts from an object: open that")
        key = f"{slug(Path(name).stem)}-{hashlib.sha256(content).hexdigest()[:8]}"
        self._configs[key] = found
        same = next((past for past in runs.values() if past.config == found), None)
        told = f"{name[:60]}: its settings are in the fields"
        if same is not None:
            told += f". The run {same.name} has them: {same.status}, under Past"
        return Opened(name=key, told=told, form=settings.fields(found, key))


def table(name: str, content: bytes) -> dict[str, Any]:
    """The settings in a .json or .toml; ConfigError for content that holds none."""
    if len(content) > MOST_CONFIG:
        raise ConfigError(f"{name[:60]!r} has {len(content) / 1e6:.0f} MB: give a run's config.json")
    try:
        text = content.decode()
        found = tomllib.loads(text) if name.lower().endswith(".toml") else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{name[:60]!r} cannot be read ({str(error)[:80]}): give a run's config.json"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{name[:60]!r} holds a {type(found).__name__}: give a run's config.json")
    return found


def saved(past: PastRun, suffix: str) -> tuple[str, bytes]:
    """A run's result under a suffix, named by its prompt. ValueError and OSError in words."""
    name = f"{slug(past.config.prompt)}{suffix}"
    if suffix == ".png":
        if past.picture is None:
            raise ValueError(f"{past.name} has no picture")
        return name, past.picture.read_bytes()
    if past.splats is None:
        raise ValueError(f"{past.name} has no finished object")
    if suffix == ".ply":
        return name, past.splats.read_bytes()
    with tempfile.TemporaryDirectory(prefix="splatgen-") as folder:
        path = Path(folder) / name
        formats.save(formats.read(past.splats), path, comments=[f"splatgen {past.name}"])
        return name, path.read_bytes()


def differences(one: PastRun, other: PastRun) -> list[tuple[str, str, str]]:
    """Settings and results that two runs do not share: name, and what each has."""
    ours, theirs = flat(to_dict(one.config)), flat(to_dict(other.config))
    ours |= {name: round(value, 3) for name, value in one.rewards.items()}
    theirs |= {name: round(value, 3) for name, value in other.rewards.items()}
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        (name, shown(ours.get(name)), shown(theirs.get(name)))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings by their names on the command line."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
    return found


def shown(value: object) -> str:
    """A setting in a table."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return "—" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
