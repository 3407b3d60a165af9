"""Which rasterizer a machine gets: machines are made up, the places where gsplat looks are real folders."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.utils.cpp_extension

from splatgen.rasterizer import backends
from splatgen.rasterizer.backends import BackendError, Problem, choose, pick_backend

BROKEN = {name: Problem(text=f"{name} is missing", advice=f"get {name}") for name in ("gsplat", "triton")}


@pytest.fixture(autouse=True)
def forgetful():
    """Facts of a machine are looked up once; here it changes."""
    caches = (backends.gsplat_problem, backends.triton_problem)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Make one up: machine(capability=(8, 6), broken={"gsplat"}, driver="570")."""

    def make(*, capability=None, broken=(), driver=None, version="2.13.0+cu128", cuda="12.8"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GeForce")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(backends, "driver", lambda: driver)
        for name in backends.BACKENDS:
            problem = BROKEN[name] if name in broken else None
            found = lambda problem=problem: problem  # noqa: E731
            monkeypatch.setitem(backends.PROBLEMS, name, found)
            monkeypatch.setattr(backends, f"{name}_problem", found)

    return make


def test_gsplat_comes_before_triton(machine):
    machine(capability=(8, 6))
    assert pick_backend() == "gsplat"
    chosen = choose("auto")
    assert (chosen.device, chosen.backend, chosen.note) == ("cuda", "gsplat", "")
    assert choose("cuda", "triton").backend == "triton"


def test_triton_where_gsplat_is_not_built_and_it_says_so(machine):
    machine(capability=(7, 5), broken={"gsplat"})
    chosen = choose("auto")
    assert (chosen.device, chosen.backend, chosen.note) == ("cuda", "triton", "gsplat is missing")
    assert choose("cuda", "triton").note == ""
    with pytest.raises(BackendError, match=r"--render.backend gsplat: gsplat is missing: get gsplat"):
        choose("auto", "gsplat")


def test_without_a_rasterizer_auto_takes_the_cpu_and_cuda_is_refused(machine):
    machine(capability=(8, 6), broken={"gsplat", "triton"})
    chosen = choose("auto")
    assert chosen.device == "cpu"
    assert "triton is missing: get triton; gsplat is missing: get gsplat" in chosen.note
    with pytest.raises(BackendError, match="no rasterizer for the GPU: triton is missing"):
        choose("cuda")
    assert choose("cuda", renders=False).device == "cuda"  # a picture needs no rasterizer


def test_old_gpus_are_refused_by_name(machine):
    machine(capability=(6, 1))
    with pytest.raises(
        BackendError, match=r"--device cuda: GeForce has compute capability 6.1, older than 7.5"
    ):
        choose("cuda")
    machine(capability=(6, 1), driver="570")
    assert choose("auto").device == "cpu"
    assert "GeForce has compute capability 6.1" in choose("auto").note


def test_a_torch_for_the_cpu_beside_a_gpu_gets_the_command(machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends.platform, "system", lambda: "Linux")
    machine(driver="570", version="2.13.0+cpu", cuda=None)
    with pytest.raises(BackendError, match=r"beside an NVIDIA GPU: pip install 'torch===2\.13\.0'"):
        choose("cuda")
    assert (
        choose("auto").note == "the CPU, since torch 2.13.0+cpu is a build without CUDA, beside an NVIDIA GPU"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "2.13.0+cpu", "cuda": None}, "is a build without CUDA: use --device cpu"),
        ({}, "finds no usable NVIDIA device, and there is no driver"),
        ({"driver": "470"}, "with driver 470: install a torch for this driver"),
    ],
)
def test_cuda_that_cannot_be_had(machine, options, words):
    machine(**options)
    with pytest.raises(BackendError, match=words):
        choose("cuda")
    with pytest.raises(BackendError, match=r"--render.backend triton: "):
        choose("auto", "triton")
    assert choose("auto").device == "cpu"
    assert choose("auto").note


def test_a_backend_of_the_gpu_on_the_cpu_is_refused():
    with pytest.raises(BackendError, match="leave it out with --device cpu"):
        choose("cpu", "triton")
    assert choose("cpu") == backends.Choice(device="cpu")


def test_unknown_backends_are_named(machine):
    machine(capability=(8, 6))
    with pytest.raises(BackendError, match="'warp': choose auto, gsplat or triton"):
        pick_backend("warp")


class TestGsplat:
    """In the order in which gsplat/cuda/_backend.py looks."""

    @pytest.fixture
    def nvcc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A toolkit, and where torch builds extensions."""
        (tmp_path / "cuda" / "bin").mkdir(parents=True)
        (tmp_path / "cuda" / "bin" / "nvcc").touch()
        monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", str(tmp_path / "cuda"))
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
        return tmp_path / "built" / "gsplat_cuda"

    def test_kernels_in_the_package(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "gsplat.csrc", types.ModuleType("gsplat.csrc"))
        assert backends.gsplat_problem() is None

    def test_no_kernels_and_no_nvcc(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", None)
        monkeypatch.setattr(backends.shutil, "which", lambda _: None)
        assert "no nvcc to build them" in backends.gsplat_problem().text

    def test_with_nvcc_nothing_is_built_to_find_out(self, nvcc: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delitem(sys.modules, "gsplat.cuda._backend", raising=False)
        problem = backends.gsplat_problem()
        assert problem.text == "gsplat's CUDA kernels are not built"
        assert "2 to 12 minutes" in problem.advice
        assert not list(nvcc.glob("*"))
        assert "gsplat.cuda._backend" not in sys.modules  # importing it would begin the build

    def test_built_before(self, nvcc: Path):
        nvcc.mkdir(parents=True)
        (nvcc / "gsplat_cuda.so").touch()
        assert backends.gsplat_problem() is None

    def test_built_from_older_sources_would_be_built_again(self, nvcc: Path):
        nvcc.mkdir(parents=True)
        (nvcc / "gsplat_cuda.so").touch()
        os.utime(nvcc / "gsplat_cuda.so", (1e9, 1e9))
        assert backends.gsplat_problem().text == "gsplat's CUDA kernels are not built"

    def test_a_torn_build_is_none(self, nvcc: Path):
        nvcc.mkdir(parents=True)
        (nvcc / "build.ninja").touch()
        assert backends.gsplat_problem() is not None


class TestTriton:
    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert backends.triton_problem().text == "Triton is not installed"

    def reached(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
        class Driver:
            @property
            def active(self):
                if error is not None:
                    raise error
                return types.SimpleNamespace(get_current_target=lambda: None)

        runtime = types.ModuleType("triton.runtime")
        runtime.driver = Driver()
        package = types.ModuleType("triton")
        package.__spec__ = importlib.util.spec_from_loader("triton", None)
        monkeypatch.setitem(sys.modules, "triton", package)
        monkeypatch.setitem(sys.modules, "triton.runtime", runtime)

    def test_reached(self, monkeypatch: pytest.MonkeyPatch):
        self.reached(monkeypatch, None)
        assert backends.triton_problem() is None

    def test_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch):
        self.reached(monkeypatch, RuntimeError("Failed to find C compiler"))
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(backends.shutil, "which", lambda _: None)
        assert "no C compiler" in str(backends.triton_problem())
        assert "apt install gcc" in str(backends.triton_problem())

    def test_without_headers(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        self.reached(monkeypatch, RuntimeError("gcc failed"))
        monkeypatch.setenv("CC", "gcc")
        monkeypatch.setattr(backends.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
        assert "python3-dev" in str(backends.triton_problem())

    def test_any_other_reason_is_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        self.reached(monkeypatch, AssertionError("libcuda.so cannot\nfound!"))
        monkeypatch.setenv("CC", "gcc")
        (tmp_path / "Python.h").touch()
        monkeypatch.setattr(backends.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
        assert "AssertionError: libcuda.so cannot found!" in str(backends.triton_problem())


def test_the_driver_is_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch):
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.16  Fri Jan 24\nGCC version"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: line)
    assert backends.driver() == "570.86.16"
