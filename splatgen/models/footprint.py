"""How much of a GPU's memory a step takes, before there is one. Imports no torch.

The numbers are estimates by benchmarks/memory_estimate.py, of live tensors at full size with HPSv2 as reward;
CUDA itself, the splats and fragmentation come on top, some 0.5 to 1 GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatgen.config import Config, ImageConfig

BUDGETS = ("none", "24gb", "16gb", "12gb", "8gb")
VIEWS = {"sd15": 4, "sdxl": 1, "mvdream": 4}  # a step's, of 512, 1024 and 256 pixels
NETWORKS = {"sd15": 1.76, "sdxl": 5.10, "mvdream": 1.77}  # GiB without a reward, all on the GPU
REWARD = 1.18  # GiB of HPSv2
ALIKE = {"sd21": "sd15"}  # the same networks but for the text

Row = tuple[float, ...]  # GiB at most, in the order of BUDGETS
PEAKS: Mapping[str, Mapping[str, Row]] = {}


def method_of(config: Config | ImageConfig) -> str:
    """The row of a run: scores but vsd need what sds does, dpo no more than weighted."""
    preference = {"none": "sds", "dpo": "weighted"}.get(config.preference, config.preference)
    if config.score != "vsd":
        return preference
    return "vsd+psd" if preference == "psd" else "vsd"


def footprint(config: Config | ImageConfig, views: int) -> float | None:
    """GiB that a step takes at most, or nearly; None for priors that were not estimated.

    Under a budget it hardly depends on the number of views, which go through in parts.
    """
    name = ALIKE.get(config.prior, config.prior)
    if name not in PEAKS or config.prior_options.model is not None:
        return None
    rows = [PEAKS[name][method_of(config)]]
    if config.score == "vsd" and config.preference in ("weighted", "dpo", "ascent"):
        rows.append(PEAKS[name]["weighted" if config.preference == "dpo" else config.preference])
    most = max(row[BUDGETS.index(config.budget)] for row in rows)
    if config.budget != "none":
        return most
    held = NETWORKS[name] + (REWARD if config.preference != "none" else 0.0)
    return held + (most - held) * views / VIEWS[name]


def table() -> str:
    """The most that any method takes, by budget and prior, in a line."""
    names = [budget for budget in reversed(BUDGETS) if budget != "none"]
    parts = []
    for prior, rows in PEAKS.items():
        most = (max(row[BUDGETS.index(budget)] for row in rows.values()) for budget in names)
        parts.append(f"{prior} {' / '.join(f'{value:.1f}' for value in most)}")
    return f"a step takes at most, under {' / '.join(names)}: {', '.join(parts)} GiB (estimated)"
