"""--render.backend and --device: what is not there is refused before anything is loaded, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Cli

from splatgen.commands.common import checks
from splatgen.commands.common.execution import headline
from splatgen.config import Config, ConfigError, ImageConfig, RenderOptions
from splatgen.config.validation import validate
from splatgen.loop import lifecycle, step
from splatgen.rasterizer import backends
from splatgen.rasterizer.backends import BackendError, Choice, Problem

MISSING, USAGE = 3, 2
PROBLEMS = {
    "gsplat": Problem(text="gsplat's CUDA kernels are not built", advice="build them"),
    "triton": Problem(text="Triton is not installed", advice="install it"),
}


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading one is a failure of the test."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(step, "load_prior", loaded)
    monkeypatch.setattr(step, "load_reward", loaded)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A GPU without the rasterizers that are named."""

    def make(*broken: str) -> None:
        monkeypatch.setattr(backends, "cuda_problem", lambda: None)
        for name in backends.BACKENDS:
            problem = PROBLEMS[name] if name in broken else None
            monkeypatch.setitem(backends.PROBLEMS, name, lambda problem=problem: problem)
            monkeypatch.setattr(backends, f"{name}_problem", lambda problem=problem: problem)

    return make


def refused(cli: Cli, folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and the message, which is one line; no run folder is left."""
    found = cli("generate", "a red cube", "--out", folder / "out", *options)
    assert found.out == ""
    assert found.err.count("\n") == 1, found.err
    assert not list(folder.glob("out/*"))
    return found.code, found.err


@pytest.mark.usefixtures("no_models")
class TestRefused:
    def test_gsplat_without_kernels(self, cli: Cli, gpu, tmp_path: Path) -> None:
        gpu("gsplat")
        code, said = refused(cli, tmp_path, "--render.backend", "gsplat")
        assert code == MISSING
        assert "--render.backend gsplat: gsplat's CUDA kernels are not built: build them" in said

    def test_cuda_without_either(self, cli: Cli, gpu, tmp_path: Path) -> None:
        gpu("gsplat", "triton")
        code, said = refused(cli, tmp_path, "--device", "cuda")
        if "+cpu" not in torch.__version__:
            assert "no rasterizer for the GPU: Triton is not installed: install it; gsplat's" in said
        assert code == MISSING

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_a_backend_without_a_gpu(self, cli: Cli, tmp_path: Path) -> None:
        code, said = refused(cli, tmp_path, "--render.backend", "triton")
        assert code == MISSING
        assert "--render.backend triton: torch" in said

    def test_a_backend_of_the_gpu_on_the_cpu(self, cli: Cli, tmp_path: Path) -> None:
        code, said = refused(cli, tmp_path, "--render.backend", "triton", "--device", "cpu")
        assert code == USAGE
        assert "leave it out with --device cpu" in said


def test_settings_say_it_too() -> None:
    config = Config(prompt="a red cube", device="cpu", render=RenderOptions(backend="gsplat"))
    with pytest.raises(ConfigError, match=r"render\.backend"):
        validate(config)


def test_a_picture_needs_no_rasterizer(gpu) -> None:
    gpu("gsplat", "triton")
    assert checks.resolve(ImageConfig(prompt="a red cube")).device == "cuda"
    assert lifecycle.pick_device(ImageConfig(prompt="a red cube")) == "cuda"
    assert lifecycle.pick_device(Config(prompt="a red cube")) == "cpu"
    with pytest.raises(BackendError, match="no rasterizer"):
        lifecycle.pick_device(Config(prompt="a red cube", device="cuda"))


def test_the_headline_names_what_renders_and_why(gpu) -> None:
    config = Config(prompt="a red cube")
    gpu()
    assert headline(config, checks.resolve(config)).startswith("gsplat on CUDA, embedded toybox prior")
    gpu("gsplat")
    said = headline(config, checks.resolve(config))
    assert said.startswith("gsplat's CUDA kernels are not built: Triton on CUDA")
    gpu("gsplat", "triton")
    said = headline(config, checks.resolve(config))
    assert said.startswith("the CPU, since there is no rasterizer for the GPU: Triton is not installed: ")
    assert "CPU rasterizer" in said
    assert headline(ImageConfig(), Choice(device="cuda")).startswith("CUDA, embedded toybox prior")


def test_runs_made_before_the_option_are_read(tmp_path: Path) -> None:
    from splatgen.config import from_dict, to_dict

    saved = to_dict(Config(prompt="a red cube"))
    assert saved.pop("render") == {"backend": "auto"}
    assert from_dict(json.loads(json.dumps(saved))) == Config(prompt="a red cube")
