"""Files are the old one or the whole new one, whatever happens in between."""

import json
import math
import os

import pytest

from splatgen.runs import atomic


def test_bytes_text_and_json(tmp_path):
    path = tmp_path / "a"
    atomic.write_bytes(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    atomic.write_text(str(path), "é\r\n🦊")
    assert path.read_bytes() == "é\r\n🦊".encode()
    data = {"é": [1, 0.1, None, True], "lone": "a\udc80", "nul": "\x00"}
    atomic.write_json(path, data)
    assert json.loads(path.read_bytes()) == data
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("data", "error"), [(math.nan, ValueError), ([math.inf], ValueError), (object(), TypeError)]
)
def test_json_refuses_before_writing(tmp_path, data, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error):
        atomic.write_json(tmp_path / "a", data)
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)), atomic.replacing(path) as temporary:
        fail(temporary)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_temporary_name(tmp_path):
    path = tmp_path / ("x" * 250 + ".mp4")  # 254 of the 255 bytes that a name may have
    with atomic.replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".mp4"
        assert temporary.name.startswith(".")
        assert not temporary.exists()
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_permissions_are_the_users_default(tmp_path):
    atomic.write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; make it first.*none'"):
        atomic.write_text(tmp_path / "none" / "a", "x")


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_every_system_call_may_fail(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_text("old")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(tmp_path / "a", "new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))[:2])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    atomic.write_text(tmp_path / "a", "x")
    assert calls == [".a", "replace", tmp_path.name[:2]]


def test_errors_name_the_file_that_was_meant(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, atomic.replacing(path):
        pass  # nothing was written
    assert caught.value.filename == str(path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'"):
        atomic.write_text(path, "new")
