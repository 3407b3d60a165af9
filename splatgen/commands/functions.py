"""The verbs as Python functions: what `import splatgen` gives. Importing this imports no torch.

They take settings by the names of the command line (docs and `splatgen generate --help`): single ones as
keywords, groups as dictionaries, as in guidance={"scale": 3.0}.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from splatgen import config as configs
from splatgen.commands import compare as compare_verb
from splatgen.commands import edit as edit_verb
from splatgen.commands import eval as eval_verb
from splatgen.commands import generate as generate_verb
from splatgen.commands import sweep as sweep_verb
from splatgen.commands.common import (
    arguments,
    checks,
    execution,
    inputs,
    sweep_words,
    sweeping,
    usual,
)
from splatgen.commands.common.notebook import Evaluation, Pictures, RunResult, SweepResult
from splatgen.config import Config, ConfigError
from splatgen.config.validation import validate
from splatgen.sweeps.plan import axis
from splatgen.sweeps.table import table

if TYPE_CHECKING:
    from splatgen.scene.splats import Splats

    Source = Splats | RunResult | str | os.PathLike[str]
    Runs = RunResult | SweepResult | str | os.PathLike[str]

C = TypeVar("C", bound=Config)


def generate(
    prompt: str,
    *,
    preset: str | None = None,
    out: str | os.PathLike[str] = "outputs",
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> RunResult:
    """Make a 3D object out of a prompt, in a run folder in `out`.

    preset names settings to start from; without it and without a prior the program chooses as on the command
    line: Stable Diffusion where CUDA and its weights are there, else the embedded prior that knows the
    prompt. force takes the nearest prompt that the prior can read. Ctrl-C stops after the step, with a
    checkpoint. Raises ConfigError (a ValueError) for settings that can't be, Failure for what this machine
    lacks, Diverged for a run that is lost.
    """
    given = {**settings, "prompt": prompt}
    config = laid_over(Config(), preset or _usual([prompt], given), given)
    options = generate_verb.Generate(out=Path(out), force=force, settings=config)
    config = generate_verb.check(options, validate(config))
    from splatgen.loop import object_run

    result, _ = execution.carry_out(
        lambda report, should_stop: object_run.generate(
            config, out=Path(out), command=["splatgen.generate"], report=report, should_stop=should_stop
        ),
        config,
        quiet=not progress,
    )
    return RunResult.of(result)


def edit(
    source: Source,
    words: str,
    *,
    preset: str | None = None,
    out: str | os.PathLike[str] = "outputs",
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> RunResult:
    """Change splats by words and keep what the words do not name.

    source is splats, a splat file, or a run; words are "SOURCE -> TARGET", or TARGET alone for a run, which
    says itself what it shows. Raises as `generate` does.
    """
    chosen = {**settings, "prompt": words}
    given = Path("the splats") if _is_splats(source) else _path(source)
    config = laid_over(edit_verb.EditConfig(), preset, chosen)
    options = edit_verb.Edit(input=given, out=Path(out), force=force, preset=preset, settings=config)
    found = None if preset else _usual(edit_verb.prompts(options), settings)
    if found is not None:
        config = laid_over(edit_verb.EditConfig(), found, {"steps": config.steps, **chosen})
        options = dataclasses.replace(options, preset=found, settings=config)
    path = given if _is_splats(source) else edit_verb.find(options)
    checked = edit_verb.check(options)
    from splatgen import formats
    from splatgen.loop import object_edit, object_run

    splats: Any = source if _is_splats(source) else edit_verb.nearby(formats.read(path), path).splats()
    object_edit.check_source(splats, str(path), checked.edit.fit)
    result, _ = execution.carry_out(
        lambda report, should_stop: object_run.edit(
            checked, splats, out=Path(out), command=["splatgen.edit"], report=report, should_stop=should_stop
        ),
        checked,
        quiet=not progress,
    )
    return RunResult.of(result)


def compare(
    prompt: str,
    methods: Sequence[str] = ("sds", "sdi", "rewardsds", "psd"),
    *,
    seeds: int = 3,
    preset: str | None = None,
    out: str | os.PathLike[str] = "outputs",
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> SweepResult:
    """Make the same prompt with several methods and seeds; the first method is what others are held against.

    A method is a name, SCORE+PREFERENCE as in "sdi+psd", or "preset:NAME". Raises as `generate` does.
    """
    given = {**settings, "prompt": prompt}
    config = _comparable(preset or _usual([prompt], given), given)
    options = compare_verb.Compare(
        methods=tuple(methods), seeds=seeds, out=Path(out), force=force, quiet=not progress, settings=config
    )
    sweep_words.check_words(options)
    plan = compare_verb.plan_of(options, lambda name: laid_over(sweep_words.START, name, given))
    plan = compare_verb.check(options, plan)
    made, _ = sweeping.carry_out(options, plan, ["splatgen.compare"], "compare")
    return SweepResult(folder=made.folder, table=table(made))


def sweep(
    prompts: str | os.PathLike[str] | Sequence[str],
    methods: Sequence[str] = ("sds", "sdi", "rewardsds", "psd"),
    *,
    seeds: int = 3,
    axes: Mapping[str, Sequence[Any]] | None = None,
    preset: str | None = None,
    workers: int = 1,
    ray: str | None = None,
    gpus: float = 1.0,
    skip_unknown: bool = False,
    out: str | os.PathLike[str] = "outputs",
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> SweepResult:
    """Make every prompt with several methods and seeds, each run in a folder of the sweep's.

    prompts is a list of them, a file, or the name of a set that is part of the program (shelf-100). axes are
    further ones, as --set: {"guidance.scale": [2, 5]}. workers, ray and gpus are those of the command line,
    and so is what is shown of the plan. Ctrl-C stops after checkpoints; `splatgen sweep --resume FOLDER` goes
    on. Raises as `generate` does.
    """
    if "prompt" in settings:
        raise ConfigError("prompt is no setting of a sweep: its prompts come first")
    found = sweep_verb.prompts_of(prompts)
    config = _comparable(preset or _usual(found, settings), settings)
    options = sweep_verb.Sweep(
        methods=tuple(methods),
        seeds=seeds,
        workers=workers,
        ray=ray,
        gpus=gpus,
        skip_unknown=skip_unknown,
        out=Path(out),
        force=force,
        quiet=not progress,
        settings=sweep_verb.SweepConfig(**{f.name: getattr(config, f.name) for f in fields(config)}),
    )
    sweep_words.check_words(options)
    plan = sweep_verb.plan_of(
        options,
        found,
        [axis(key, list(values)) for key, values in (axes or {}).items()],
        lambda name: laid_over(sweep_words.START, name, settings),
    )
    plan = sweep_verb.check(options, plan)
    sweeping.announce(options, plan)
    made, _ = sweeping.carry_out(options, plan, ["splatgen.sweep"], "sweep")
    return SweepResult(folder=made.folder, table=table(made))


def evaluate(
    runs: Runs | Sequence[Runs],
    metrics: Sequence[str] = (),
    *,
    views: eval_verb.VIEWS = "random-10",
    size: int = 256,
    out: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure finished runs, or those of sweeps and folders, on the same views; writes a row each.

    Without metrics all that this machine can measure are. Rows go to `out` (.jsonl or .parquet), or to
    eval.jsonl in the first folder. Raises ValueError for folders without runs, Failure for metrics that there
    aren't or whose weights aren't here.
    """
    several = [runs] if isinstance(runs, RunResult | SweepResult | str | os.PathLike) else list(runs)
    options = eval_verb.Eval(
        runs=tuple(_path(run) for run in several),
        metrics=tuple(metrics),
        views=views,
        size=size,
        out=None if out is None else Path(out),
        weights=None if weights is None else Path(weights),
        quiet=not progress,
    )
    rows = eval_verb.measure(options)
    return Evaluation(rows=rows, path=eval_verb.out_of(options), table=eval_verb.table(rows))


def load(source: Source, *, frame: str | None = None) -> Splats:
    """The splats of a file (.ply, .splat, .spz, .glb) or a run; frame names the file's axes."""
    from splatgen import formats

    return formats.load(inputs.splat_file(_path(source)), frame=frame)


def save(splats: Splats, path: str | os.PathLike[str], *, sh_degree: int | None = None) -> int:
    """Write splats in the format of the suffix; returns how many were dropped as invisible or broken."""
    from splatgen import formats

    return formats.save(splats, path, sh_degree=sh_degree)


def render(
    source: Source,
    *,
    azimuth: float | Sequence[float] = (0.0, 90.0, 180.0, 270.0),
    elevation: float = 15.0,
    size: int = 256,
    background: str = "white",
    device: str = "auto",
) -> Pictures:
    """Pictures of splats, a file or a run from cameras around it, size x size; angles in degrees.

    As on the command line, a file that is out of view or tiny is moved before the cameras, and one that says
    it is antialiased (mip) is rendered so.
    """
    import numpy as np
    import torch

    from splatgen.loop.results import pictures
    from splatgen.scene.backgrounds import PLAIN
    from splatgen.scene.cameras import orbit

    if background not in PLAIN:
        raise ValueError(f"background is {background!r}: choose one of {', '.join(PLAIN)}")
    given: Any = (source, False) if _is_splats(source) else _framed(_path(source))
    splats, antialiased = given
    angles = torch.tensor([azimuth] if isinstance(azimuth, int | float) else list(azimuth)).float()
    cameras = orbit(angles, torch.full_like(angles, elevation), size=size)
    placed = splats.to(checks.resolve_device(device).device)
    seen = pictures(placed, cameras, background, antialiased=antialiased)
    return Pictures(rgb=np.stack(list(seen)))


def _framed(path: Path) -> tuple[Splats, bool]:
    """A file's or a run's splats before the cameras, and whether they are for an antialiased renderer."""
    from splatgen import formats

    file = formats.read(inputs.splat_file(path))
    return inputs.framed(file, path, "auto"), file.antialiased


def laid_over(start: C, preset: str | None, settings: Mapping[str, Any]) -> C:
    """Settings with the precedence of the command line: start < preset < those given."""
    given = {name: value for name, value in settings.items() if value is not None}
    base = start if preset is None else arguments.with_preset(start, preset)
    chosen: C = configs.merge(base, given)
    arguments.check_heard(chosen, base)
    return chosen if base is start else arguments.left_out(chosen, base)  # type: ignore[no-any-return]


def _usual(prompts: Sequence[str], settings: Mapping[str, Any]) -> str | None:
    """The preset for prompts where settings leave the prior open, as on the command line."""
    stages = settings.get("stages") or ()
    if settings.get("prior") is not None or any("prior" in stage for stage in stages):
        return None
    asked = {name: settings[name] for name in ("device", "weights") if settings.get(name) is not None}
    return usual.preset(prompts, configs.merge(Config(), asked))


def _comparable(preset: str | None, given: Mapping[str, Any]) -> Config:
    """Settings of what is compared."""
    return sweep_words.without_stages(laid_over(sweep_words.START, preset, given), preset)


def _is_splats(source: Source) -> bool:
    """Whether these are splats themselves, and no place to read them from."""
    return not isinstance(source, RunResult | str | os.PathLike)


def _path(source: Any) -> Path:
    return source.folder if isinstance(source, RunResult | SweepResult) else Path(source)
