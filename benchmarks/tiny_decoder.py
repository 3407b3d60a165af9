"""Whether the tiny autoencoder ranks candidates as the full one does: `python benchmarks/tiny_decoder.py`.

    splatgen fetch sd15 taesd hpsv2
    python benchmarks/tiny_decoder.py --weights DIR --out benchmarks/results/tiny-decoder-DATE.json

The prior makes pictures of the prompts; each is noised N times to a time t, as the candidates of a step are,
and the one-step estimates are decoded twice and rewarded. A row for every time has, over all pictures,
Kendall's tau of the two rankings (1 is the same order), how often the winner is the same, how often the two
best and the two worst are, and what the reward loses by the tiny one's winner, in units of the spread of the
candidates' rewards.

Shapes: P pictures, N candidates, C x h x w latents.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from measuring import Card, Processor, environment
from torch import Tensor

from splatgen.config import GuidanceOptions, PriorOptions
from splatgen.guidance.conditioning import conditions, embed_prompt
from splatgen.guidance.denoiser import Denoiser
from splatgen.guidance.inversion import ddim_step, falling
from splatgen.guidance.moment import Moment
from splatgen.models.budget import LoadOptions
from splatgen.models.catalogue import PUBLISHED
from splatgen.models.weights import WeightsError, find
from splatgen.priors import PRIORS, Prior, load_prior
from splatgen.rewards import Reward, load_reward
from splatgen.runs import atomic
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

DECODERS = {"sd15": "taesd", "sd21": "taesd", "mvdream": "taesd", "sdxl": "taesdxl"}
PROMPTS = (
    "a corgi wearing a top hat",
    "a ceramic teapot with blue flowers",
    "an old wooden rowing boat",
    "a plate of pancakes with syrup",
)


def missing(names: Sequence[str], folder: str | None) -> list[str]:
    """What is not here of published models, and how to get it."""
    found = []
    for name in names:
        try:
            find(name, folder)
        except WeightsError as error:
            found.append(str(error))
    return found


def moment_at(prior: Prior, prompt: str, x: Tensor, t: float, options: GuidanceOptions, seed: int) -> Moment:
    """A step on latents [B, C, h, w] seen from as many sides, all at one time."""
    cameras = turntable(len(x), size=prior.resolution)
    told = conditions(embed_prompt(prior, prompt), prior.embed([""]), cameras, options)
    times = torch.full((len(x),), t)
    return Moment(
        denoiser=Denoiser(prior, options),
        x=x,
        images=x,  # nothing reads it here
        t=times.to(x.device),
        times=times,
        conditions=told,
        plain=lambda: told,
        cameras=cameras,
        prompts=(prompt,) * len(x),
        seed=seed,
        step=0,
        steps=1,
    )


@torch.no_grad()
def picture(moment: Moment, steps: int) -> Tensor:
    """What the prior makes of the moment's noise x [B, C, h, w] from its time down, by deterministic DDIM."""
    x = moment.x[None]
    levels = falling(moment.times, steps).to(x.device)
    for here, there in itertools.pairwise(levels):
        x = ddim_step(moment.prior, x, moment.guided(x, t=here).eps, here, there)
    return x[0]


@torch.no_grad()
def both_rewards(moment: Moment, reward: Reward, count: int) -> tuple[Tensor, Tensor]:
    """Rewards [N] of one item's candidates, decoded by the full and by the tiny autoencoder."""
    draws = moment.rng("noise")
    noises = torch.stack([torch.randn(moment.x.shape, generator=draws) for _ in range(count)]).to(moment.x)
    found: list[list[Tensor]] = [[], []]
    for noise in noises:  # one by one: this is to be right, not fast
        x0 = moment.guided(moment.noised(noise[None])).x0[0]
        for rewards, decode in zip(found, (moment.prior.decode, moment.prior.preview), strict=True):
            rewards.append(reward(decode(x0).clamp(0.0, 1.0), moment.prompts).mean())
    full, tiny = (torch.stack(rewards).double().cpu() for rewards in found)
    return full, tiny


def tau(a: Tensor, b: Tensor) -> float:
    """Kendall's tau-b of two rankings [N]; 0 where one of them ranks nothing."""
    first, second = (torch.sign(z[:, None] - z[None]) for z in (a, b))
    length = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / length) if length > 0 else 0.0


def compared(full: Tensor, tiny: Tensor) -> dict[str, float]:
    """One item's rewards [N] by both."""
    orders = [z.argsort(descending=True, stable=True).tolist() for z in (full, tiny)]
    ends = [(set(order[:2]), set(order[-2:])) for order in orders]
    spread = float(full.std())
    return {
        "tau": tau(full, tiny),
        "same_winner": float(orders[0][0] == orders[1][0]),
        "same_ends": float(ends[0] == ends[1]),  # what min-max asks
        "lost": float(full[orders[0][0]] - full[orders[1][0]]) / spread if spread > 0 else 0.0,
    }


def measure(prior: Prior, reward: Reward, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every time."""
    options, side = GuidanceOptions(scale=args.scale), prior.resolution
    with torch.no_grad():
        shape = prior.encode(torch.full((prior.views, 3, side, side), 0.5, device=args.device)).shape
    rows: dict[float, list[dict[str, float]]] = {t: [] for t in args.times}
    for n in range(args.pictures):
        prompt, seed = args.prompts[n % len(args.prompts)], args.seed + n
        noise = torch.randn(shape, generator=rng(seed, 0, "picture")).to(args.device)
        x = picture(moment_at(prior, prompt, noise, 0.999, options, seed), args.steps)
        for t, found in rows.items():
            moment = moment_at(prior, prompt, x, t, options, seed)
            found.append(compared(*both_rewards(moment, reward, args.candidates)))
    return [
        {"t": t, "pictures": len(found), **{k: statistics.mean(row[k] for row in found) for k in found[0]}}
        for t, found in rows.items()
    ]


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="folder of published models; the Hugging Face cache without it")
    parser.add_argument("--prior", choices=DECODERS, default="sd15")
    parser.add_argument("--reward", default="hpsv2")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--times", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--steps", type=int, default=20, help="that a picture takes")
    parser.add_argument("--scale", type=float, default=7.5, help="of the guidance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args(argv)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    names = (args.prior, DECODERS[args.prior], args.reward)
    if lacking := missing([name for name in names if name in PUBLISHED], args.weights):
        print(*lacking, sep="\n", file=sys.stderr)
        return 3
    load_options = LoadOptions(
        device=args.device,
        precision=PRIORS[args.prior].half if args.device == "cuda" else "float32",
        weights=args.weights,
    )
    prior = load_prior(args.prior, PriorOptions(preview="tiny"), load_options)
    reward = load_reward(args.reward, load_options)
    rows = measure(prior, reward, args)
    for row in rows:
        print(", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    if args.out:
        settings = {name: getattr(args, name) for name in ("candidates", "steps", "scale", "seed")}
        device = Card() if args.device == "cuda" else Processor()
        models = {"prior": args.prior, "reward": args.reward, "prompts": list(args.prompts)}
        sources = {"prior_source": prior.source, "reward_source": reward.source}
        date = {"date": datetime.now(UTC).strftime("%Y%m%d")}
        report = {**date, **environment(device), **models, **sources, **settings, "rows": rows}
        atomic.write_json(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
