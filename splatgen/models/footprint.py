"""How much of a GPU's memory a step takes, before there is one. Imports no torch.

The numbers are estimates by benchmarks/memory_estimate.py, of live tensors at full size with HPSv2 as reward;
CUDA itself, the splats and fragmentation come on top, some 0.5 to 1 GiB.
"""

from __future__ import annotations

from collections.abc import Mapping

from splatgen.config import Config, ImageConfig, Method

BUDGETS = ("none", "24gb", "16gb", "12gb", "8gb")
VIEWS = {"sd15": 4, "sdxl": 1, "mvdream": 4}  # a step's, of 512, 1024 and 256 pixels
NETWORKS = {"sd15": 1.76, "sdxl": 5.10, "mvdream": 1.77}  # GiB without a reward, all on the GPU
REWARD = 1.18  # GiB of HPSv2
ALIKE = {"sd21": "sd15"}  # the same networks but for the text

Row = tuple[float, ...]  # GiB at most, in the order of BUDGETS
PEAKS: Mapping[str, Mapping[str, Row]] = {
    "sd15": {
        "sds": (8.2, 8.2, 2.9, 2.9, 2.4),
        "weighted": (14.9, 11.9, 4.5, 4.1, 3.5),
        "psd": (23.6, 14.6, 6.6, 4.1, 3.9),
        "ascent": (10.4, 9.6, 4.5, 4.1, 3.5),
        "vsd": (11.7, 9.7, 2.9, 2.9, 2.4),
        "vsd+psd": (23.6, 14.6, 6.6, 4.1, 3.9),
    },
    "sdxl": {
        "sds": (17.2, 9.6, 9.6, 7.2, 5.1),
        "weighted": (30.1, 13.2, 8.1, 8.0, 5.4),
        "psd": (45.8, 14.4, 9.6, 8.0, 5.4),
        "ascent": (21.1, 10.8, 8.1, 6.5, 5.1),
        "vsd": (24.4, 9.7, 9.7, 7.3, 5.5),
        "vsd+psd": (45.9, 14.5, 9.7, 8.0, 5.5),
    },
    "mvdream": {
        "sds": (3.4, 3.4, 2.1, 2.1, 1.9),
        "weighted": (5.9, 5.2, 3.3, 3.2, 3.1),
        "psd": (8.7, 7.3, 3.9, 3.9, 3.9),
        "ascent": (5.2, 5.2, 3.8, 3.8, 3.8),
        "vsd": (4.3, 4.3, 2.1, 2.1, 2.0),
        "vsd+psd": (8.7, 7.3, 3.9, 3.9, 3.9),
    },
}


def method_of(config: Method) -> str:
    """The row of a run: scores but vsd need what sds does, dpo no more than weighted."""
    preference = {"none": "sds", "dpo": "weighted"}.get(config.preference, config.preference)
    if config.score != "vsd":
        return preference
    return "vsd+psd" if preference == "psd" else "vsd"


def views_of(config: Method) -> int:
    """Images that a step is about."""
    if isinstance(config, Config):
        return config.views.count
    return config.image.count if isinstance(config, ImageConfig) else 1


def footprint(config: Method) -> float | None:
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
    return held + (most - held) * views_of(config) / VIEWS[name]


def table() -> str:
    """The most that any method takes, by budget and prior, in a line."""
    names = [budget for budget in reversed(BUDGETS) if budget != "none"]
    parts = []
    for prior, rows in PEAKS.items():
        most = (max(row[BUDGETS.index(budget)] for row in rows.values()) for budget in names)
        parts.append(f"{prior} {' / '.join(f'{value:.1f}' for value in most)}")
    return f"a step takes at most, under {' / '.join(names)}: {', '.join(parts)} GiB (estimated)"
