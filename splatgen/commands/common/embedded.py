"""The embedded worlds as the command line meets them: languages, and where weights lie. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from splatgen.config import Method
from splatgen.worlds import shelf, toybox
from splatgen.worlds.shelf import catalogue as shelf_catalogue
from splatgen.worlds.shelf import grammar as shelf_grammar
from splatgen.worlds.toybox import grammar as toybox_grammar
from splatgen.worlds.toybox.grammar import VocabularyError

__all__ = [
    "WORLDS",
    "VocabularyError",
    "World",
    "concerned",
    "lacks",
    "lacks_reward",
    "missing_weights",
    "of_prior",
]


@dataclass(frozen=True, kw_only=True)
class World:
    """A world: its priors and rewards with the weights that each one takes."""

    name: str
    parse: Callable[[str], object]  # raises VocabularyError
    summary: Callable[[], str]  # what it knows, in a sentence or two
    lines: Callable[[], Mapping[str, tuple[str, ...]]]  # its words by kind
    examples: tuple[str, ...]
    priors: Mapping[str, tuple[str, ...]]
    rewards: Mapping[str, str]
    home: ModuleType  # its package

    @property
    def folder(self) -> Path:
        """Where its weights lie."""
        return Path(self.home.weights_folder())

    def weights(self) -> tuple[str, ...]:
        """Every set of weights it has, those of priors first."""
        of_priors = [name for names in self.priors.values() for name in names]
        return tuple(dict.fromkeys([*of_priors, *self.rewards.values()]))


def _toybox_summary() -> str:
    return (
        f"The toybox only knows its own world, {', '.join(toybox_grammar.SHAPES)} in "
        f"{', '.join(toybox_grammar.COLORS)}: "
        '"a red cube", "a red cube with a blue front", "a red and white striped cube", '
        '"a red cube on top of a blue sphere", "a red cube next to a blue sphere". ' + LARGER
    )


def _shelf_summary() -> str:
    nouns = shelf_catalogue.catalogue().nouns
    return (
        f"The shelf knows {len(nouns)} things (`splatgen words` lists them): "
        '"a taxi", "a red couch", "a pumpkin on top of a barrel", "a frog next to a mushroom". ' + LARGER
    )


LARGER = (
    "Free prompts need a larger prior: `splatgen fetch sd15`, then --prior sd15; `splatgen doctor` says "
    "what this machine can run"
)


def _toybox_lines() -> Mapping[str, tuple[str, ...]]:
    grammar = toybox_grammar
    return {"shapes": grammar.SHAPES, "colours": tuple(grammar.COLORS), "patterns": grammar.PATTERNS}


def _shelf_lines() -> Mapping[str, tuple[str, ...]]:
    groups = shelf_catalogue.catalogue().groups()
    return {group: tuple(noun.name for noun in nouns) for group, nouns in groups.items()}


WORLDS = (
    World(
        name="toybox",
        parse=toybox_grammar.parse,
        summary=_toybox_summary,
        lines=_toybox_lines,
        examples=(
            "a red cube",
            "a green torus",
            "a yellow cone with a purple front",
            "a blue and white striped sphere",
            "a green cylinder on top of a white cube",
            "a red cube next to a blue sphere",
        ),
        priors={"toybox": ("prior",), "toybox-mini": ("mini-prior",)},
        rewards={"toybox": "reward", "toybox-mini": "mini-reward", "toybox-judge": "judge"},
        home=toybox,
    ),
    World(
        name="shelf",
        parse=shelf_grammar.parse,
        summary=_shelf_summary,
        lines=_shelf_lines,
        examples=(
            "a taxi",
            "a mushroom",
            "a red couch",
            "a pumpkin on top of a barrel",
            "a frog next to a mushroom",
            "a castle",
        ),
        priors={"shelf": ("autoencoder", "prior")},
        rewards={"shelf": "reward", "shelf-judge": "judge"},
        home=shelf,
    ),
)


def elsewhere(world: World, prompt: str) -> str:
    """What to do about a prompt that a world does not know: the other one's prior, where that knows it."""
    other = next((other for other in WORLDS if other is not world and reads(other, prompt)), None)
    if other is None:
        return world.summary()
    return f"The {other.name} knows it: --prior {next(iter(other.priors))}"


def reads(world: World, prompt: str) -> bool:
    """Whether a world knows a prompt as it stands."""
    try:
        return world.parse(prompt) is not None
    except VocabularyError:
        return False


def of_prior(name: str) -> World | None:
    """The world of a prior, where it is an embedded one."""
    return next((world for world in WORLDS if name in world.priors), None)


def concerned(config: Method) -> list[World]:
    """The worlds whose prior or rewards a run uses: their languages bound its prompts."""
    rewards = {*config.rewards(), *config.holdout_reward}
    return [world for world in WORLDS if config.prior in world.priors or rewards & {*world.rewards}]


def missing_weights(name: str, folder: Path) -> list[Path]:
    """The files that an embedded model needs and that are not there."""
    return [path for ext in ("safetensors", "json") if not (path := folder / f"{name}.{ext}").is_file()]


def lacks(prior: str) -> bool:
    """Whether some of an embedded prior's packaged weights are not there."""
    world = of_prior(prior)
    assert world is not None, prior
    return any(missing_weights(name, world.folder) for name in world.priors[prior])


def lacks_reward(reward: str) -> bool:
    """Whether the packaged weights of an embedded reward are not there."""
    found = next(((world, world.rewards[reward]) for world in WORLDS if reward in world.rewards), None)
    return found is None or bool(missing_weights(found[1], found[0].folder))
