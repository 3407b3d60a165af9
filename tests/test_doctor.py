"""The doctor: true findings, and no falling over a broken installation."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splatgen import doctor, video
from splatgen.doctor import Finding

Cli = Callable[..., Any]


def names(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_the_report_ends_with_the_next_command(cli: Cli) -> None:
    done = cli("doctor")
    able = done.code == 0
    assert done.code in (0, 3)
    last = done.out.rstrip().splitlines()[-1]
    assert last.startswith("next: ")
    assert ("splatgen generate" in last) == able
    for word in ("python", "packages", "torch", "rasterizer", "toybox prior", "ffmpeg", "disk"):
        assert word in done.out


def test_json_is_one_object_that_agrees_with_the_exit_code(cli: Cli) -> None:
    done = cli("doctor", "--json")
    found = json.loads(done.out)
    assert found["able"] == (done.code == 0)
    assert all(set(row) == {"name", "state", "text", "advice"} for row in found["findings"])


def test_the_first_bad_finding_decides_what_is_next() -> None:
    note = Finding(name="a", state="note", text="slow", advice="buy")
    bad = [Finding(name=n, state="bad", text="gone", advice=f"install {n}") for n in "bc"]
    assert doctor.able([note])
    assert doctor.next_command([note]) == doctor.EXAMPLE
    assert not doctor.able([note, *bad])
    assert doctor.next_command([note, *bad]) == "install b"
    assert "!!  b  gone\n       install b" in doctor.report([note, *bad])


def test_the_cpu_rasterizer_is_timed() -> None:
    (found,) = doctor.rasterizer()
    assert found.state == "ok", found.text
    assert " ms" in found.text


def test_a_rasterizer_that_fails_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    from splatgen import render

    def fail(*_: object) -> None:
        raise RuntimeError("numba cannot keep compiled kernels: set NUMBA_CACHE_DIR")

    monkeypatch.setattr(render, "render", fail)
    found = names(doctor.examine())["rasterizer"]
    assert found.state == "bad"
    assert found.advice == "set NUMBA_CACHE_DIR to a folder that is writable"


def test_weights_are_listed_with_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("mini-prior", "reward"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"0" * 2_000_000)
    card = {"config": {"size": 16}, "parameters": 268_000, "images": 192_000, "steps": 6000}
    (tmp_path / "mini-prior.json").write_text(json.dumps(card))
    (tmp_path / "reward.json").write_text("[]")
    monkeypatch.setattr("splatgen.toybox.weights_folder", lambda: tmp_path)
    found = names(doctor.weights())
    mini = found["toybox mini-prior"]
    assert mini.text == "2.0 MB, 16 pixels, 268,000 parameters, 192,000 training images, 6,000 steps"
    assert found["toybox reward"].text == "2.0 MB, its card can't be read"
    assert found["toybox prior"].state == "bad"  # the default needs it
    assert found["toybox prior"].advice == "python -m splatgen.toybox.train prior"
    assert found["toybox mini-reward"].state == "note"


def test_a_broken_library_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes every import of it fail
    monkeypatch.setitem(sys.modules, "splatgen.video", None)
    found = names(doctor.examine())
    assert found["torch_build"].state == found["film"].state == found["rasterizer"].state == "bad"
    assert "ImportError" in found["film"].text or "ModuleNotFoundError" in found["film"].text
    assert found["python"].state == "ok"


def test_versions_are_held_against_the_declared_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "tyro":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0.0" if name == "gsplat" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = names(doctor.packages())
    assert found["gsplat"].state == "note"
    assert found["gsplat"].text.startswith("1.0.0, tested with ")
    assert found["gsplat"].advice.startswith("pip install 'gsplat")
    assert found["tyro"].state == "bad"
    assert "numpy" in found["packages"].text
    assert "pytest" not in found


def test_a_missing_installation_and_ffmpeg_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", none)
    assert [f.state for f in doctor.packages()] == ["note"]
    monkeypatch.setattr(video, "find_ffmpeg", lambda: None)
    (found,) = doctor.film()
    assert found.state == "note"
    assert "GIF" in found.text


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    (found,) = doctor.disk()
    assert found.state == "note"
    assert "--out" in found.advice


@pytest.mark.parametrize(
    ("driver", "words"), [(None, "no NVIDIA driver"), ("580.1", "driver 580.1, but torch")]
)
def test_without_cuda_runs_use_the_cpu(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, words: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    (found,) = doctor.cuda()
    assert found.state == "note"
    assert words in found.text
    assert "runs use the CPU" in found.text


def test_cuda_is_described_with_gsplats_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(doctor, "_driver", lambda: "580.1")
    device, kernels = doctor.cuda()
    assert device.text == "Some GPU, 4.0 of 8.0 GiB free, driver 580.1"
    assert kernels.name == "gsplat"
    assert kernels.text.startswith(importlib.metadata.version("gsplat"))
