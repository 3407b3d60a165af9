"""Which published models are on this machine, and which preset it should use. Loads none; no torch."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from splatgen.models import weights
from splatgen.models.budget import BUDGETS
from splatgen.models.catalogue import PUBLISHED
from splatgen.priors import PRIORS

Kind = Literal["prior", "reward", "decoder", "shapes"]
Here = Literal["here", "missing", "incomplete", "damaged"]

PROMPT = "a corgi wearing a top hat"
TOYBOX_PROMPT = "a red cube on top of a blue sphere"
LITTLE_MEMORY = 2.0  # GiB, below which the toybox's draft is enough
SLACK = 1.2  # GiB that a card has less than its name says
ON_A_GPU = ("psd-mvdream", "mvdream", "rewardsds-sd", "sd21-quality", "sd15-fast")  # presets, best first
FIRST = "sd15"  # what to fetch first: the smallest prior that is free to have


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published model and what of it is here."""

    name: str
    kind: Kind
    state: Here
    gigabytes: float  # on the disk when it is here, else to fetch
    source: str  # repo@revision of each part, or the folder
    folder: str
    problem: str  # the first file that is missing or damaged
    licence: str
    gate: str
    command: str  # that gets it

    @property
    def text(self) -> str:
        if self.state == "here":
            return f"{self.gigabytes:.2f} GB, {self.source}, in {self.folder}"
        gate = f"; accept its licence first, at {self.gate}" if self.gate else ""
        what = {"missing": "not here", "incomplete": f"lacks {self.problem}"}.get(
            self.state, f"{self.problem} is cut short or no weights"
        )
        return f"{what} ({self.gigabytes:g} GB to fetch, {self.licence}){gate}"

    @property
    def advice(self) -> str:
        return f"hf auth login, then {self.command}" if self.gate else self.command


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The preset that fits a machine."""

    preset: str
    why: str
    command: str  # what to type next


def models(folder: str | None = None) -> list[Model]:
    """Every published model, those that guide first. A cache in disorder is a finding, not an error."""
    return [_model(name, folder) for name in sorted(PUBLISHED, key=lambda name: _ORDER[kind(name)])]


_ORDER: Mapping[Kind, int] = {"prior": 0, "reward": 1, "decoder": 2, "shapes": 3}


def kind(name: str) -> Kind:
    """What a published model is for."""
    if name in PRIORS:
        return "prior"
    if name.startswith("tae"):
        return "decoder"
    return "shapes" if name == "shap-e" else "reward"


def _model(name: str, folder: str | None) -> Model:
    published = PUBLISHED[name]
    state: Here = "missing"
    problem, size, source, main = "", published.gigabytes, "", ""
    try:
        here = weights.inventory(name, folder)
        if here is not None:
            source, main = here.found.source, str(here.found.main)
            problem = str(next(iter((*here.lacking, *here.torn)), ""))
            state = "here" if here.whole else "incomplete" if here.lacking else "damaged"
            size = here.gigabytes if here.whole else size
    except (OSError, ImportError) as error:  # a file that can't be read, a broken huggingface_hub
        state, problem = "damaged", str(getattr(error, "filename", None) or error)
    into = f" --weights {shlex.quote(folder)}" if folder else ""
    return Model(
        name=name,
        kind=kind(name),
        state=state,
        gigabytes=size,
        source=source,
        folder=main,
        problem=problem,
        licence=published.licence,
        gate=published.gate,
        command=f"splatgen fetch {name}{into}",
    )


def room(found: Sequence[Model], folder: str | None = None) -> tuple[str, bool]:
    """Free space where models are kept and which of the missing ones do not fit, and whether each does."""
    from huggingface_hub import constants

    into = Path(folder).expanduser() if folder else Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (into.absolute(), *into.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    absent = [model for model in found if model.state != "here"]
    large = [f"{model.name} ({model.gigabytes:g} GB)" for model in absent if model.gigabytes > free]
    total = sum(model.gigabytes for model in absent)
    fits = "for each of the missing ones" if absent else "and nothing is missing"
    if absent and not large and total <= free:
        fits = f"for all that is missing ({total:.1f} GB)"
    words = f"no room for {', '.join(large)}" if large else f"room {fits}"
    return f"{free:.1f} GB free in {into}: {words}", not large


def choose(
    found: Sequence[Model],
    presets: Mapping[str, Mapping[str, Any]],
    *,
    gpu: float | None,
    memory: float | None,
) -> Choice:
    """The preset for a machine, of those there are; gpu and memory in GiB, None where there is none.

    presets are their tables, by name: a preset is for the prior and the rewards that it names.
    """
    if gpu is None:
        return _on_the_cpu(memory)
    here = {model.name for model in found if model.state == "here"}
    ready = [name for name in ON_A_GPU if name in presets and _needs(presets[name]) <= here]
    fitting = [name for name in ready if _gigabytes(presets[name].get("budget", "none")) <= gpu + SLACK]
    if not ready:
        wanted = next(model for model in found if model.name == FIRST)
        why = f"no prior's weights are here for the GPU; {wanted.command} ({wanted.gigabytes:g} GB) gets one"
        return Choice(preset="toybox", why=why, command=wanted.command)
    name = (fitting or ready)[0]
    needs = ", ".join(sorted(_needs(presets[name])))
    budget = budget_for(gpu)
    extra = "" if budget == presets[name].get("budget", "none") else f" --budget {budget}"
    return Choice(
        preset=name,
        why=f"{gpu:.0f} GiB on the GPU, and {needs} is here",
        command=f'splatgen generate "{PROMPT}" --preset {name}{extra}',
    )


def _on_the_cpu(memory: float | None) -> Choice:
    little = memory is not None and memory < LITTLE_MEMORY
    name = "toybox-draft" if little else "toybox"
    why = f"no GPU, and {memory:.1f} GiB of memory" if little else "no GPU: large priors are slow without one"
    extra = f" --preset {name}" if little else ""
    return Choice(preset=name, why=why, command=f'splatgen generate "{TOYBOX_PROMPT}"{extra}')


def _needs(preset: Mapping[str, Any]) -> set[str]:
    rewards = {str(entry).partition("=")[0] for entry in preset.get("reward", ())}
    return {str(preset.get("prior", "toybox")), *rewards} & PUBLISHED.keys()


def budget_for(gpu: float) -> str:
    """The largest memory budget that a GPU of so many GiB has room for, the smallest for a small one."""
    fitting = [name for name in BUDGETS if 0 < _gigabytes(name) <= gpu + SLACK]
    if gpu + SLACK >= 1.5 * max(map(_gigabytes, BUDGETS)):
        return "none"
    return max(fitting, key=_gigabytes) if fitting else min(BUDGETS.keys() - {"none"}, key=_gigabytes)


def _gigabytes(budget: str) -> int:
    return int(budget.removesuffix("gb")) if budget.endswith("gb") else 0
