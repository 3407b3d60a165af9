"""The preset of a run whose prior nobody chose: the same for every verb that starts one. No torch, but where
the weights of Stable Diffusion are here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from splatgen.commands.common import arguments, checks, embedded
from splatgen.commands.common.arguments import SettingsFlags
from splatgen.config import read_preset
from splatgen.config.stages import overruled
from splatgen.models import weights

GPU = "sd15-fast"  # where CUDA and its weights are there
THINGS = "shelf"  # else, for everything that is no solid of the toybox

NOTE = (
    f" Where --preset, --config and --prior choose nothing, {GPU} is the preset where CUDA and its weights "
    f"are here, else {THINGS}, but for prompts of the toybox's solids: those have the defaults shown here."
)

S = TypeVar("S", bound=SettingsFlags)


def read(
    kind: type[S],
    verb: str,
    argv: Sequence[str],
    *,
    note: str,
    prompts: Callable[[S], Sequence[str]],
    more: Sequence[str] = (),
) -> S:
    """Options as arguments.read gives them, over the preset that prompts ask for where the words leave the
    prior to the program; more are words that this preset brings with it."""
    options = arguments.read(kind, verb, argv, note=note + NOTE)
    return over_preset(options, verb, argv, note=note, prompts=prompts, more=more)


def over_preset(
    options: S,
    verb: str,
    argv: Sequence[str],
    *,
    note: str,
    prompts: Callable[[S], Sequence[str]],
    more: Sequence[str] = (),
) -> S:
    """Options that were read without a preset, read again over the one that their prompts ask for."""
    found = preset(prompts(options), options.settings) if is_open(options, argv) else None
    if found is None:
        return options
    if found == GPU:
        print(f"splatgen: CUDA and its weights are here: --preset {GPU} (or toybox)", file=sys.stderr)
    return arguments.read(type(options), verb, ["--preset", found, *more, *argv], note=note + NOTE)


def is_open(options: SettingsFlags, argv: Sequence[str]) -> bool:
    """Whether the words leave the prior to the program."""
    names = {word.partition("=")[0] for word in argv}
    if "--prior" in names or options.preset is not None or options.config is not None:
        return False
    return not hasattr(options.settings, "stages") or overruled(options.settings, {"prior": ""}) is None


def preset(prompts: Sequence[str], settings: Any) -> str | None:
    """The preset for prompts of runs of these settings; None is the defaults.

    Stable Diffusion where CUDA and its weights are there; else the shelf, but for the toybox's own captions,
    which its own prior draws better.
    """
    if settings.device != "cpu" and can_run(GPU, settings):
        return GPU
    toys = bool(prompts) and all(is_caption("toybox", prompt) for prompt in prompts)
    return None if toys or embedded.lacks("shelf") else THINGS


def is_caption(prior: str, prompt: str) -> bool:
    """Whether an embedded prior can read a prompt as it stands."""
    world = embedded.of_prior(prior)
    return world is not None and embedded.reads(world, prompt)


def can_run(preset: str, settings: Any) -> bool:
    """Whether a preset's prior is on this machine, and a GPU; torch is asked only when the weights are."""
    try:
        weights.find(str(read_preset(preset)["prior"]), settings.weights)
    except weights.WeightsError:
        return False
    return checks.resolve_device("auto").device == "cuda"
