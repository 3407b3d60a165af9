"""What a picture through each embedded prior takes of one core, with all that a step does around it.

    python benchmarks/call_seconds.py --out benchmarks/results/call-seconds-DATE-cpu.json

These are the numbers of splatgen/sweeps/estimate.py, by which `splatgen sweep` says how long it will take
before anything has been seen. Each method runs twice with its preset, shortly and longer: the difference
leaves out what begins and ends a run. Seconds are the processor's, of one thread, so that others on the
machine change little.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from splatgen import config as configs
from splatgen.config.methods import slots
from splatgen.loop import object_run
from splatgen.runs.machine import machine_name
from splatgen.sweeps.estimate import model_calls

PRESETS = {"toybox-mini": "toybox", "toybox": "toybox", "shelf": "shelf"}
PROMPTS = {"toybox-mini": "a red cube", "toybox": "a red cube", "shelf": "a taxi"}
METHODS = ("sds", "psd")


def settings(prior: str, method: str, steps: int) -> configs.Config:
    """A preset's, with the prior of a name and no film."""
    given = configs.merge(configs.Config(), {**configs.read_preset(PRESETS[prior]), "stages": []})
    own = {"prior": prior, "prompt": PROMPTS[prior], "steps": steps, "device": "cpu", "output": {"frames": 0}}
    found: configs.Config = configs.merge(given, {**own, **slots(method)})
    return found


def processor_seconds(config: configs.Config) -> float:
    """Of this process, for a whole run."""
    with tempfile.TemporaryDirectory() as out:
        before = resource.getrusage(resource.RUSAGE_SELF)
        object_run.generate(config, out=Path(out), command=["benchmark"])
        after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_a_call(prior: str, method: str, steps: Sequence[int]) -> float:
    """From a run of a few steps and one of more; the first of all is thrown away, as it compiles."""
    few, many = (settings(prior, method, n) for n in steps)
    processor_seconds(dataclasses.replace(few, steps=1))
    seconds = processor_seconds(many) - processor_seconds(few)
    return seconds / (model_calls(many) - model_calls(few))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--priors", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--steps", nargs=2, type=int, default=[5, 35], help="of the two runs")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {"date": datetime.now(UTC).strftime("%Y%m%d"), "machine": machine_name()}
    for prior in args.priors:
        report[prior] = {m: round(1e3 * seconds_a_call(prior, m, args.steps), 2) for m in METHODS}
        print(f"{prior}: {report[prior]} ms a picture", flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
