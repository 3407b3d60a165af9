"""`splatgen image`: the same guidance on one image, or on a picture that words change."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from splatgen.commands.common import checks, usual
from splatgen.commands.common.arguments import RunFlags
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.execution import execute
from splatgen.config import ImageConfig, presets
from splatgen.config.validation import validate_image
from splatgen.priors import PRIORS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "WEBP")
KINDS = "give a PNG, JPEG or WebP picture"
MOST_PIXELS = 64_000_000
MOST_BYTES = 100_000_000
GREY = (128, 128, 128)  # behind what is transparent


@dataclass(frozen=True, kw_only=True)
class Image(RunFlags):
    """Make one image out of a prompt, or change a picture by words; prints the run folder."""

    edit: Annotated[Path | None, arg(metavar="PICTURE", help_behavior_hint="")] = None
    """A PNG, JPEG or WebP to change: its middle square, at the prior's size. Needs --source."""
    settings: Annotated[ImageConfig, arg(name="", prefix_name=False)] = field(default_factory=ImageConfig)


NOTE = (
    "This is the papers' 2D setting: the image itself is optimised. With --edit the prediction for --source "
    "is subtracted: delta denoising score, and RewardDDS with --preference weighted. Options on the command "
    "line change the config file's, which change the preset's, which change the defaults. Presets: "
    "{presets}. Ctrl-C stops with a checkpoint; `splatgen resume RUN` continues."
)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture, upright and on grey where it is transparent, [H, W, 3]; raises Failure."""
    import numpy as np
    from PIL import Image as pillow
    from PIL import ImageOps

    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise Failure(USAGE, f"--edit {path} {problem}: {KINDS}")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise Failure(USAGE, f"--edit {path} has {size / 1e6:.0f} MB: give a picture of 100 MB at most")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # the limit below is lower
            with pillow.open(path, formats=FORMATS) as file:
                width, height = file.size
                if width * height > MOST_PIXELS:
                    advice = "give one of 64 megapixels at most"
                    raise Failure(USAGE, f"--edit {path} has {width} x {height} pixels: {advice}")
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
                    picture = pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
                if picture.has_transparency_data:
                    picture = picture.convert("RGBA")
                    grey = pillow.new("RGBA", picture.size, (*GREY, 255))
                    picture = pillow.alpha_composite(grey, picture)
                return np.asarray(picture.convert("RGB"))
    except pillow.DecompressionBombError as error:
        raise Failure(USAGE, f"--edit {path} is too large ({error}): give 64 megapixels at most") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that are damaged
        raise Failure(USAGE, f"--edit {path} cannot be read ({error}): {KINDS}") from error


def check(options: Image) -> ImageConfig:
    """Everything that can fail early, cheapest first; returns the config, with its prompts made possible."""
    config = validate_image(options.settings)
    checks.check_names(config)
    views = PRIORS[config.prior].views
    if views > 1:
        advice = "an image is one: use a single-view prior"
        raise Failure(USAGE, f"the prior {config.prior!r} denoises {views} views together, and {advice}")
    if PRIORS[config.prior].coverage and config.image.space == "pixels":
        advice = "pixels have none: use --image.space latents"
        raise Failure(USAGE, f"the prior {config.prior!r} reads coverage, and {advice}")
    config = checks.check_prompts(config, force=options.force)
    if options.edit is None and config.source:
        raise Failure(
            USAGE, "--source tells what a picture shows: give the picture, too, with --edit PICTURE"
        )
    if options.edit is not None:
        config = check_source(config, force=options.force)
    checks.check_models(config)
    checks.check_device(config)
    checks.check_out(options.out)
    return config


def check_source(config: ImageConfig, *, force: bool) -> ImageConfig:
    """The config, with the nearest source when forced; raises Failure for one that the prior can't read."""
    if not config.source.strip():
        raise Failure(USAGE, '--edit needs what the picture shows: add --source, as in --source "a red cube"')
    shown = dataclasses.replace(config, prompt=config.source)
    try:
        return dataclasses.replace(config, source=checks.check_prompts(shown, force=force).prompt)
    except Failure as error:
        raise Failure(error.code, f"--source: {error}") from error


def read(argv: Sequence[str]) -> Image:
    """The options with their precedence; SystemExit or ConfigError when they are wrong."""

    def prompts(options: Image) -> list[str]:
        return [text for text in (options.settings.prompt, options.settings.source) if text]

    note = NOTE.format(presets=", ".join(presets()))
    return usual.read(Image, "image", argv, note=note, prompts=prompts)


def main(argv: Sequence[str]) -> int:
    options = read(argv)
    config = check(options)
    picture = None if options.edit is None else read_picture(options.edit)
    from splatgen.loop import image_run

    return execute(
        lambda report, should_stop: image_run.generate(
            config,
            out=options.out,
            command=["splatgen", "image", *argv],
            picture=picture,
            report=report,
            should_stop=should_stop,
        ),
        config,
        as_json=options.json,
        quiet=options.quiet,
    )
