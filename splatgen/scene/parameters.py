"""What changes from step to step: the splats, an Adam for each parameter, and the densifier.

Shapes: N splats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatgen.config import Config, LearningOptions
from splatgen.config.stages import at, stages
from splatgen.runs import checkpoint, packing
from splatgen.scene.densification import Densifier, Optimizers, Params
from splatgen.scene.splats import Splats

MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's
PARTS = ("splats", "optimizers", "densify")  # of a checkpoint


@dataclass(kw_only=True)
class Scene:
    """What changes from step to step."""

    params: Params
    optimizers: Optimizers
    densifier: Densifier
    step: int
    failures: Tensor | int = 0  # steps in a row without a finite gradient
    source: Splats | None = None  # what an edit started from
    begin: int = 0  # step at which the present stage began

    def fraction(self, steps: int) -> float:
        """How much is done of a stage of so many steps."""
        return (self.step - self.begin) / steps

    def clear(self) -> None:
        """Drop what a step that failed left behind."""
        for p in self.params.values():
            p.grad = None

    @property
    def splats(self) -> Splats:
        p = self.params
        sh = torch.cat([p["sh0"], p["shN"]], 1) if "shN" in p else p["sh0"]
        return Splats(means=p["means"], quats=p["quats"], scales=p["scales"], opacities=p["opacities"], sh=sh)


def rates(options: LearningOptions, fraction: float) -> dict[str, float]:
    """Learning rate of every parameter at a fraction of the run: constant, then falling geometrically."""
    usual = (options.decay_from, 1.0, options.final)
    found = {
        "means": options.means * left(options.means_fall or usual, fraction),
        "scales": options.scales * left(options.scales_fall or usual, fraction),
        "quats": options.quats * left(options.quats_fall or usual, fraction),
        "opacities": options.opacities * left(options.opacities_fall or usual, fraction),
        "sh0": options.sh * left(options.sh_fall or usual, fraction),
    }
    return {**found, "shN": found["sh0"] / 20.0}


def left(fall: tuple[float, float, float], fraction: float) -> float:
    """Share of a rate at a fraction of the run, for (from, to, share at the end): share^done."""
    begin, end, share = fall
    done = min(max(fraction - begin, 0.0) / max(end - begin, 1e-9), 1.0)
    return float(max(share, 1e-6) ** done)


def new_scene(config: Config, splats: Splats, device: str, begin: int = 0) -> Scene:
    """Parameters and one Adam each, as gsplat's strategies want them, for the stage that begins at a step."""
    config = at(stages(config), begin).config
    tensors = {name: value.detach().to(device) for name, value in splats.tensors().items()}
    sh = tensors.pop("sh")
    tensors["sh0"] = sh[:, :1]
    if sh.shape[1] > 1:
        tensors["shN"] = sh[:, 1:]
    params = {name: torch.nn.Parameter(value.clone().contiguous()) for name, value in tensors.items()}
    optimizers: Optimizers = {
        name: torch.optim.Adam([p], lr=1.0, betas=config.lr.betas, eps=1e-15) for name, p in params.items()
    }
    densifier = Densifier(config.densify, steps=config.steps, seed=config.seed, first=begin)
    densifier.strategy.check_sanity(params, optimizers)
    return Scene(params=params, optimizers=optimizers, densifier=densifier, step=begin, begin=begin)


def begin_stage(scene: Scene, config: Config, *, anew: bool) -> None:
    """Let a stage, whose settings these are, begin where the scene is; anew: Adam forgets its averages.

    What the densifier counted was for growing under the settings before, and is dropped.
    """
    scene.begin = scene.step
    scene.densifier = Densifier(config.densify, steps=config.steps, seed=config.seed, first=scene.step)
    for optimizer in scene.optimizers.values():
        optimizer.param_groups[0]["betas"] = config.lr.betas
        if anew:
            optimizer.state.clear()


def update(config: Config, scene: Scene, whole: Tensor) -> Tensor:
    """One Adam step, unless a gradient is not finite or whole [] is false: then nothing moves.

    Returns 1 for a failure.

    The decision is a tensor and takes the step back by selection, so CUDA need not wait for it. (A zero
    gradient would not do: momentum alone moves the parameters.)
    """
    gradients = {name: p.grad for name, p in scene.params.items() if p.grad is not None}
    total = torch.stack([g.abs().sum() for g in gradients.values()]).sum()
    finite = torch.isfinite(total) & whole
    for name, rate in rates(config.lr, scene.fraction(config.steps)).items():
        if name not in gradients:
            continue
        optimizer, p = scene.optimizers[name], scene.params[name]
        state = optimizer.state[p]
        before = [p.detach().clone(), *(state.get(key, torch.zeros_like(p)).clone() for key in MOMENTS)]
        optimizer.param_groups[0] |= {"lr": rate, "betas": config.lr.betas}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for new, old in zip([p.detach(), *(optimizer.state[p][key] for key in MOMENTS)], before, strict=True):
            new.copy_(torch.where(finite, new, old))
    return (~finite).float()


def save_scene(folder: Path, scene: Scene, methods: Mapping[str, Any]) -> None:
    """Everything the next step depends on; randomness is a function of the step and needs no state.

    methods holds what score and preference learned, by name: nested tensors and JSON.
    """
    packed = {name: optimizer.state_dict() for name, optimizer in scene.optimizers.items()}
    moments, rest = packing.pack(packed)
    parts = {
        "splats": {name: p.detach() for name, p in scene.params.items()},
        "optimizers": moments,
        "densify": scene.densifier.state_dict(),
    }
    more, learned = packing.pack_each(methods)
    parts |= more
    state = {
        "optimizers": rest,
        "failures": int(scene.failures),
        "methods": learned,
        "stage_began": scene.begin,
    }
    checkpoint.save(folder, scene.step, parts, state)


def load_scene(config: Config, folder: Path, device: str) -> tuple[Scene, dict[str, Any]]:
    """The scene of the latest whole checkpoint in a folder, and what `save_scene` got as methods.

    config is the whole run's: the checkpoint knows its stage.
    """
    found = checkpoint.load_latest(folder)
    checkpoint.expect(found, folder, PARTS)
    with checkpoint.explained(folder):
        return _unpacked(config, found, device)


def saved_splats(found: checkpoint.Checkpoint) -> Splats:
    """The splats of a checkpoint, as they were."""
    tensors = found.parts["splats"]
    sh = torch.cat([tensors["sh0"], *([tensors["shN"]] if "shN" in tensors else [])], 1)
    return Splats(**{name: tensors[name] for name in ("means", "quats", "scales", "opacities")}, sh=sh)


def _unpacked(config: Config, found: checkpoint.Checkpoint, device: str) -> tuple[Scene, dict[str, Any]]:
    begin = int(found.state.get("stage_began", 0))  # versions before there were stages did not say
    scene = new_scene(config, saved_splats(found), device, begin)
    scene.step, scene.failures = found.step, int(found.state["failures"])
    states = packing.unpack(found.parts["optimizers"], found.state["optimizers"])
    for name, optimizer in scene.optimizers.items():
        optimizer.load_state_dict(states[name])
    scene.densifier.load_state_dict({k: v.to(device) for k, v in found.parts["densify"].items()})
    methods = packing.unpack_each(found.parts, found.state["methods"])
    return scene, methods
