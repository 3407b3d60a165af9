"""From one stage of a run to the next: what goes on, and what begins anew.

The splats, the count of steps and so the cameras, times and noises go on. Adam's averages and what score and
preference learned go on where prior and method do, else they begin anew: gradients of another prior may be a
hundred times larger or smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from splatgen.config.stages import Stage, at, goes_on
from splatgen.scene.parameters import Scene, begin_stage

Learned = dict[str, Any]  # of score and preference


def next_stage(course: tuple[Stage, ...], scene: Scene) -> Stage | None:
    """The stage that is to begin before the next step; None where the present one goes on, or is the last."""
    stage = at(course, scene.begin)
    if scene.step < stage.end or stage is course[-1]:
        return None
    return course[stage.number]


def move_on(before: Stage, after: Stage, scene: Scene, learned: Learned | None) -> Learned | None:
    """Let the scene begin another stage; returns what of that which was learned goes on with it."""
    same = goes_on(before.config, after.config)
    begin_stage(scene, after.config, anew=not same)
    return learned if same else None


def moved_on(course: tuple[Stage, ...], scene: Scene, learned: Learned | None) -> Learned | None:
    """The same for a scene from a checkpoint that was written at the very end of a stage."""
    following = next_stage(course, scene)
    return learned if following is None else move_on(at(course, scene.begin), following, scene, learned)


def described(course: Sequence[Stage], stage: Stage) -> dict[str, Any]:
    """Fields of run.json: the present stage by its number, and all of them."""
    listed = [
        {"name": s.name, "first_step": s.first, "steps": s.config.steps, "prior": s.config.prior}
        for s in course
    ]
    return {"stage": stage.number, "stages": listed}
