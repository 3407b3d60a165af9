"""Reading the shelf's models from their folder on this machine. They are no part of the package.

`python -m splatgen.worlds.shelf.build` makes the folder out of public collections.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from splatgen.worlds.shelf import PACKED, VARIABLE
from splatgen.worlds.shelf.catalogue import Catalogue
from splatgen.worlds.shelf.meshes import PARTS, Mesh, unpack

BUILD = "`python -m splatgen.worlds.shelf.build FOLDER` makes it"


class ShelfError(RuntimeError):
    """A folder of models that is missing, broken or partial; the message says what to do."""


def read_models(folder: Path | None, known: Catalogue) -> dict[str, Mesh]:
    """The mesh of every noun by its name; ShelfError in a line for a folder that does not hold them whole."""
    if folder is None:
        raise ShelfError(f"the shelf's models are not on this machine: {BUILD}, then set {VARIABLE}")
    path = folder / PACKED
    if not path.is_file():
        raise ShelfError(f"{path} is missing: {BUILD}, or set {VARIABLE} to the folder that holds it")
    try:
        with np.load(path, allow_pickle=False) as packed:
            names = set(packed.files)
            lacking = [
                n.name for n in known.nouns.values() if any(f"{n.model.id}/{p}" not in names for p in PARTS)
            ]
            if lacking:
                more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
                raise ShelfError(f"{path} has no model of {lacking[0]!r}{more}: {BUILD} whole")
            return {
                noun.name: unpack({part: packed[f"{noun.model.id}/{part}"] for part in PARTS})
                for noun in known.nouns.values()
            }
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ShelfError(f"{path} can't be read ({str(error)[:120]}): {BUILD} again") from error
