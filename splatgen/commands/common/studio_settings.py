"""Settings of the studio: between the page's fields and a config, and the variants of one."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from splatgen.commands.common.arguments import check_heard
from splatgen.commands.common.embedded import lacks_reward, of_prior
from splatgen.commands.common.past_runs import PastRun
from splatgen.config import Config, ConfigError, Method, merge, presets
from splatgen.config.methods import METHODS, slots
from splatgen.config.schema import PREFERENCES, SCORES
from splatgen.config.stages import selections, stages
from splatgen.priors import PRIORS

if TYPE_CHECKING:
    from splatgen_viewer import studio_program as page

    from splatgen.commands.common.studio_files import OpenedFiles

AS_STARTED = "as started"
FIELDS = (
    "prompt",
    "negative",
    "prior",
    "score",
    "preference",
    "steps",
    "seed",
)  # of a form, by the same name
JUDGES = {"toybox": "toybox-judge", "shelf": "shelf-judge"}  # that watch where nothing else was chosen
MOST_VARIANTS = 9


class Settings:
    """read gives the settings of the command line with a preset, or without one for None."""

    def __init__(self, read: Callable[[str | None], Config], files: OpenedFiles) -> None:
        from splatgen_viewer import studio_program

        self._page, self._read, self._files = studio_program, read, files
        self._presets: dict[str, Config] = {}
        self.choices = self._page.Choices(
            bases=(AS_STARTED, *presets()),
            priors=tuple(PRIORS),
            scores=names_of("score"),
            preferences=names_of("preference"),
            methods=tuple(METHODS),
        )

    def form(self, base: str, runs: Mapping[str, PastRun]) -> page.Form:
        """The fields as a preset under the words of the command line, or a past run, has them."""
        return self.fields(self.base(base, runs), base)

    def fields(self, config: Config, base: str) -> page.Form:
        """A config in the fields; what they do not hold stays with the base."""
        return self._page.Form(
            base=base,
            prompt=config.prompt,
            prior=config.prior,
            score=config.score,
            preference=config.preference,
            steps=config.steps,
            seed=config.seed,
            negative=config.negative,
            scale=config.guidance.scale,
            rewards=" ".join(config.reward),
            held_out=" ".join(config.holdout_reward),
        )

    def base(self, name: str, runs: Mapping[str, PastRun]) -> Config:
        """The settings of a preset under the words of the command line, or of a past run or a file."""
        opened = self._files.config(name)
        if opened is not None:
            return opened
        if name in runs:
            return self._of_run(runs[name])
        if name not in self.choices.bases:
            raise ConfigError(f"there is no preset or run {name[:100]!r} to start from")
        if name not in self._presets:
            self._presets[name] = watched(self._read(None if name == AS_STARTED else name))
        return self._presets[name]

    def _of_run(self, past: PastRun) -> Config:
        if isinstance(past.config, Config):
            return past.config
        c = past.config  # of a picture: an object of the same words
        own = {"prompt": c.prompt, "negative": c.negative, "seed": c.seed}
        found: Config = merge(self.base(AS_STARTED, {}), own)
        return found

    def variants(self, form: page.Form, runs: Mapping[str, PastRun]) -> list[tuple[str, Config]]:
        """What is made, by name: one, or a config for each method and seed. ConfigError in words."""
        config = self._config(form, runs)
        methods = [name for name in re.split(r"[\s,;]+", form.methods) if name]
        count = max(len(methods), 1) * form.seeds
        if count > MOST_VARIANTS:
            raise ConfigError(f"{count} variants are too many to see: choose {MOST_VARIANTS} or fewer")
        doubled = next((name for name in methods if methods.count(name) > 1), None)
        if doubled is not None:
            raise ConfigError(f"the method {doubled[:40]!r} is there twice: name it once")
        found = []
        for method in methods or [""]:
            made = selected(merge(config, slots(method))) if method else config
            for seed in range(config.seed, config.seed + form.seeds):
                parts = [method] if method else []
                parts += [f"seed {seed}"] if form.seeds > 1 else []
                found.append((", ".join(parts), replace(made, seed=seed)))
        return found

    def _config(self, form: page.Form, runs: Mapping[str, PastRun]) -> Config:
        base = self.base(form.base, runs)
        chosen: dict[str, Any] = {name: getattr(form, name) for name in FIELDS}
        chosen["guidance"] = {"scale": form.scale}
        chosen["reward"], chosen["holdout_reward"] = form.rewards.split(), form.held_out.split()
        moved = form.prior != base.prior and form.held_out == JUDGES.get(base.prior)
        if moved:  # the judge was that of the base's world, and nobody's choice
            chosen["holdout_reward"] = []
        config: Config = merge(selected(merge(base, chosen)), more(form.more))
        check_heard(config, base)
        config = watched(config) if moved else config
        if not form.opened:
            return config
        if form.source.strip():
            return as_edit(config, form.source)
        return replace(config, init=str(self._files.path(form.opened)))


def watched(config: Config) -> Config:
    """With a judge that only watches, where the prior's world has one and nothing else was chosen."""
    judge = JUDGES.get(config.prior, "")
    if not judge or config.holdout_reward or lacks_reward(judge):
        return config
    return replace(config, holdout_reward=(judge,))


def as_edit(config: Config, source: str) -> Config:
    """Settings of an edit of what shows `source`: nothing grows, and nothing is reshaped."""
    from splatgen.commands.edit import EditConfig

    usual = EditConfig()
    return replace(config, source=source, init="sphere", densify=usual.densify, regularise=usual.regularise)


def told(config: Method) -> str:
    """How something is made, in a few words."""
    made = slots_of(config)
    if isinstance(config, Config):
        made = " → ".join(f"{s.name}: {slots_of(s.config)}".lstrip(": ") for s in stages(config))
    return f"{made}, {config.steps:,} steps, seed {config.seed}"


def slots_of(config: Method) -> str:
    """Score, preference and prior."""
    method = config.score if config.preference == "none" else f"{config.score} + {config.preference}"
    return f"{method}, {config.prior}"


def vocabulary(prior: str) -> page.Vocabulary | None:
    """The words of a prior that knows only some, with their pictures where there are any."""
    from splatgen_viewer.studio_program import Vocabulary

    world = of_prior(prior)
    if world is None:
        return None
    found = Vocabulary(lines=world.lines(), examples=world.examples)
    if world.name != "shelf":
        return found
    import base64

    from splatgen.worlds.shelf import catalogue, gallery

    if not gallery.path().is_file():
        return found
    sheet = base64.b64encode(gallery.path().read_bytes()).decode()
    places = {name: n for n, name in enumerate(catalogue.catalogue().nouns)}
    picture = f"data:image/webp;base64,{sheet}"
    return dataclasses.replace(found, picture=picture, columns=gallery.COLUMNS, places=places)


def names_of(field: str) -> tuple[str, ...]:
    """What a setting of the config can be."""
    return tuple(typing.get_args(typing.get_type_hints(Config)[field]))


def selected(config: Config) -> Config:
    """Without options of a score or preference that is not the chosen one: they would be refused."""
    unused = [name for name in (*SCORES, *PREFERENCES) if name not in selections(config)]
    return replace(config, **{name: type(getattr(config, name))() for name in unused})


def more(text: str) -> dict[str, Any]:
    """Settings as lines of a config file."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        advice = "write a line a setting, such as guidance.scale = 7.5"
        raise ConfigError(f"more settings: {error}: {advice}") from error
