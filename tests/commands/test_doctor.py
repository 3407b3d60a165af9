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
from loopback_hub import COMMIT, lay_model, published_files

from splatgen import config
from splatgen.commands.common import doctor_models, doctor_report
from splatgen.commands.common.doctor_models import Choice, Model
from splatgen.commands.common.doctor_report import Examination, Finding
from splatgen.models.catalogue import PUBLISHED
from splatgen.priors import PRIORS
from splatgen.rasterizer import backends
from splatgen.rewards import REWARDS
from splatgen.runs import video

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "hub"


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
    assert [row["name"] for row in found["models"]] == [m.name for m in doctor_models.models()]
    assert set(found["preset"]) == {"preset", "why", "command"}


def test_the_first_bad_finding_decides_what_is_next() -> None:
    note = Finding(name="a", state="note", text="slow", advice="buy")
    bad = [Finding(name=n, state="bad", text="gone", advice=f"install {n}") for n in "bc"]
    choice = Choice(preset="toybox", why="no GPU", command="splatgen generate")
    fine = Examination(findings=[note], models=[], choice=choice)
    assert (fine.able, fine.next) == (True, "splatgen generate")
    ill = Examination(findings=[note, *bad], models=[], choice=choice)
    assert (ill.able, ill.next) == (False, "install b")
    assert "!!  b  gone\n       install b" in doctor_report.report(ill)
    assert doctor_report.report(fine).endswith("\npreset: toybox (no GPU)\nnext: splatgen generate")


def test_the_cpu_rasterizer_is_timed() -> None:
    (found,) = doctor_report.rasterizer()
    assert found.state == "ok", found.text
    assert " ms" in found.text


def test_a_rasterizer_that_fails_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    from splatgen import rasterizer

    def fail(*_: object) -> None:
        raise RuntimeError("numba cannot keep compiled kernels: set NUMBA_CACHE_DIR")

    monkeypatch.setattr(rasterizer, "render", fail)
    found = names(doctor_report.examine().findings)["rasterizer"]
    assert found.state == "bad"
    assert found.advice == "set NUMBA_CACHE_DIR to a folder that is writable"


def test_every_packaged_card_is_read() -> None:
    assert not [f.name for f in doctor_report.weights() if f.state == "ok" and "can't be read" in f.text]


def test_weights_are_listed_with_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("mini-prior", "reward"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"0" * 2_000_000)
    card = {"config": {"size": 16}, "parameters": 268_000, "images": 192_000, "steps": 6000}
    (tmp_path / "mini-prior.json").write_text(json.dumps(card))
    (tmp_path / "reward.json").write_text("[]")
    monkeypatch.setattr("splatgen.worlds.toybox.weights_folder", lambda: tmp_path)
    found = names(doctor_report.weights())
    mini = found["toybox mini-prior"]
    assert mini.text == "2.0 MB, 16 pixels, 268,000 parameters, 192,000 training images, 6,000 steps"
    assert found["toybox reward"].text == "2.0 MB, its card can't be read"
    assert found["toybox prior"].state == "bad"  # the default needs it
    assert found["toybox prior"].advice == "python -m splatgen.worlds.toybox.train prior"
    assert found["toybox mini-reward"].state == "note"


def test_a_broken_library_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes every import of it fail
    monkeypatch.setitem(sys.modules, "splatgen.runs.video", None)
    found = names(doctor_report.examine().findings)
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
    found = names(doctor_report.packages())
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
    assert [f.state for f in doctor_report.packages()] == ["note"]
    monkeypatch.setattr(video, "find_ffmpeg", lambda: None)
    (found,) = doctor_report.film()
    assert found.state == "note"
    assert "GIF" in found.text


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    (found,) = doctor_report.disk()
    assert found.state == "note"
    assert "--out" in found.advice


@pytest.mark.parametrize(
    ("driver", "words"), [(None, "no NVIDIA driver"), ("580.1", "beside an NVIDIA GPU, so runs")]
)
def test_without_cuda_runs_use_the_cpu(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, words: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(backends, "driver", lambda: driver)
    (found,) = doctor_report.cuda()
    assert found.state == "note"
    assert words in found.text
    assert "runs use the CPU" in found.text
    assert ("pip install 'torch===" in found.advice or "pytorch.org" in found.advice) == bool(driver)


GSPLAT = backends.Problem(text="no built kernels", advice="build them")
TRITON = backends.Problem(text="no C compiler", advice="install gcc")


@pytest.mark.parametrize(
    ("problems", "renders"),
    [((None, None), "gsplat renders"), ((GSPLAT, None), "triton renders"), ((GSPLAT, TRITON), "none: ")],
)
def test_cuda_is_described_with_what_renders_there(
    monkeypatch: pytest.MonkeyPatch, problems: tuple[backends.Problem | None, ...], renders: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(backends, "driver", lambda: "580.1")
    for name, problem in zip(backends.BACKENDS, problems, strict=True):
        monkeypatch.setitem(backends.PROBLEMS, name, lambda problem=problem: problem)
    monkeypatch.setattr(backends, "gsplat_problem", lambda: problems[0])
    device, chosen, *kernels = doctor_report.cuda()
    assert device.text == "Some GPU, compute capability 8.6, 4.0 of 8.0 GiB free, driver 580.1"
    assert chosen.text.startswith(renders)
    assert [finding.name for finding in kernels] == ["gsplat", "triton"]
    assert kernels[0].text.startswith(importlib.metadata.version("gsplat"))
    for finding, problem in zip(kernels, problems, strict=True):
        assert finding.state == ("ok" if problem is None else "note")
        assert finding.advice == (problem.advice if problem else "")


# --- published models --------------------------------------------------------------------------------


def model(name: str) -> Model:
    return next(each for each in doctor_models.models() if each.name == name)


def test_every_prior_and_reward_is_looked_for() -> None:
    found = doctor_models.models()
    wanted = {n for table in (PRIORS, REWARDS) for n, entry in table.items() if not entry.embedded}
    assert wanted < {each.name for each in found} == set(PUBLISHED)
    assert {each.state for each in found} == {"missing"}
    kinds = {each.name: each.kind for each in found}
    assert [kinds[name] for name in ("sd15", "clip", "taesd3", "shap-e")] == list(
        dict.fromkeys(kinds.values())
    )
    assert list(dict.fromkeys(kinds.values())) == ["prior", "reward", "decoder", "shapes"]


def test_what_is_here_has_its_place_revision_and_size(cache: Path) -> None:
    lay_model(cache, "sd15")
    found = model("sd15")
    (files,) = published_files("sd15").values()
    assert found.state == "here"
    assert found.source == f"stable-diffusion-v1-5/stable-diffusion-v1-5@{COMMIT}"
    assert Path(found.folder).name == COMMIT
    assert found.gigabytes * 1e9 == pytest.approx(sum(map(len, files.values())))
    assert model("sd21").text == "not here (2.6 GB to fetch, CreativeML Open RAIL++-M)"
    assert model("sd21").advice == "splatgen fetch sd21"


def test_a_gate_says_where_to_accept_what() -> None:
    found = model("sd35")
    assert "Stability AI Community" in found.text
    assert found.text.endswith("first, at https://huggingface.co/stabilityai/stable-diffusion-3.5-medium")
    assert found.advice == "hf auth login, then splatgen fetch sd35"


def test_a_download_that_broke_off_is_incomplete_and_names_the_file(cache: Path) -> None:
    (snapshot,) = lay_model(cache, "sd15")
    (snapshot / "vae" / "config.json").resolve().unlink()  # its link stays, and leads nowhere
    found = model("sd15")
    assert found.state == "incomplete"
    assert found.text.startswith(f"lacks vae/config.json in {snapshot} (2.1 GB to fetch")


def test_a_file_cut_short_is_damage_and_named(cache: Path) -> None:
    (snapshot,) = lay_model(cache, "taesd")
    path = snapshot / "diffusion_pytorch_model.safetensors"
    path.resolve().write_bytes(path.read_bytes()[:-1])
    found = model("taesd")
    assert (found.state, found.problem) == ("damaged", str(path))
    assert names(doctor_report.examine().findings)["decoder taesd"].state == "note"


@pytest.mark.parametrize("how", ["file", "loop", "rubbish", "folder for a file", "unreadable"])
def test_a_cache_in_disorder_is_no_fall(cache: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (snapshot,) = lay_model(cache, "taesd")
    if how == "file":
        shutil.rmtree(cache)
        cache.write_text("no folder")
    elif how == "loop":
        shutil.rmtree(snapshot)
        snapshot.symlink_to(snapshot)
    elif how == "rubbish":
        (snapshot.parent.parent / "refs" / "main").write_bytes(b"\xff/../../../etc")
    elif how == "folder for a file":
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").mkdir()
    else:
        monkeypatch.setattr("splatgen.models.weights.inventory", unreadable)
    expected = {"folder for a file": "incomplete", "unreadable": "damaged"}.get(how, "missing")
    assert model("taesd").state == expected


def unreadable(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied", "/some/file")


def test_a_folder_of_weights_is_looked_in_first(cli: Cli, tmp_path: Path) -> None:
    for files in published_files("taesd").values():
        for name, data in files.items():
            path = tmp_path / "w" / "taesd" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    rows = json.loads(cli("doctor", "--json", "--weights", tmp_path / "w").out)["models"]
    states = {row["name"]: row["state"] for row in rows}
    assert (states["taesd"], states["taesdxl"]) == ("here", "missing")
    commands = {row["name"]: row["command"] for row in rows}
    assert commands["taesdxl"] == f"splatgen fetch taesdxl --weights {tmp_path / 'w'}"


def test_models_that_do_not_fit_on_the_disk_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(gigabytes: int) -> None:
        usage = shutil._ntuple_diskusage(10**12, 10**12, gigabytes * 10**9)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    free(16)
    text, fits = doctor_models.room(doctor_models.models())
    assert text.endswith("no room for deepfloyd (20.2 GB), sd35 (16.3 GB), vqa-7b (16.6 GB), hpsv3 (16.6 GB)")
    assert not fits
    free(1000)
    text, fits = doctor_models.room(doctor_models.models())
    assert "room for all that is missing" in text
    assert fits
    free(30)
    assert "room for each of the missing ones" in doctor_models.room(doctor_models.models())[0]


# --- the preset --------------------------------------------------------------------------------------

PRESETS = {
    "sd15-fast": {"prior": "sd15", "budget": "8gb"},
    "sd21-quality": {"prior": "sd21", "budget": "12gb"},
    "mvdream": {"prior": "mvdream", "budget": "12gb"},
    "psd-mvdream": {"prior": "mvdream", "reward": ["hpsv2=0.5"], "budget": "12gb"},
}


def choose(cache: Path, *here: str, gpu: float | None = None, memory: float | None = 16.0) -> Choice:
    for name in here:
        lay_model(cache, name)
    return doctor_models.choose(doctor_models.models(), PRESETS, gpu=gpu, memory=memory)


def test_the_recommended_presets_are_there() -> None:
    assert set(doctor_models.ON_A_GPU) <= set(config.presets())
    for name in doctor_models.ON_A_GPU:
        assert config.read_preset(name)["prior"] in PRIORS


def test_without_a_gpu_it_is_the_toybox(cache: Path) -> None:
    assert choose(cache, "sd15").preset == "toybox"
    little = choose(cache, memory=1.5)
    assert little.preset == "toybox-draft"
    assert "1.5 GiB of memory" in little.why
    assert little.command.endswith("--preset toybox-draft")
    assert choose(cache, memory=None).preset == "toybox"


@pytest.mark.parametrize(
    ("here", "gpu", "preset", "budget"),
    [
        (("sd15",), 11.6, "sd15-fast", " --budget 12gb"),
        (("sd15",), 7.7, "sd15-fast", ""),
        (("sd15", "sd21"), 7.7, "sd15-fast", ""),  # the better one takes more memory
        (("sd15", "sd21"), 11.6, "sd21-quality", ""),
        (("sd21",), 7.7, "sd21-quality", " --budget 8gb"),
        (("sd15", "mvdream"), 23.6, "mvdream", " --budget 24gb"),
        (("mvdream", "hpsv2"), 23.6, "psd-mvdream", " --budget 24gb"),
        (("mvdream", "hpsv2"), 79.0, "psd-mvdream", " --budget none"),
        (("sd15", "hpsv2"), 4.0, "sd15-fast", ""),
    ],
)
def test_with_a_gpu_the_weights_and_its_memory_decide(
    cache: Path, here: tuple[str, ...], gpu: float, preset: str, budget: str
) -> None:
    choice = choose(cache, *here, gpu=gpu)
    assert choice.preset == preset
    assert choice.command.endswith(f"--preset {preset}{budget}")


def test_with_a_gpu_and_no_weights_the_first_thing_is_to_fetch_some(cache: Path) -> None:
    choice = choose(cache, "hpsv2", gpu=24.0)
    assert (choice.preset, choice.command) == ("toybox", "splatgen fetch sd15")
    assert "2.1 GB" in choice.why


def test_the_gpus_memory_is_read_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 12 * 2**30))
    assert doctor_report.gpu_memory() == 12.0
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor_report.gpu_memory() is None
