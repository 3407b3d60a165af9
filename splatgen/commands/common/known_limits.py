"""What is known against some settings before they are tried, as docs/alignment.md and docs/sweeps.md
measured it. No torch."""

from __future__ import annotations

from splatgen.config import Config
from splatgen.config.schema import EMBEDDED

MUCH = 5.0  # of guidance, for the embedded priors

TOYBOX = {
    "vsd": "VSD at its published rate needs thousands of steps: in 120 it lost 3 dB against SDS",
    "sdi": "SDI lost 0.9 dB against SDS with a prior that is good already, at six times the work",
    "dpo": "DreamDPO takes the reward up and the silhouette down (IoU -0.15 on the weak toybox prior)",
}
SHELF = {
    "vsd": "VSD at its published rate needs thousands of steps: in 80 it lost 3 dB against SDS",
    "csd": "CSD lost 4 dB against SDS",
    "sdi": "SDI was 0.6 dB nearer to the truth than SDS, at eight times the work",
    "dpo": "DreamDPO lost the object (IoU -0.34)",
    "psd": "PSD lost 0.4 dB against SDS: this prior leaves little for a reward to bind",
}


def advice(config: Config) -> str:
    """A sentence or two of what to expect; empty where nothing is known against it."""
    if config.prior not in EMBEDDED:
        return ""
    told, known = [], SHELF if config.prior == "shelf" else TOYBOX
    if config.prior == "shelf":
        told.append("the shelf's prior draws at 64 px: forms and colours are right, small details soft")
    if config.guidance.scale >= MUCH:
        told.append(f"guidance {config.guidance.scale:g} is too high for {config.prior}: give 1.5 to 3")
    told += [known[name] for name in (config.score, config.preference) if name in known]
    return "; ".join(told)
