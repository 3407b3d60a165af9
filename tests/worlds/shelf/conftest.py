"""The shelf of this machine, or one of boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boxes
import pytest

from splatgen.worlds.shelf import PACKED, VARIABLE, scenes, shelf_folder
from splatgen.worlds.shelf.scenes import Shelf


@pytest.fixture
def shelf_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """In place of this machine's shelf: what a training or an evaluation finds."""
    folder = tmp_path / "boxes"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(boxes.write(folder)))
    scenes.shelf.cache_clear()
    yield scenes.shelf()
    scenes.shelf.cache_clear()


@pytest.fixture
def real_shelf() -> Iterator[Shelf]:
    folder = shelf_folder()
    if folder is None or not (folder / PACKED).is_file():
        pytest.skip("the shelf's models are not on this machine (SPLATGEN_SHELF)")
    scenes.shelf.cache_clear()
    yield scenes.shelf()
    scenes.shelf.cache_clear()
