"""A shelf folder that is missing, partial or broken is refused in a line."""

import boxes
import numpy as np
import pytest

from splatgen.worlds import shelf
from splatgen.worlds.shelf import PACKED, VARIABLE, shelf_folder
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.folder import ShelfError, read_models


def refused(folder) -> str:
    with pytest.raises(ShelfError) as raised:
        read_models(folder, catalogue())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_whole_folder_is_read(tmp_path):
    found = read_models(boxes.write(tmp_path), catalogue())
    assert list(found) == list(catalogue().nouns)
    for noun, mesh in boxes.meshes().items():
        np.testing.assert_allclose(found[noun].positions, mesh.positions, atol=1e-4)


def test_the_folder_is_named_by_the_environment_or_lies_beside_the_repository(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert shelf_folder() == tmp_path
    monkeypatch.delenv(VARIABLE)
    module = tmp_path / "repository" / "splatgen" / "worlds" / "shelf" / "__init__.py"
    monkeypatch.setattr(shelf, "__file__", str(module))
    assert shelf_folder() is None
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / PACKED).touch()
    assert shelf_folder() == tmp_path / "shelf"


def test_a_missing_folder_says_how_to_make_it(tmp_path):
    assert VARIABLE in refused(None)
    assert "shelf.npz is missing" in refused(tmp_path / "nowhere")
    assert "shelf.npz is missing" in refused(tmp_path)


def repacked(folder, change):
    with np.load(boxes.write(folder) / PACKED, allow_pickle=False) as packed:
        parts = {name: packed[name] for name in packed.files}
    change(parts)
    np.savez(folder / PACKED, **parts)


COW, DOG = (catalogue().nouns[noun].model.id for noun in ("cow", "dog"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: [p.pop(f"{COW}/{part}") for part in ("pos", "nrm", "rgb", "tri")], "no model of 'cow':"),
        (lambda p: (p.pop(f"{COW}/tri"), p.pop(f"{DOG}/pos")), "no model of 'cow' and 1 more"),
        (lambda p: p.update({f"{COW}/tri": np.zeros((0, 3), np.uint16)}), "0 faces"),
        (lambda p: p.update({f"{COW}/tri": np.full((1, 3), 999, np.uint16)}), "faces do not lead"),
        (lambda p: p.update({f"{COW}/pos": np.array([{}, []], dtype=object)}), "can't be read"),
    ],
)
def test_a_partial_or_broken_folder_is_refused(tmp_path, change, said):
    repacked(tmp_path, change)
    assert said in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 1000, -40])
def test_a_file_that_is_cut_short_is_refused(tmp_path, keep):
    path = boxes.write(tmp_path) / PACKED
    path.write_bytes(path.read_bytes()[:keep])
    assert "can't be read" in refused(tmp_path)
