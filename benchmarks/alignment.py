"""Every method on the toybox, paired, on held-out captions where plain SDS does poorly.

    python benchmarks/alignment.py --out benchmarks/results/alignment-DATE-cpu.json
    python benchmarks/alignment.py --captions 2 --seeds 1 --arms sds dpo     a quick look

All arms see the same cameras, times and noises. Rows go to a .jsonl as they finish; run the command again to
continue. Captions: relations, patterns and fronts that training never saw, others than toybox_quality's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pooled import results

from splatgen.config import from_dict
from splatgen.runs.machine import machine_name
from splatgen.runs.statistics import Difference, holm, paired_difference
from splatgen.worlds.toybox.grammar import Caption, kind, parse
from splatgen.worlds.toybox.sampling import captions_by_kind

KINDS = (
    "beside",
    "pattern",
    "stacked",
    "front",
    "beside",
    "pattern",
    "stacked",
    "beside",
    "pattern",
    "front",
)
STEPS = 120
BASE: dict[str, Any] = {
    "steps": STEPS,
    "reward": ["toybox"],
    "holdout_reward": ["toybox-judge"],
    "output": {"frames": 0, "size": 16, "checkpoint_seconds": 0.0, "log_every": 10, "reward_every": 1000},
}


def weighted(strategy: str, candidates: int, lookahead: int, **more: Any) -> dict[str, Any]:
    """Settings of a weighted arm; all candidates of two are either best or worst."""
    ends = (
        {"top": min(2, candidates // 2), "bottom": min(2, candidates // 2)} if strategy == "min-max" else {}
    )
    ends = {"top": 1} if strategy == "best" else ends
    options = {"strategy": strategy, "candidates": candidates, "lookahead": lookahead, "stop": 1.0, **ends}
    return {"preference": "weighted", "weighted": {**options, **more}}


def arms() -> dict[str, dict[str, Any]]:
    """Settings by name of every method and control."""
    found: dict[str, dict[str, Any]] = {
        "sds": {},
        "sds, 4x steps": {"steps": 4 * STEPS},
        "mean of 4 noises": weighted("softmax", 4, 1, temperature=1e9),
        "sdi": {"score": "sdi"},
        "vsd": {"score": "vsd", "vsd": {"lr": 1e-4}},
        "vsd at 3e-3": {"score": "vsd", "vsd": {"lr": 3e-3}},
    }
    for candidates in (4, 8, 2):
        for lookahead in (1, 4):
            for strategy in ("min-max", "softmax", "best"):
                settings = weighted(strategy, candidates, lookahead)
                if strategy == "softmax":  # cosines differ by hundredths: raw, all weights are alike
                    settings["reward_options"] = {"units": "candidates"}
                found[f"{strategy}, N={candidates}, S={lookahead}"] = settings
    for rho in (1.0, 0.0):
        found[f"psd, rho={rho:.0f}"] = {"preference": "psd", "psd": {"rho": rho, "learn": False}}
        found[f"psd, rho={rho:.0f}, learned"] = {"preference": "psd", "psd": {"rho": rho, "lr": 1e-4}}
    for rate in (1e-3, 1e-2, 1e-1):
        found[f"psd, rho=1, learned at {rate:g}"] = {"preference": "psd", "psd": {"lr": rate}}
    found["dpo"] = {"preference": "dpo"}
    found["dpo, code"] = {"preference": "dpo", "dpo": {"form": "code"}}
    found["ascent"] = {"preference": "ascent"}
    found["ascent from the start"] = {"preference": "ascent", "ascent": {"start": 0.0}}
    found["ascent, last 30% pure"] = {"preference": "ascent", "ascent": {"pure": 0.3}}
    found["sdi, min-max, N=4"] = {"score": "sdi", **weighted("min-max", 4, 1)}
    found["vsd at 3e-3, min-max, N=4"] = {**found["vsd at 3e-3"], **weighted("min-max", 4, 1)}
    return found | further()


def further() -> dict[str, dict[str, Any]]:
    """Arms of scores and options that came later; the toybox reads no words for flaws or quality."""
    branches = {"scale": 1.0, "scale_end": 2.0, "null_scale": [1.0, 0.0], "scale_over": [0.0, 0.5]}
    return {
        "csd": {"score": "csd"},
        "csd, from null to negative": {"score": "csd", "guidance": branches},
        "nfsd": {"score": "nfsd"},
        "bridge": {"score": "bridge"},
        "ism": {"score": "ism"},
        "ism, warm-up": {
            "score": "ism",
            "ism": {"interval_start": 0.1},
            "guidance": {"t_max": [0.98, 0.5], "anneal": [0.0, 0.3]},
        },
        "sdi, 4 reverse steps": {"score": "sdi", "sdi": {"reverse": 4}},
        "scale from 3 to 1": {"guidance": {"scale": 3.0, "scale_end": 1.0}},
        "gradient clipped, 0.5 to 2": {"guidance": {"clip": [0.5, 2.0]}},
        "weighting dmd": {"guidance": {"weighting": "dmd"}},
        "times sqrt": {"guidance": {"times": "sqrt"}},
        "times dreamtime": {"guidance": {"times": "dreamtime"}},
        "times shifted by 3": {"guidance": {"shift": 3.0}},
        "one field of noise": {"guidance": {"noise": "world"}},
        "backgrounds white or black": {"views": {"background": "white-or-black"}},
        "elevations mixed": {"views": {"elevation_law": "mixed"}},
        "betas of torch": {"lr": {"betas": [0.9, 0.999]}},
        "positions fall first": {"lr": {"means_fall": [0.0, 0.6, 0.02]}},
        "total variation": {"regularise": {"tv": 1.0}},
        "depth and normal variation": {"regularise": {"depth_tv": 0.1, "normal_tv": 0.1}},
        "psd, no limit of time": {"preference": "psd", "psd": {"t_limit": 1.0}},
    }


def captions(count: int, salt: str) -> list[Caption]:
    """A fixed choice of unseen captions, kinds in turn; the first n of a longer list."""
    source, pools = random.Random(salt), captions_by_kind(True)
    shuffled = {name: source.sample(pools[name], len(pools[name])) for name in sorted(set(KINDS))}
    return [shuffled[KINDS[n % len(KINDS)]].pop() for n in range(count)]


Task = tuple[str, dict[str, Any], str, int, Path | None]  # arm, settings, caption, seed, where to keep splats


def measure(task: Task) -> dict[str, Any]:
    """One arm, caption and seed in this process."""
    import torch

    from splatgen import formats
    from splatgen.loop import object_run
    from splatgen.models.budget import LoadOptions
    from splatgen.rewards import load_reward
    from splatgen.runs import run_folder
    from splatgen.runs.metrics import read_metrics
    from splatgen.worlds.toybox import evaluation

    torch.set_num_threads(1)
    arm, settings, text, seed, folder = task
    config = from_dict({**BASE, **settings, "prompt": text, "seed": seed})
    cpu = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        made = object_run.generate(config, out=Path(out), command=["benchmarks/alignment.py"])
        cpu = time.process_time() - cpu
        splats = formats.load(made.run.splats_ply)
        rewards = run_folder.read(made.run)["rewards"]
        rows = read_metrics(made.run.metrics)
    if folder:
        name = f"{text}-{seed}-{arm}".replace(" ", "-").replace(",", "").replace("=", "")
        formats.save(splats, folder / f"{name}.ply")
    quality = evaluation.evaluate(splats, parse(text), load_reward("toybox-judge", LoadOptions()))
    calls = [row["guidance/model_calls"] / config.views.count for row in rows]
    return {
        "arm": arm,
        "caption": text,
        "kind": kind(parse(text)),
        "seed": seed,
        "reward": rewards["reward/toybox"],
        "holdout": rewards["holdout/toybox-judge"],
        **quality.row(),
        "calls": round(sum(calls) / len(calls), 2),
        "cpu_seconds": round(cpu, 2),
    }


def tasks(args: argparse.Namespace) -> Iterator[Task]:
    """Captions and seeds outside, arms inside: what is finished is paired."""
    known = arms()
    for n in range(args.captions * args.seeds):
        caption = captions(args.captions, args.salt)[n % args.captions]
        for arm in args.arms or known:
            settings = {"prior": args.prior, "steps": args.steps, **known[arm]}
            yield arm, settings, str(caption), n // args.captions, args.keep


MEASURES = {  # column: (key, digits)
    "reward": ("reward", 3),
    "held-out reward": ("holdout", 3),
    "IoU": ("iou", 3),
    "PSNR dB": ("psnr", 2),
    "colour error": ("color_error", 3),
    "nearest right": ("nearest_right", 2),
    "judged right": ("judged_right", 2),
}


def by_caption(rows: Sequence[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Means over the seeds, by arm and caption: seeds of a caption are no independent samples."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {}).setdefault(row["caption"], []).append(row[key])
    return {arm: {c: sum(v) / len(v) for c, v in captions.items()} for arm, captions in found.items()}


LEVEL = 0.05  # of a wrong star anywhere in a column, and of a wrong pair of stars anywhere in a table


def differences(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Difference]:
    """Every arm's paired difference to SDS over captions, by arm and measure; none where one caption is."""
    found = {}
    for key, _ in MEASURES.values():
        values = by_caption(rows, key)
        for name in values:
            difference = None if name == "sds" else paired_difference(values[name], values["sds"])
            if difference is not None and difference.p is not None:
                found[name, key] = difference
    return found


def stars(found: dict[tuple[str, str], Difference]) -> dict[tuple[str, str], str]:
    """One for a difference that stays after Holm's correction for its column, two for the whole table's."""
    values = {cell: d.p for cell, d in found.items() if d.p is not None}
    whole = holm(values)
    columns: dict[tuple[str, str], float] = {}
    for key in {key for _, key in values}:
        columns |= holm({cell: p for cell, p in values.items() if cell[1] == key})
    return {cell: "*" * ((columns[cell] <= LEVEL) + (whole[cell] <= LEVEL)) for cell in values}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: SDS's means, then every arm's paired difference to it with a 95 % interval over captions.

    Only pairs that every arm has are counted. Intervals are of a cell alone; `stars` count all of them.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    held = [{(r["caption"], r["seed"]) for r in rows if r["arm"] == name} for name in names]
    common = set.intersection(*held)
    rows = [row for row in rows if (row["caption"], row["seed"]) in common]
    captions = len({caption for caption, _ in common})
    found = differences(rows)
    marks = stars(found)
    lines = [
        f"{len(common)} pairs of caption and seed, {captions} captions; intervals over captions, 95 % "
        f"each. Of {len(found)} differences {sum(m != '' for m in marks.values())} stay at 5 % after "
        f"Holm's correction for their column (*), {sum(m == '**' for m in marks.values())} after that "
        f"for the table (**).",
        "",
        f"| arm | {' | '.join(MEASURES)} | calls | CPU s |",
        "|---" * (len(MEASURES) + 3) + "|",
    ]
    values = {
        key: by_caption(rows, key) for key in ("calls", "cpu_seconds", *(k for k, _ in MEASURES.values()))
    }
    for name in sorted(names, key=list(arms()).index):
        cells = [name]
        for key, digits in MEASURES.values():
            difference = found.get((name, key))
            if difference is None or difference.half is None:
                cells.append(f"{statistics.fmean(values[key][name].values()):.{digits}f}")
            else:
                cell = f"{difference.mean:+.{digits}f} ± {difference.half:.{digits}f} {marks[name, key]}"
                cells.append(cell.rstrip())
        cells += [f"{statistics.fmean(values[key][name].values()):.1f}" for key in ("calls", "cpu_seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", choices=["toybox", "toybox-mini"], default="toybox")
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--arms", nargs="*", choices=list(arms()), metavar="NAME", help="some of the arms only"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 works in this one")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--salt", default="alignment", help="another word chooses other captions")
    parser.add_argument("--keep", type=Path, help="keep splats here")
    parser.add_argument("--rows", type=Path, default=Path("alignment.jsonl"), help="finished rows")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    done = {(r["arm"], r["caption"], r["seed"]) for r in rows}
    todo = [t for t in tasks(args) if (t[0], t[2], t[3]) not in done]
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    for row in results(measure, todo, args.workers):
        rows.append(row)
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        figures = f"reward {row['reward']:.3f}, held out {row['holdout']:.3f}, {row['psnr']:.1f} dB"
        print(f"{len(rows)}/{len(done) + len(todo)} {row['arm']} | {row['caption']}: {figures}", flush=True)
    print(table(rows))
    if args.out:
        report = {
            "date": datetime.now(UTC).strftime("%Y%m%d"),
            "machine": machine_name(),
            "prior": args.prior,
        }
        args.out.write_text(
            json.dumps({**report, "base": BASE, "arms": arms(), "table": table(rows), "rows": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
