"""`splatgen edit`: splats that exist, changed by words."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, Suppress, arg

from splatgen import config as configs
from splatgen.commands.common import checks, usual
from splatgen.commands.common.arguments import RunFlags
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.execution import execute
from splatgen.commands.common.inputs import splat_file
from splatgen.commands.common.sweep_words import without_stages
from splatgen.commands.common.viewer import ViewerOptions, watched
from splatgen.config import Config, DensifyOptions, EditOptions, RegulariseOptions, SplatOptions, presets
from splatgen.config.validation import validate

if TYPE_CHECKING:
    from splatgen.formats.splat_file import SplatFile

ARROW = re.compile(r"->|→")
USAGE_HINT = 'as in splatgen edit object.ply "a red cube -> a blue cube"'


@dataclass(frozen=True, kw_only=True)
class EditConfig(Config):
    """A run's settings with the defaults of an edit.

    Measured on the toybox, where guidance scales of 1 to 1.5 kept more and hit the target better than 3 or 4,
    sds better than sdi, and times, learning rates of the geometry and more steps made no difference.
    """

    prompt: Annotated[str, Positional, arg(metavar='"SOURCE -> TARGET"', help_behavior_hint="")] = ""
    """What INPUT shows and what to make of it; TARGET alone with --source, or where INPUT is a run, whose
    own prompt is the source then."""
    source: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """What INPUT shows."""
    steps: Annotated[int, arg(metavar="N")] = 150
    """Optimisation steps; every schedule scales with them."""
    edit: EditOptions = field(default_factory=EditOptions)
    init: Annotated[str, Suppress] = "sphere"  # INPUT brings them
    splats: Annotated[SplatOptions, Suppress] = field(default_factory=SplatOptions)
    # No growth and no pruning: splats that the words ask nothing of stay what they were. On the toybox growth
    # gained at the size that is optimised, and lost as much at larger ones, to spikes along edges.
    densify: DensifyOptions = field(default_factory=lambda: DensifyOptions(rounds=0))
    # Penalties would reshape needles and strays of INPUT, whatever the words say.
    regularise: RegulariseOptions = field(default_factory=lambda: RegulariseOptions(radius=0.0, aspect=0.0))


@dataclass(frozen=True, kw_only=True)
class Edit(RunFlags):
    """Change splats by words and keep what the words do not name; prints the run folder."""

    input: Annotated[Path, Positional, arg(metavar="INPUT", help_behavior_hint="")] = Path()
    """A run folder or a splat file: .ply, .splat, .spz or .glb."""
    viewing: Annotated[ViewerOptions, arg(name="", prefix_name=False)] = field(default_factory=ViewerOptions)
    settings: Annotated[EditConfig, arg(name="", prefix_name=False)] = field(default_factory=EditConfig)


NOTE = (
    "The direction is that of the delta denoising score: what the prior says of the result under TARGET, "
    "less what it says of INPUT under SOURCE. With --preference weighted it is RewardDDS. The preview shows "
    "INPUT above the result. Options on the command line change the config file's, which change the "
    "preset's, which change the defaults. Presets: {presets}. Ctrl-C stops with a checkpoint; `splatgen "
    "resume RUN` continues."
)


def words(text: str, source: str, given: Path) -> tuple[str, str]:
    """Source and target, out of the words, --source, or the run that is edited; raises Failure."""
    parts = [part.strip() for part in ARROW.split(text)]
    if len(parts) > 2:
        raise Failure(USAGE, f"{text[:60]!r} has {len(parts) - 1} arrows: write one, {USAGE_HINT}")
    if len(parts) == 1 and re.search(r"[>⇒⟶]", text):
        raise Failure(USAGE, f"{text[:60]!r}: write the arrow as ->, {USAGE_HINT}")
    if not all(parts):
        missing = "words are" if parts == [""] else f"{'source' if not parts[0] else 'target'} is"
        raise Failure(USAGE, f"the {missing} missing: say what to change into what, {USAGE_HINT}")
    if len(parts) == 2 and source:
        raise Failure(USAGE, "there are two sources: write one before the arrow or with --source, not both")
    before = parts[0] if len(parts) == 2 else source or own_prompt(given)
    if not before.strip():
        raise Failure(USAGE, f"{given} does not say what it shows: tell, {USAGE_HINT}")
    return before, parts[-1]


def own_prompt(given: Path) -> str:
    """What a run shows: the prompt it was made for; empty for a file."""
    path = given / "config.json"
    return str(configs.read_file(path).get("prompt", "")) if path.is_file() else ""


def find(options: Edit) -> Path:
    """The file to read; raises Failure for an input that holds none."""
    if options.input == Path():
        raise Failure(USAGE, f"INPUT is missing: give a run folder or a .ply file, {USAGE_HINT}")
    return splat_file(options.input)


def check(options: Edit) -> Config:
    """The run's settings, after everything that can fail without torch."""
    source, target = words(options.settings.prompt, options.settings.source, options.input)
    table = {**configs.to_dict(options.settings), "source": source, "prompt": target}
    own = without_stages(configs.from_dict(table), options.preset)  # what is there has its form
    config = validate(own)
    checks.check_unstaged(config, "an edit has one")
    checks.check_names(config)
    config = check_prompts(config, force=options.force)
    checks.check_models(config)
    checks.check_device(config)
    checks.check_out(options.out)
    return config


def check_prompts(config: Config, *, force: bool) -> Config:
    """The config with both prompts possible; raises Failure when one is not, or when they are the same."""
    before = dataclasses.replace(config, prompt=config.source)
    try:
        source = checks.check_prompts(before, force=force).prompt
    except Failure as error:
        raise Failure(error.code, f"the source: {error}") from error
    config = dataclasses.replace(checks.check_prompts(config, force=force), source=source)
    if config.source.split() == config.prompt.split():
        raise Failure(USAGE, f"source and target are both {config.prompt[:60]!r}: nothing would change")
    return config


def nearby(file: SplatFile, path: Path) -> SplatFile:
    """Splats where float32 holds them well; one line says from where they were moved to the origin."""
    from splatgen.formats.splat_file import coarse, middle, recentred

    if file.antialiased:
        print(f"splatgen: {path} was made for an antialiased renderer, an edit is not", file=sys.stderr)
    if not coarse(file):
        return file
    place = ", ".join(f"{value:.10g}" for value in middle(file))
    print(f"splatgen: {path} is far away: the edit has its middle ({place}) at the origin", file=sys.stderr)
    return recentred(file)


def read(argv: Sequence[str]) -> Edit:
    """The options with their precedence; SystemExit or ConfigError when they are wrong."""
    note = NOTE.format(presets=", ".join(presets()))
    steps = ["--steps", str(EditConfig.steps)]  # a preset's are for what begins with nothing
    return usual.read(Edit, "edit", argv, note=note, prompts=prompts, more=steps)


def prompts(options: Edit) -> list[str]:
    """What is said of INPUT and of the result, as far as it is said."""
    text, source = options.settings.prompt, options.settings.source
    if not source and not ARROW.search(text) and options.input != Path():
        source = own_prompt(options.input)
    return [part.strip() for part in (*ARROW.split(text), source) if part.strip()]


def main(argv: Sequence[str]) -> int:
    options = read(argv)
    path = find(options)
    config = check(options)
    from splatgen import formats
    from splatgen.loop import object_edit, object_run

    object_edit.check_settings(config)
    splats = nearby(formats.read(path), path).splats()
    object_edit.check_source(splats, str(path), config.edit.fit)
    with watched(options.viewing, config) as channel:
        return execute(
            lambda report, should_stop: object_run.edit(
                config,
                splats,
                out=options.out,
                command=["splatgen", "edit", *argv],
                report=report,
                should_stop=should_stop,
                channel=channel,
            ),
            config,
            as_json=options.json,
            quiet=options.quiet,
        )
