"""Which rasterizer serves the GPU of this machine, and why another does not.

gsplat's kernels where they are built, ours in Triton elsewhere. Finding out compiles nothing with nvcc:
gsplat 1.5.3 does that, for minutes, when its first kernel is asked for and it finds no built ones
(gsplat/cuda/_backend.py), so they are looked for in the places where it looks.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Backend = Literal["gsplat", "triton"]
BACKENDS: tuple[Backend, ...] = ("gsplat", "triton")
OLDEST = (7, 5)  # compute capability: what torch's CUDA builds and Triton still serve
BUILD = 'python -c "import gsplat.cuda._backend"'  # the command that makes gsplat build its kernels


class BackendError(RuntimeError):
    """A device or rasterizer that was asked for and is not there; one line, with what to do."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a rasterizer cannot be used, and what would help."""

    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where a run computes and what renders there."""

    device: Literal["cpu", "cuda"]
    backend: Backend | None = None  # None on the CPU, or where nothing is rendered
    note: str = ""  # why not something better; empty when there is nothing to say


def driver() -> str | None:
    """The version of NVIDIA's kernel driver, or "found"; None when there is none."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "found" if shutil.which("nvidia-smi") else None
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), "found")


def _has_nvcc() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME

    return bool((CUDA_HOME and (Path(CUDA_HOME) / "bin" / "nvcc").is_file()) or shutil.which("nvcc"))


def _is_built() -> bool:
    """Whether kernels of an earlier build would be loaded as they are.

    Ninja builds them anew when a source of gsplat's or a header of torch's is younger.
    """
    from torch.utils.cpp_extension import _get_build_directory

    spec = importlib.util.find_spec("gsplat")
    try:
        folder = Path(_get_build_directory("gsplat_cuda", verbose=False))
        built = max(f.stat().st_mtime for f in folder.glob("gsplat_cuda.*") if f.suffix in (".so", ".lib"))
    except (OSError, ValueError):  # no such folder can be made, or nothing is in it
        return False
    package = Path(str(spec.origin)).parent if spec else Path()
    sources = [Path(torch.__file__), *(package / "cuda").rglob("*.cu"), *(package / "cuda").rglob("*.cpp")]
    return all(source.stat().st_mtime <= built for source in sources)


@functools.cache
def gsplat_problem() -> Problem | None:
    """None when gsplat's CUDA kernels are there: in the package, or built before and still good."""
    instead = "use --render.backend triton"
    if importlib.util.find_spec("gsplat") is None:
        return Problem(text="gsplat is not installed", advice=f"pip install gsplat, or {instead}")
    try:
        from gsplat import csrc  # noqa: F401

        return None
    except ImportError:  # not in the package, or made for another torch
        pass
    if not _has_nvcc():
        return Problem(
            text="gsplat has no built CUDA kernels, and there is no nvcc to build them",
            advice=f"install the CUDA toolkit of torch's CUDA version and set CUDA_HOME, or {instead}",
        )
    if _is_built():
        return None
    return Problem(
        text="gsplat's CUDA kernels are not built",
        advice=f"{BUILD} builds them, in 2 to 12 minutes; or {instead}",
    )


@functools.cache
def triton_problem() -> Problem | None:
    """None when Triton can be imported and reaches the device.

    It reaches the device through a small module in C, which it compiles once: with gcc or clang, and Python's
    headers. torch.compile needs the same.
    """
    if importlib.util.find_spec("triton") is None:
        return Problem(text="Triton is not installed", advice="install a torch for CUDA, which brings it")
    try:
        from triton.runtime import driver as triton_driver

        triton_driver.active.get_current_target()
        return None
    except (ImportError, RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return Problem(
            text="Triton finds no C compiler, which it needs once",
            advice="install gcc, as in apt install gcc",
        )
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return Problem(
            text="Triton finds no Python.h, which it needs once",
            advice="install Python's headers, as in apt install python3-dev",
        )
    return Problem(text=f"Triton cannot reach the device ({reason})", advice="install torch again")


PROBLEMS = {"gsplat": gsplat_problem, "triton": triton_problem}


def cuda_problem() -> Problem | None:
    """None when torch can compute on a GPU that the rasterizers serve."""
    if torch.cuda.is_available():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        if torch.version.hip is None and capability < OLDEST:
            return Problem(
                text=f"{name} has compute capability {capability[0]}.{capability[1]}, older than 7.5",
                advice="use --device cpu",
            )
        return None
    found = driver()
    if torch.version.cuda is None and torch.version.hip is None:
        text = f"torch {torch.__version__} is a build without CUDA"
        if found is None:
            return Problem(text=text, advice="use --device cpu")
        public = torch.__version__.partition("+")[0]
        # === keeps pip from taking a build for the CPU whose version has a suffix
        command = f"pip install 'torch==={public}'" if platform.system() == "Linux" else "see pytorch.org"
        return Problem(text=f"{text}, beside an NVIDIA GPU", advice=f"{command}, or use --device cpu")
    text = f"torch {torch.__version__} finds no usable NVIDIA device"
    if found is None:
        return Problem(text=f"{text}, and there is no driver", advice="install one, or use --device cpu")
    advice = "install a torch for this driver, see pytorch.org, or use --device cpu"
    return Problem(text=f"{text} with driver {found}", advice=advice)


def pick_backend(wanted: str = "auto") -> Backend:
    """What renders CUDA tensors: gsplat before Triton, or the one that is wanted. Raises BackendError."""
    if wanted == "auto":
        for name in BACKENDS:
            if PROBLEMS[name]() is None:
                return name
        reasons = "; ".join(str(PROBLEMS[name]()) for name in reversed(BACKENDS))
        raise BackendError(f"no rasterizer for the GPU: {reasons}")
    for name in BACKENDS:
        if wanted == name:
            problem = PROBLEMS[name]()
            if problem is not None:
                raise BackendError(f"--render.backend {wanted}: {problem}")
            return name
    raise BackendError(f"--render.backend {wanted[:60]!r}: choose auto, gsplat or triton")


def choose(device: str, wanted: str = "auto", *, renders: bool = True) -> Choice:
    """Device and rasterizer of a run.

    device auto takes CUDA when it can compute and, where something is rendered, render there. Raises
    BackendError for what was asked for by name and is not there.
    """
    if device == "cpu":
        if wanted != "auto" and renders:
            raise BackendError(f"--render.backend {wanted} needs a GPU: leave it out with --device cpu")
        return Choice(device="cpu")
    problem = cuda_problem()
    if problem is not None:
        if device == "cuda" or (wanted != "auto" and renders):
            option = "--device cuda" if device == "cuda" else f"--render.backend {wanted}"
            raise BackendError(f"{option}: {problem}")
        note = "no CUDA device here" if driver() is None else f"the CPU, since {problem.text}"
        return Choice(device="cpu", note=note)
    if not renders:
        return Choice(device="cuda")
    try:
        backend = pick_backend(wanted)
    except BackendError as error:
        if device == "cuda" or wanted != "auto":
            raise
        return Choice(device="cpu", note=f"the CPU, since there is {error}")
    skipped = gsplat_problem() if wanted == "auto" and backend == "triton" else None
    return Choice(device="cuda", backend=backend, note="" if skipped is None else skipped.text)
