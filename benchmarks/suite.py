"""The headline comparison: scores x preferences on 100 prompts with truth, overnight on two cores.

    python benchmarks/suite.py --out DIR                 plan, runs, table, report; the same again goes on
    python benchmarks/suite.py --out DIR --prompts 2 --steps 2 --workers 1          a quick look
    python benchmarks/suite.py --out DIR --result benchmarks/results/suite-DATE-cpu.json

It is `splatgen sweep shelf-100` with the settings below, so a kill loses nothing, and `splatgen report`. With
--prior toybox the prompts are captions of the toybox that training never saw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from toybox_quality import held_out_captions

from splatgen import cli
from splatgen.runs.machine import machine_name
from splatgen.sweeps import differences
from splatgen.sweeps.ledger import FILE, read_sweep
from splatgen.sweeps.prompts import included, read_prompts

METHODS = ("sds", "sdi", "vsd", "csd", "ism", "rewardsds", "rewardsdi", "rewardvsd", "dreamdpo", "psd")
PRESETS = {"shelf": "shelf", "toybox": "toybox", "toybox-mini": "toybox"}
CHEAP = ("--output.size", "64", "--output.checkpoint-seconds", "60", "--output.reward-every", "1000")


def prompts(prior: str, count: int | None) -> list[str]:
    """The prompts in an order in which the kinds take turns; the first n of a longer list."""
    if prior != "shelf":
        return list(map(str, held_out_captions(count or 24)))
    found, _ = read_prompts(included()["shelf-100"])
    turns = [found[n * 37 % len(found)] for n in range(len(found))]  # 37 and 100 have no common factor
    return turns[:count]


def words(args: argparse.Namespace) -> list[str]:
    """`splatgen sweep`, from its start or from where it was."""
    workers = ["--workers", str(args.workers)]
    begun = sorted(args.out.glob(f"*-sweep-*/{FILE}"))
    if begun:
        return ["sweep", "--resume", str(begun[-1].parent), *workers]
    file = args.out / "prompts.txt"
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(prompts(args.prior, args.prompts)) + "\n", encoding="utf-8")
    judge = "shelf-judge" if args.prior == "shelf" else "toybox-judge"
    chosen = ["--preset", PRESETS[args.prior], "--prior", args.prior, "--methods", *args.methods]
    more = ["--seeds", str(args.seeds), "--holdout-reward", judge, "--out", str(args.out), *CHEAP, *workers]
    steps = [] if args.steps is None else ["--steps", str(args.steps)]
    return ["sweep", str(file), *chosen, *more, *steps]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the sweep is, or goes on")
    parser.add_argument("--prior", choices=sorted(PRESETS), default="shelf")
    parser.add_argument("--prompts", type=int, help="only so many")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--workers", type=int, default=2, help="runs at once; 1 needs no Ray")
    parser.add_argument("--result", type=Path, help="the table and every row as JSON")
    args = parser.parse_args(argv)
    code = cli.main(words(args))
    if code:
        raise SystemExit(code)
    folder = max(args.out.glob(f"*-sweep-*/{FILE}")).parent
    cli.main(["report", str(folder)])
    if args.result:
        args.result.write_text(json.dumps(result(folder), indent=1) + "\n", encoding="utf-8")


def result(folder: Path) -> dict[str, object]:
    """What is committed of a suite that came to its end."""
    sweep = read_sweep(folder)
    runs = [
        {"prompt": o.prompt, "method": o.method, "seed": o.seed, "status": o.status, **o.numbers}
        for o in sweep.outcomes
    ]
    return {
        "date": datetime.now(UTC).strftime("%Y%m%d"),
        "machine": machine_name(),
        "seconds": round(sweep.seconds),
        "table": differences.markdown(differences.compared(sweep)),
        "rows": runs,
    }


if __name__ == "__main__":
    main()
