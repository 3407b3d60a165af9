"""How long a published prior takes on a machine without a GPU, at least: said before anything is fetched.

Multiplications of the networks, by the rate at which this machine multiplies large matrices. Convolutions are
slower than that, and rendering, rewards and look-ahead come on top.
"""

from __future__ import annotations

import time

from splatgen.config import Config, Method
from splatgen.config.schema import ImageConfig
from splatgen.priors import PRIORS

# 10^12 operations of the denoiser for one image (mvdream: for four views), and of encoding one to latents, at
# the resolution that the prior was trained on. Counted by torch's FlopCounterMode on diffusers' classes with
# the published configurations; deepfloyd's and what sd35 has more than sd3 are estimates.
TERAFLOPS = {
    "sd15": (0.80, 1.12),
    "sd21": (0.80, 1.12),
    "sdxl": (6.76, 4.88),
    "sd3": (8.90, 4.88),
    "sd35": (9.5, 4.88),
    "deepfloyd": (2.0, 0.0),
    "mvdream": (0.72, 4 * 0.27),
}
SIDE, TRIES = 512, 40  # of the matrices that are multiplied to measure the rate; the best time counts
USUAL_STEPS, USUAL_VIEWS = 600, 4  # of --preset sd15-fast


def teraflops(config: Method) -> float:
    """10^12 operations of the networks of a run's prior, at least; 0 where they are not known."""
    if config.prior not in TERAFLOPS:
        return 0.0
    denoise, encode = TERAFLOPS[config.prior]
    views = config.views.count if isinstance(config, Config) else 1
    if isinstance(config, ImageConfig) and config.image.space == "latents":
        encode = 0.0
    noises = {"weighted": config.weighted.candidates, "dpo": 2, "psd": 2}.get(config.preference, 1)
    items = views / PRIORS[config.prior].views
    return config.steps * items * (2 * noises * denoise + 3 * encode)  # guided; and back through the encoder


def rate() -> float:
    """10^12 operations a second of this machine, multiplying matrices for some hundredths of a second."""
    import numpy as np

    a = np.ones((SIDE, SIDE), np.float32)
    best = float("inf")
    for _ in range(TRIES):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2.0 * SIDE**3 / best / 1e12


def without_gpu(config: Method) -> str:
    """What a run of a published prior takes on this machine's CPU, in words; empty for an embedded one."""
    work = teraflops(config)
    if not work:
        return ""
    return f"without a GPU, as here, {config.steps:,} steps of {config.prior} take {at_least(work / rate())}"


def at_least(seconds: float) -> str:
    """A duration of which only the size is known."""
    for length, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2.0 * length:
            return f"{seconds / length:,.0f} {unit} at least"
    return "some minutes at least"
