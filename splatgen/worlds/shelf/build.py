"""Pack the shelf's models: `python -m splatgen.worlds.shelf.build FOLDER` writes FOLDER/shelf.npz.

FOLDER holds clones of the repositories that the catalogue names, each under its own name (`git clone` makes
that), for instance FOLDER/KayKit-City-Builder-Bits-1.0. What a file needs is in its pack; nothing is fetched.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.runs import atomic
from splatgen.worlds.shelf import PACKED, VARIABLE
from splatgen.worlds.shelf.catalogue import Catalogue, Noun, catalogue
from splatgen.worlds.shelf.folder import ShelfError
from splatgen.worlds.shelf.gltf import GltfError, read
from splatgen.worlds.shelf.meshes import normalised, pack
from splatgen.worlds.shelf.surfaces import mesh


def source(folder: Path, noun: Noun) -> Path:
    """Where a noun's model lies in a folder of clones."""
    return folder / noun.model.repository.partition("/")[2] / noun.model.file


def check(folder: Path, known: Catalogue) -> None:
    """Raise ShelfError unless every file that the catalogue names is there."""
    if not folder.is_dir():
        raise ShelfError(f"{folder} is no folder: make it and clone the catalogue's repositories into it")
    lacking = [noun for noun in known.nouns.values() if not source(folder, noun).is_file()]
    if lacking:
        first, more = lacking[0], f", and {len(lacking) - 1} other models" if len(lacking) > 1 else ""
        wanted = f"clone github.com/{first.model.repository} into {folder}"
        raise ShelfError(f"{source(folder, first)} of {first.name!r} is missing{more}: {wanted}")


def build(folder: Path, known: Catalogue) -> Path:
    """Pack every model of a catalogue into the folder's shelf.npz, whole or not at all.

    Raises ShelfError in a line for a file that is missing, damaged or has no triangles.
    """
    check(folder, known)
    packed: dict[str, NDArray[Any]] = {}
    for noun in known.nouns.values():
        try:
            found = normalised(mesh(read(source(folder, noun)), noun.model.without), noun.model.yaw)
        except (GltfError, OSError) as error:
            raise ShelfError(f"the model of {noun.name!r} can't be packed: {error}") from error
        packed |= {f"{noun.model.id}/{part}": values for part, values in pack(found).items()}
    target = folder / PACKED
    with atomic.replacing(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **packed)  # type: ignore[arg-type]
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args(argv)
    try:
        path = build(options.folder, catalogue())
    except (ShelfError, OSError, ValueError) as error:
        print(f"shelf: error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: set {VARIABLE}={options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
