"""Settings that change while a run goes on, written down so that the run can be repeated.

steering.jsonl in the run folder has a line a change, as {"step": 120, "setting": "lr.factor", "value": 0.5},
in force from the start of that step on. A run that is resumed, or made again with this file, takes the same
changes at the same steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from splatgen.runs import atomic

FILE = "steering.jsonl"
MOST_BYTES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class SettingChange:
    """A setting from a step on."""

    step: int
    setting: str  # guidance.scale, lr.factor or reward.NAME
    value: float


def read(path: Path) -> list[SettingChange]:
    """The changes in a file, in its order; none without a file. Raises ValueError for other content."""
    if not path.is_file():
        return []
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES:,} bytes: give a run's {FILE}")
    changes = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            match json.loads(line):
                case {"step": int(step), "setting": str(setting), "value": int(value) | float(value)}:
                    changes.append(SettingChange(step=step, setting=setting, value=float(value)))
                    continue
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not JSON: give a run's {FILE}") from error
        raise ValueError(f"{path} line {number} has no step, setting and value: give a run's {FILE}")
    bad = next((c for c in changes if c.step < 0 or not math.isfinite(c.value)), None)
    if bad is not None:
        raise ValueError(f"{path} has {bad.setting} = {bad.value} at step {bad.step}: give finite numbers")
    return changes


def write(path: Path, changes: Sequence[SettingChange]) -> None:
    """Replace the file, atomically."""
    text = "".join(json.dumps(asdict(change)) + "\n" for change in changes)
    atomic.write_text(path, text)
