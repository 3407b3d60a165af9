"""Everything that can be known to be wrong before torch is imported or a folder is made."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from splatgen import formats
from splatgen.commands.common import cost
from splatgen.commands.common.embedded import (
    VocabularyError,
    World,
    concerned,
    elsewhere,
    missing_weights,
    of_prior,
)
from splatgen.commands.common.errors import MISSING, USAGE, Failure
from splatgen.config import Config, ImageConfig, Method, PriorOptions
from splatgen.config.hints import did_you_mean
from splatgen.config.stages import Stage, stages
from splatgen.models import weights
from splatgen.models.budget import BUDGETS
from splatgen.priors import PRIORS
from splatgen.rewards import JUDGES, REWARDS, RewardEntry
from splatgen.runs import run_folder, sinks

if TYPE_CHECKING:
    from splatgen.rasterizer.backends import Choice

M = TypeVar("M", bound=Method)
PROMPT_LIMIT = 2000  # characters; text encoders read some 77 tokens
MIN_FREE_MB = 50.0


def check_text(text: str, what: str) -> None:
    """Raise Failure for a prompt that is more than a line of text."""
    if len(text) > PROMPT_LIMIT:
        raise Failure(
            USAGE, f"the {what} has {len(text):,} characters: shorten it to {PROMPT_LIMIT:,} or fewer"
        )
    for character in text:
        category = unicodedata.category(character)
        if character in "\n\r\v\f\x85\u2028\u2029":
            raise Failure(USAGE, f"the {what} has a line break: write it on one line")
        if category == "Cc":
            raise Failure(USAGE, f"the {what} holds the control character {character!r}: remove it")
        if category == "Cs":
            raise Failure(USAGE, f"the {what} is not valid UTF-8: type it again, or set LANG=C.UTF-8")


@contextlib.contextmanager
def naming(stage: Stage) -> Iterator[None]:
    """Within, a failure says which stage of the run it is of."""
    try:
        yield
    except (Failure, weights.WeightsError) as error:
        if not stage.label:
            raise
        code = error.code if isinstance(error, Failure) else MISSING
        raise Failure(code, f"{stage.label}: {error}") from error.__cause__


def check_settings(config: Config, *, force: bool) -> Config:
    """The config, with the nearest prompt when forced; raises Failure for names and prompts that can't be."""
    if stages(config)[0].config.score == "refine" and config.init == Config().init:
        advice = "give it as --init FILE, such as the splats.ply of a run, or put a stage before it"
        raise Failure(
            USAGE, f"--score refine sharpens what is there, and this run begins with nothing: {advice}"
        )
    for stage in stages(config):
        with naming(stage):
            check_names(stage.config)
    found = [stage.config for stage in stages(config)]
    readers = {(c.prior, tuple(c.rewards()), c.holdout_reward, c.negative) for c in found}
    for stage in stages(config):
        with naming(stage) if len(readers) > 1 else contextlib.nullcontext():  # else it is no stage's fault
            possible = check_prompts(dataclasses.replace(stage.config, prompt=config.prompt), force=force)
        config = dataclasses.replace(config, prompt=possible.prompt)
    return config


def check_all_models(config: Method) -> None:
    """Raise Failure or WeightsError when weights of a run, or of one of its stages, are missing."""
    if not isinstance(config, Config) or not config.stages:
        check_models(config)
        return
    for stage in stages(config):
        with naming(stage):
            check_models(stage.config)


def check_unstaged(config: Config, what: str) -> None:
    """Raise Failure for stages where there can be none."""
    if config.stages:
        raise Failure(USAGE, f"there are {len(config.stages)} stages, and {what}: leave [[stages]] out")


def check_names(config: Method) -> None:
    """Raise Failure for a prior or reward that does not exist, or that does not go with the others."""
    if config.prior not in PRIORS:
        hint = did_you_mean(config.prior, PRIORS)
        raise Failure(USAGE, f"no prior {config.prior[:60]!r}; {hint}")
    _check_prior_options(config)
    views = PRIORS[config.prior].views
    if config.score == "refine" and config.refine.views % views:
        raise Failure(
            USAGE,
            f"--refine.views {config.refine.views}: the prior {config.prior!r} denoises {views} views "
            f"together, give a multiple of {views}",
        )
    if isinstance(config, Config) and config.views.count % views:
        raise Failure(
            USAGE,
            f"--views.count {config.views.count}: the prior {config.prior!r} denoises {views} views "
            f"together, give a multiple of {views}",
        )
    entries = () if config.reward == ("auto",) else config.reward
    names = [entry.partition("=")[0] for entry in entries]
    for name in names:
        _check_reward(name, config, REWARDS, "--reward")
        if names.count(name) > 1:
            raise Failure(USAGE, f"the reward {name!r} is there twice: name it once")
    for name in config.holdout_reward:
        _check_reward(name, config, JUDGES, "--holdout-reward")
        if name in names:
            raise Failure(USAGE, f"the reward {name!r} guides and is held out: name it once")
    if config.score == "vsd" and not PRIORS[config.prior].adapter:
        raise Failure(
            USAGE, f"--score vsd trains a copy of the prior, and {config.prior!r} has no adapter: use another"
        )


def _check_prior_options(config: Method) -> None:
    usual, read = PriorOptions(), PRIORS[config.prior].options
    for f in dataclasses.fields(usual):
        value = getattr(config.prior_options, f.name)
        if value != getattr(usual, f.name) and f.name not in read:
            option = f.name.replace("_", "-")
            raise Failure(
                USAGE,
                f"--prior.{option} {value}: the prior {config.prior!r} does not have this option; it has "
                f"{', '.join(read)}",
            )


def _check_reward(name: str, config: Method, table: Mapping[str, RewardEntry], option: str) -> None:
    if name not in table:
        hint = did_you_mean(name, table)
        if name in JUDGES:
            hint = "it only watches: give it to --holdout-reward"
        if " " in name and not config.prompt:
            hint = f"if that is the prompt, put it before {option}"
        raise Failure(USAGE, f"no reward {name[:60]!r}; {hint}")
    views, shown = table[name].views, PRIORS[config.prior].views
    if shown % views:
        raise Failure(
            USAGE,
            f"the reward {name!r} judges {views} views together, and the prior {config.prior!r} has {shown} "
            "at a time: use a multi-view prior, or a reward of single views",
        )


def check_prompts(config: M, *, force: bool) -> M:
    """The config, with the nearest prompt when forced; raises Failure for a prompt that can't be made."""
    check_text(config.prompt, "prompt")
    check_text(config.negative, "negative prompt")
    if not config.prompt.strip():
        raise Failure(USAGE, 'the prompt is empty: give one, as in splatgen generate "a red cube"')
    check_plain(config, force=force)
    for world in concerned(config):
        if config.negative.strip():
            _in_vocabulary(world, config.negative, "negative prompt: ")
        config = _possible(world, config, force=force)
    return config


def _possible(world: World, config: M, *, force: bool) -> M:
    """The config with a prompt that a world can read; raises Failure where it has to be another."""
    try:
        world.parse(config.prompt)
    except VocabularyError as error:
        if not force or not error.nearest:
            offer = " (--force makes that one)" if error.nearest else ""
            raise Failure(USAGE, f"{error}{offer}. {elsewhere(world, config.prompt)}") from error
        print(f"splatgen: making {error.nearest!r} instead: {error}", file=sys.stderr)
        return dataclasses.replace(config, prompt=error.nearest)
    return config


def check_plain(config: Method, *, force: bool) -> None:
    """Raise Failure, unless forced, for the marks of other programs, which would be read as words."""
    for text in (config.prompt, config.negative):
        weight, file = _WEIGHT.search(text), _LORA.search(text)
        if weight and not force:
            plain = _WEIGHT.sub(r"\1", text)
            raise Failure(
                USAGE,
                f"{weight[0][:40]!r} gives words a weight, which is not read here: write {plain[:80]!r} "
                "(--force takes it as words)",
            )
        if file and not force:
            raise Failure(USAGE, f"{file[0][:40]!r} names LoRA weights: give their file as --prior.lora FILE")


_WEIGHT = re.compile(r"[(\[]\s*([^()\[\]:]+?)\s*:\s*[-+]?\d*\.?\d+\s*[)\]]")
_LORA = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:[^<>]*>", re.IGNORECASE)


def check_models(config: Method) -> None:
    """Raise Failure or WeightsError when weights are missing."""
    rewards = (*config.rewards(), *config.holdout_reward)
    for name in rewards:
        if not JUDGES[name].embedded:
            _check_room(name, config.budget)
            weights.find(name, config.weights)
    world, given = of_prior(config.prior), config.prior_options.model
    if world is not None:
        for name in world.priors[config.prior]:
            _check_embedded(world, name, Path(given) if given else world.folder)
    elif config.prior_options.model is not None:
        weights.given(config.prior_options.model, config.prior_options.revision)
    else:
        without = () if config.prior_options.t5 else ("text_encoder_3/", "tokenizer_3/")
        try:
            weights.find(config.prior, config.weights, without=without)
        except weights.WeightsError as error:
            raise weights.WeightsError("; ".join(filter(None, [str(error), takes_long(config)]))) from error
    for world in concerned(config):
        for name in world.rewards.keys() & {*rewards}:
            _check_embedded(world, world.rewards[name], world.folder)
    if config.weights is not None and not Path(config.weights).is_dir():
        raise Failure(MISSING, f"--weights {config.weights} is no folder: give one that holds models by name")


def _check_room(name: str, budget: str) -> None:
    """Refuse a reward whose weights alone break what a budget promises."""
    most, taken = BUDGETS[budget].most, weights.published(name).gigabytes * 1e9 / 2**30
    if most and taken > most:
        raise Failure(
            USAGE,
            f"{name} alone takes {taken:.1f} GiB and --budget {budget} promises to stay within {most:g}: "
            "take a larger budget, or another reward",
        )


def takes_long(config: Method) -> str:
    """What a run of a published prior takes where there is no GPU, in words; empty where there is one."""
    slow = config.prior in cost.TERAFLOPS and resolve_device("auto", renders=False).device == "cpu"
    return cost.without_gpu(config) if slow else ""


def _check_embedded(world: World, name: str, folder: Path) -> None:
    missing = missing_weights(name, folder)
    if missing:
        advice = f"install splatgen again, or train: `python -m splatgen.worlds.{world.name}.train {name}`"
        if folder != world.folder:
            advice = f"--prior.model is a folder that holds {name}.safetensors and {name}.json"
        raise Failure(MISSING, f"{missing[0]} is missing: {advice}")


def check_log(config: Method) -> None:
    """Raise Failure for a log whose package is not there."""
    options = (
        config.output
        if isinstance(config, Config)
        else config.image
        if isinstance(config, ImageConfig)
        else None
    )
    lacking = "" if options is None else sinks.missing(options.log)
    if lacking:
        raise Failure(MISSING, lacking)


def check_device(config: Method) -> None:
    """Raise Failure for CUDA with a torch that was built without it; `resolve_device` does the rest."""
    check_log(config)
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError as error:
        raise Failure(MISSING, "torch is not installed: `pip install splatgen` brings it") from error
    if config.device == "cuda" and version.endswith("+cpu"):
        resolve_device("cuda")  # knows what to do about it


def resolve_device(device: str, backend: str = "auto", *, renders: bool = True) -> Choice:
    """Device and rasterizer; raises Failure when one that is wanted is not there. Imports torch."""
    from splatgen.rasterizer.backends import BackendError, choose

    try:
        return choose(device, backend, renders=renders)
    except BackendError as error:
        raise Failure(MISSING, str(error)) from error


def resolve(config: Method) -> Choice:
    """Device and rasterizer of a run; raises Failure when one that is wanted is not there."""
    backend = config.render.backend if isinstance(config, Config) else "auto"
    return resolve_device(config.device, backend, renders=isinstance(config, Config))


def check_out(out: Path) -> None:
    """Raise OSError unless run folders can be made in `out`."""
    run_folder.check_space(out, MIN_FREE_MB)


def _in_vocabulary(world: World, text: str, where: str) -> None:
    try:
        world.parse(text)
    except VocabularyError as error:
        raise Failure(USAGE, f"{where}{error}") from error


def check_init(config: Config) -> None:
    """Raise Failure for a start that there isn't, OSError for a file that can't be opened."""
    if config.init == "sphere":
        return
    if config.init == "shap-e":
        try:
            weights.find("shap-e", config.weights)
        except weights.WeightsError as error:
            raise Failure(MISSING, f"--init shap-e: {error}") from error
        return
    path = Path(config.init).expanduser()
    suffixes = (*formats.FORMATS, *formats.MESHES)
    if config.init and path.is_dir():
        raise Failure(USAGE, f"--init {path} is a folder: give a file, such as the splats.ply of a run")
    if path.suffix.lower() not in suffixes:
        known = f"give sphere, shap-e, or a file with the suffix {' or '.join(suffixes)}"
        if not path.suffix and path.name == config.init:
            known = did_you_mean(config.init, ("sphere", "shap-e", *(f"FILE{suffix}" for suffix in suffixes)))
        raise Failure(USAGE, f"--init {config.init[:200]!r} is no start; {known}")
    if not path.exists():
        raise Failure(USAGE, f"--init {path} does not exist: give sphere, shap-e or a file")
    if not path.is_file():
        raise Failure(USAGE, f"--init {path} is no file: give a splat file or a mesh")
    with path.open("rb"):
        pass
