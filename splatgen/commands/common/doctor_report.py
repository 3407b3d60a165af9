"""What this machine can run, what is missing, and the next command.

No examination raises what a broken installation can cause: a doctor must not fall over the illness.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from splatgen.commands.common import doctor_models
from splatgen.commands.common.doctor_models import Choice, Model
from splatgen.commands.common.embedded import WORLDS, World, missing_weights
from splatgen.config import Config
from splatgen.models import footprint

State = Literal["ok", "note", "bad"]  # bad: generate can't run

MIN_FREE_GB = 0.05
_MARKS = {"ok": "ok", "note": "--", "bad": "!!"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; advice is what to do about it."""

    name: str
    state: State
    text: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found, what of the published models is here, and what to do with this machine."""

    findings: list[Finding]
    models: list[Model]
    choice: Choice

    @property
    def able(self) -> bool:
        """Whether `splatgen generate` can run."""
        return all(finding.state != "bad" for finding in self.findings)

    @property
    def next(self) -> str:
        """What to type next: what mends the first thing that prevents a run, or else a run."""
        return next((f.advice for f in self.findings if f.state == "bad"), self.choice.command)


def examine(folder: str | None = None) -> Examination:
    """Look at the machine, and at the models in a folder of weights or in the cache."""
    parts: tuple[Callable[[], list[Finding]], ...] = (
        python, packages, torch_build, cuda, rasterizer, weights, film, disk, memory,
    )  # fmt: skip
    here = doctor_models.models(folder)

    def room() -> list[Finding]:
        text, fits = doctor_models.room(here, folder)
        advice = "free some space, or keep models on another disk: splatgen fetch NAME --weights DIR"
        return [Finding(name="room", state="ok" if fits else "note", text=text, advice=advice)]

    return Examination(
        findings=[
            *(finding for part in parts for finding in _attempt(part)),
            *map(_of_model, here),
            *_attempt(room),
            Finding(name="GPU memory", state="ok", text=footprint.table()),
        ],
        models=here,
        choice=doctor_models.choose(here, _presets(), gpu=gpu_memory(), memory=main_memory()),
    )


def _of_model(model: Model) -> Finding:
    state: State = "ok" if model.state == "here" else "note"
    return Finding(name=f"{model.kind} {model.name}", state=state, text=model.text, advice=model.advice)


def _presets() -> dict[str, dict[str, Any]]:
    """What the presets that may be recommended hold."""
    from splatgen.config import presets, read_preset

    try:
        return {name: read_preset(name) for name in doctor_models.ON_A_GPU if name in presets()}
    except (ImportError, OSError, ValueError):  # not installed whole: there is nothing to recommend
        return {}


def _attempt(part: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a part; what its libraries raise when they are broken is a finding, too."""
    try:
        return part()
    except (ImportError, AttributeError, OSError, RuntimeError, ValueError) as error:
        text = f"fails: {type(error).__name__}: {error}"
        advice = "pip install --force-reinstall splatgen"
        if "NUMBA_CACHE_DIR" in str(error):
            advice = "set NUMBA_CACHE_DIR to a folder that is writable"
        return [Finding(name=part.__name__, state="bad", text=text, advice=advice)]


def report(examined: Examination) -> str:
    """The findings as text for people."""
    width = max(len(finding.name) for finding in examined.findings)
    lines = []
    for finding in examined.findings:
        lines.append(f"{_MARKS[finding.state]}  {finding.name:<{width}}  {finding.text}")
        if finding.advice and finding.state != "ok":
            lines.append(f"{'':<{width + 6}}{finding.advice}")
    choice = f"preset: {examined.choice.preset} ({examined.choice.why})"
    return "\n".join([*lines, "", choice, f"next: {examined.next}"])


def python() -> list[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding(name="python", state="ok", text=text)]


def packages() -> list[Finding]:
    """Installed versions against the ranges that splatgen declares."""
    try:
        from packaging.requirements import Requirement

        declared = importlib.metadata.requires("splatgen") or []
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        text = f"can't be checked: {error}"
        return [Finding(name="packages", state="note", text=text, advice="pip install splatgen")]
    findings, fine = [], []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        command = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            text = f"is not installed, wanted {requirement.specifier or 'any version'}"
            findings.append(Finding(name=requirement.name, state="bad", text=text, advice=command))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fine.append(f"{requirement.name} {version}")
        else:
            text = f"{version}, tested with {requirement.specifier}"
            findings.append(Finding(name=requirement.name, state="note", text=text, advice=command))
    return [Finding(name="packages", state="ok", text=", ".join(fine)), *findings]


def torch_build() -> list[Finding]:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    text = f"{torch.__version__}, built for {built}, {torch.get_num_threads()} CPU threads"
    return [Finding(name="torch", state="ok", text=text)]


def cuda() -> list[Finding]:
    """The GPU, what renders on it, and why the other rasterizer does not."""
    import torch

    from splatgen.rasterizer import backends

    problem, driver = backends.cuda_problem(), backends.driver()
    if problem is not None:
        found = problem.text if driver is not None else "no NVIDIA driver here"
        advice = problem.advice if driver is not None else ""
        return [Finding(name="cuda", state="note", text=f"{found}, so runs use the CPU", advice=advice)]
    free, total = torch.cuda.mem_get_info()
    space = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    text = f"{torch.cuda.get_device_name()}, compute capability {capability}, {space}, driver {driver}"
    return [Finding(name="cuda", state="ok", text=text), *_backends()]


def _backends() -> list[Finding]:
    """What renders on the GPU, and the state of each rasterizer; nothing is built to find out."""
    from splatgen.rasterizer import backends

    choice, findings = backends.choose("auto"), []
    text = f"{choice.backend} renders on the GPU" if choice.backend else f"none: {choice.note}"
    findings.append(Finding(name="gpu rasterizer", state="ok" if choice.backend else "note", text=text))
    for name in backends.BACKENDS:
        problem = backends.PROBLEMS[name]()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        state: State = "ok" if problem is None else "note"
        text = f"{version}, ready" if problem is None else f"{version}: {problem.text}"
        findings.append(Finding(name=name, state=state, text=text, advice=problem.advice if problem else ""))
    return findings


def gpu_memory() -> float | None:
    """GiB of the GPU that runs would use; None where there is none, or no working torch."""
    try:
        import torch

        return torch.cuda.mem_get_info()[1] / 2**30 if torch.cuda.is_available() else None
    except (ImportError, AttributeError, OSError, RuntimeError):  # `torch_build` and `cuda` tell of it
        return None


def rasterizer() -> list[Finding]:
    """Compile the CPU kernels and time a small render."""
    import torch

    from splatgen.rasterizer import render
    from splatgen.scene.cameras import turntable
    from splatgen.scene.splats import random_ball

    generator = torch.Generator().manual_seed(0)
    splats = random_ball(generator, count=1000, radius=0.6, scale=0.07, opacity=0.25)
    cameras = turntable(4, size=64)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            finite = bool(render(splats, cameras).rgb.isfinite().all())
        seconds.append(time.perf_counter() - start)
    if not finite:
        advice = "pip install --force-reinstall numba llvmlite"
        return [Finding(name="rasterizer", state="bad", text="gives NaN on the CPU", advice=advice)]
    speed = f"4 views of 1,000 splats at 64 pixels in {1e3 * min(seconds):.1f} ms"
    return [Finding(name="rasterizer", state="ok", text=f"on the CPU: {speed} (at first {seconds[0]:.1f} s)")]


def weights() -> list[Finding]:
    """The embedded models: those of the default must be there."""
    return [_embedded(world, name) for world in WORLDS for name in world.weights()]


def _embedded(world: World, name: str) -> Finding:
    label = f"{world.name} {name}"
    missing = missing_weights(name, world.folder)
    if missing:
        usual = Config()
        needed = {world.rewards[n] for n in usual.rewards() if n in world.rewards}
        needed |= {*world.priors.get(usual.prior, ())}
        state: State = "bad" if name in needed else "note"
        advice = f"python -m splatgen.worlds.{world.name}.train {name}"
        return Finding(name=label, state=state, text=f"{missing[0]} is missing", advice=advice)
    size = (world.folder / f"{name}.safetensors").stat().st_size / 1e6
    text = f"{size:.1f} MB{_card(world.folder / f'{name}.json')}"
    return Finding(name=label, state="ok", text=text)


def _card(path: Path) -> str:
    """The figures of a model's card, as far as it has them."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        sizes = card["config"]
        side = f", {sizes['size']} pixels" if "size" in sizes else f", latents of {sizes['side']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ", its card can't be read"
    for key, unit in (("parameters", "parameters"), ("images", "training images"), ("steps", "steps")):
        if isinstance(card.get(key), int):
            side += f", {card[key]:,} {unit}"
    return side


def film() -> list[Finding]:
    from splatgen.runs.video import find_ffmpeg

    found = find_ffmpeg()
    if found is None:
        text = "none, so turntables become GIFs of at most 5 MB"
        return [Finding(name="ffmpeg", state="note", text=text, advice="pip install imageio-ffmpeg")]
    return [Finding(name="ffmpeg", state="ok", text=found)]


def disk() -> list[Finding]:
    """The current folder, in which `outputs` is made."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 1e9
    if free < MIN_FREE_GB or not os.access(here, os.W_OK | os.X_OK):
        problem = "can't be written to" if free >= MIN_FREE_GB else f"has {free:.2f} GB free"
        advice = "free some space, or name another folder with --out"
        return [Finding(name="disk", state="note", text=f"{here} {problem}", advice=advice)]
    return [Finding(name="disk", state="ok", text=f"{free:.1f} GB free in {here}")]


def memory() -> list[Finding]:
    """Physical memory; nothing where the system does not say."""
    total = main_memory()
    if total is None:
        return []
    text = f"{total:.1f} GiB, {os.cpu_count()} CPU cores"
    state: State = "note" if total < doctor_models.LITTLE_MEMORY else "ok"
    return [Finding(name="memory", state=state, text=text, advice="take --preset toybox-draft")]


def main_memory() -> float | None:
    """GiB of physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
