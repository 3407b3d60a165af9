"""What is known against some settings before they are tried, as docs/alignment.md measured it. No torch."""

from __future__ import annotations

from splatgen.config import Config
from splatgen.config.schema import EMBEDDED

MUCH = 5.0  # of guidance, for the embedded priors

SCORES = {
    "vsd": "VSD at its published rate needs thousands of steps: in 120 it lost 3 dB against SDS",
    "sdi": "SDI lost 0.9 dB against SDS with a prior that is good already, at six times the work",
}
PREFERENCES = {
    "dpo": "DreamDPO takes the reward up and the silhouette down (IoU -0.15 on the weak toybox prior)",
}


def advice(config: Config) -> str:
    """A sentence or two of what to expect; empty where nothing is known against it."""
    told = []
    if config.prior == "shelf":
        told.append("the shelf's prior draws at 64 px: forms and colours are right, small details soft")
    if config.prior in EMBEDDED:
        if config.guidance.scale >= MUCH:
            told.append(f"guidance {config.guidance.scale:g} is too high for {config.prior}: give 1.5 to 3")
        told += [SCORES[config.score]] if config.score in SCORES else []
        told += [PREFERENCES[config.preference]] if config.preference in PREFERENCES else []
    return "; ".join(told)
