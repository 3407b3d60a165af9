"""`splatgen fetch`: the weights of priors and rewards that others published."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from splatgen.commands.common import checks, cost
from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.doctor_models import kind
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.config import Config
from splatgen.models import weights
from splatgen.models.catalogue import PUBLISHED, published
from splatgen.priors import PRIORS

if TYPE_CHECKING:
    from splatgen.models.download import DownloadPlan

NOTE = (
    "Files go into the Hugging Face cache, or below --weights. A model whose licence has to be accepted is "
    "given to a login of Hugging Face: `hf auth login`, or HF_TOKEN. Interrupted, the same command goes on."
)


KINDS = {
    "prior": "priors, for --prior:",
    "reward": "rewards, for --reward and --holdout-reward:",
    "decoder": "small decoders, for previews of latents (--prior.preview):",
    "shapes": "first shapes, for --init:",
}


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Get the weights of priors and rewards that others published; without names, list them."""

    names: Annotated[tuple[str, ...], Positional, arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """What to get, as in --prior and --reward: sd15, mvdream, hpsv2, ..."""
    weights: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Put them into DIR/NAME, for --weights DIR, instead of the Hugging Face cache."""
    small: Switch = False
    """Configurations and tokenizers only: what a checkpoint in a single file lacks."""
    no_t5: Switch = False
    """Leave out Stable Diffusion 3's T5 encoder, most of it: for --prior.no-t5."""
    full_precision: Switch = False
    """Weights in full precision where half is there too: twice as large, and no better on a GPU."""
    json: Switch = False
    """Print a JSON object."""
    quiet: Switch = False
    """No progress, only errors."""

    @property
    def without(self) -> tuple[str, ...]:
        """Beginnings of the files that are left out."""
        return ("text_encoder_3/", "tokenizer_3/") if self.no_t5 else ()


def main(argv: Sequence[str]) -> int:
    options = parse(Fetch, "fetch", argv, note=NOTE)
    folder = None if options.weights is None else str(options.weights)
    if not options.names:
        _list(folder, as_json=options.json)
        return 0
    for name in options.names:
        _check_name(name)
    _fetch(options, folder)
    return 0


def _check_name(name: str) -> None:
    """Raise for what can't be fetched: ValueError for an unknown name, Failure for a part of splatgen."""
    from splatgen.rewards import JUDGES

    if any(name in table and table[name].embedded for table in (PRIORS, JUDGES)):
        raise Failure(USAGE, f"{name} is a part of splatgen: there is nothing to fetch")
    published(name)


def _list(folder: str | None, *, as_json: bool) -> None:
    rows = [_row(name, folder) for name in PUBLISHED]
    if as_json:
        print(json.dumps({"models": rows}))
        return
    for name, title in KINDS.items():
        print(title)
        for row in rows:
            if row["kind"] == name:
                gate = ", gated" if row["gate"] else ""
                size = f"{row['gigabytes']:>5.2f} GB"
                print(f"  {row['name']:<16}{size}  {row['state']:<11} {row['licence']}{gate}")
        print()
    print("get one: splatgen fetch NAME; gated: accept its licence on the hub first")


def _row(name: str, folder: str | None) -> dict[str, Any]:
    model, here = PUBLISHED[name], weights.inventory(name, folder)
    state = "missing" if here is None else "here" if here.whole else "incomplete"
    return {
        "name": name,
        "kind": kind(name),
        "gigabytes": model.gigabytes,
        "state": state,
        "licence": model.licence,
        "gate": model.gate,
        "note": model.note,
        "repos": [part.repo for part in model.parts],
    }


def _fetch(options: Fetch, folder: str | None) -> None:
    from splatgen.models import download

    quiet = options.quiet or options.json
    tell: Callable[[str], None] = _nothing if quiet else _say
    plans: list[DownloadPlan] = []
    with _one_line_errors(bars=not quiet):
        for name in dict.fromkeys(options.names):
            if not _is_here(name, folder, options):
                tell(_headline(name))
                slow = checks.takes_long(Config(prior=name, steps=cost.USUAL_STEPS)) if name in PRIORS else ""
                if slow:
                    tell(slow)
                plans.append(
                    download.plan(
                        name,
                        folder,
                        small=options.small,
                        full=options.full_precision,
                        without=options.without,
                    )
                )
        download.check_room(plans, folder)
        for each in plans:
            size = f"{len(each.items)} files, {each.bytes / 1e9:.2f} GB"
            tell(f"{each.name}: {size}, to {download.target(folder)}")
            try:
                download.fetch(each, tell)
            except KeyboardInterrupt as stop:
                stop.add_note(f"what was fetched whole stays: `splatgen fetch {each.name}` goes on")
                raise
    _report(options, folder, {each.name: each for each in plans})


def _is_here(name: str, folder: str | None, options: Fetch) -> bool:
    """Whether nothing is to be asked; full precision is only known by asking."""
    here = weights.inventory(name, folder, small=options.small, without=options.without)
    if here is None or not here.whole or options.full_precision:
        return False
    return folder is None or here.found.main == Path(folder).expanduser() / name  # and not in the cache


def _headline(name: str) -> str:
    model = published(name)
    gate = f", to be accepted at {model.gate}" if model.gate else ""
    note = f" ({model.note})" if model.note else ""
    return f"{name}: {model.gigabytes:g} GB, licence {model.licence}{gate}{note}"


def _report(options: Fetch, folder: str | None, made: dict[str, DownloadPlan]) -> None:
    rows = []
    for name in dict.fromkeys(options.names):
        found = weights.find(name, folder, small=options.small, without=options.without)
        size = made[name].bytes if name in made else 0
        rows.append({"name": name, "fetched_bytes": size, "source": found.source})
        rows[-1]["folders"] = [str(path) for path in found.folders.values()]
        if not options.json:
            print(found.main)
    if options.json:
        print(json.dumps({"models": rows}))


def _nothing(_: str) -> None:
    pass


def _say(text: str) -> None:
    print(f"splatgen: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _one_line_errors(*, bars: bool) -> Iterator[None]:
    """Without the hub library's warnings, which come as errors too; bars shows its progress bars."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    level, shown = get_verbosity(), not are_progress_bars_disabled()
    set_verbosity(logging.ERROR)
    if shown and not bars:
        disable_progress_bars()
    try:
        yield
    finally:
        set_verbosity(level)
        if shown and not bars:
            enable_progress_bars()
