"""What a sweep will take, roughly, before it begins. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splatgen.config import Config
from splatgen.config.stages import stages
from splatgen.sweeps.plan import Task

# Seconds of one core for a picture through the denoiser with all that a step does around it, as measured by
# benchmarks/call_seconds.py; what others take is known after the first run
SECONDS_A_CALL = {"toybox-mini": 0.0045, "toybox": 0.011, "shelf": 0.022}
PICTURES = 300_000  # bytes of a preview and of what is beside it
FRAME = 4_000  # bytes of a turntable's frame
COPIES = 7  # of every splat's numbers: the file, and two checkpoints with both moments of Adam


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a number of runs, one after the other."""

    runs: int
    calls: int  # pictures through the denoiser
    seconds: float | None  # None where nothing is known of the prior
    disk: int  # bytes


def estimate(tasks: Sequence[Task]) -> Estimate:
    """What these runs take together."""
    calls = [model_calls(task.config) for task in tasks]
    known = all(t.config.prior in SECONDS_A_CALL and t.config.device != "cuda" for t in tasks)
    seconds = [SECONDS_A_CALL.get(t.config.prior, 0.0) * n for t, n in zip(tasks, calls, strict=True)]
    return Estimate(
        runs=len(tasks),
        calls=round(sum(calls)),
        seconds=sum(seconds) if known else None,
        disk=sum(disk(task.config) for task in tasks),
    )


def model_calls(config: Config) -> float:
    """Pictures that go through the denoiser in a run, about: schedules are taken at their mean."""
    return sum(_stage_calls(stage.config) for stage in stages(config))


def _stage_calls(config: Config) -> float:
    scale = config.guidance.scale
    both = 1.0 if scale in (0.0, 1.0) else 2.0  # with and without the prompt
    if config.score == "refine":
        return config.refine.rounds * config.refine.views * config.refine.steps * both
    plain = both + _score_calls(config, both)
    share, many = 0.0, plain
    if config.preference == "weighted":
        share = config.weighted.stop - config.weighted.start
        many = config.weighted.candidates * config.weighted.lookahead * plain
    elif config.preference in ("dpo", "psd"):
        share, many = 1.0, 2.0 * plain
    return config.steps * config.views.count * ((1.0 - share) * plain + share * many)


def _score_calls(config: Config, both: float) -> float:
    """What a score adds to the guided prediction."""
    if config.score == "vsd":
        return 2.0  # the copy's prediction and its training
    if config.score == "sdi":
        return config.sdi.steps / 2.0 * (both if config.sdi.scale not in (0.0, 1.0) else 1.0)
    return 2.0 if config.score == "ism" else 0.0


def disk(config: Config) -> int:
    """Bytes of a run's folder, at most about."""
    numbers = 11 + 3 * (config.splats.sh_degree + 1) ** 2
    splats = min(config.densify.max_splats, 4 * config.splats.count)
    return COPIES * 4 * numbers * splats + PICTURES + FRAME * config.output.frames
