"""A RewardSDS step against a loop over its candidates: `python benchmarks/reward_step.py`.

Both run on the same small Stable Diffusion (diffusers' and transformers' classes, random weights) and must
find the same G. The loop is the step as the paper's codes run it: one candidate after the other, each
denoised from t down to 0 with guidance as a batch of two, decoded and scored by itself; then the
predictions of the kept ones over again. Ours denoises all candidates of all views in one batch, and keeps
the first predictions.

Steps of the two alternate; the figure is the ratio of their medians, of wall and of CPU seconds. On a shared
machine only the latter with one thread say much: threads that wait for each other spin.

Shapes: B views, K candidates, C x h x w latents.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from splatgen.config import GuidanceOptions, RewardOptions, WeightedOptions
from splatgen.guidance.conditioning import conditions, embed_prompt
from splatgen.guidance.denoiser import Denoiser
from splatgen.guidance.distillation import gradient
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences.weighted import Weighted
from splatgen.guidance.scores import SDS
from splatgen.loop.lifecycle import device_name
from splatgen.models.memory import keep_freed
from splatgen.priors import Prior
from splatgen.priors.stable_diffusion import StableDiffusionPrior
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.machine import machine_name
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

PROMPT = "a small blue boat, a photo"
OPTIONS = WeightedOptions(candidates=8, lookahead=15, strategy="min-max")


def tokenizer() -> CLIPTokenizer:
    """CLIP's own, with bytes for words."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    numbered = {word: n for n, word in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=numbered, merges=[], model_max_length=77)


def text_config(width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def stable_diffusion(
    *,
    channels: Sequence[int] = (64, 128, 128),  # of the UNet; attention at all but the last level
    vae_channels: Sequence[int] = (16, 32, 32, 32),  # each but the first halves the side
    text: tuple[int, int] = (64, 4),  # width, layers
    layers: int = 1,
    latents: int = 16,  # side
    prediction_type: str = "epsilon",
    device: str = "cpu",
) -> StableDiffusionPrior:
    """A small one with random weights, the same at every call."""
    levels, side = len(channels), latents * 2 ** (len(vae_channels) - 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=latents,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=(*["CrossAttnDownBlock2D"] * (levels - 1), "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (levels - 1)),
            cross_attention_dim=text[0],
            attention_head_dim=4,
            norm_num_groups=min(32, channels[0] // 2),
        )
        vae = AutoencoderKL(
            block_out_channels=tuple(vae_channels),
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
            latent_channels=4,
            norm_num_groups=vae_channels[0] // 2,
            sample_size=side,
        )
        text_encoder = CLIPTextModel(text_config(*text))
    return StableDiffusionPrior(
        unet=unet.to(device),
        vae=vae.to(device),
        text_encoder=text_encoder.to(device),
        tokenizer=tokenizer(),
        alphas_cumprod=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ).alphas_cumprod,
        prediction_type=prediction_type,
        name="tiny-sd",
        resolution=side,
    )


class ClipReward:
    """Cosine of picture and prompt under a small CLIP with random weights."""

    name, source = "tiny-clip", "random weights"
    views, mean, spread = 1, 0.0, 1.0

    def __init__(self, device: str = "cpu") -> None:
        vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 64}
        config = CLIPConfig(text_config=text_config(64, 2).to_dict(), vision_config=vision, projection_dim=64)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = CLIPModel(config).eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer()

    def prepare(self, prompts: Sequence[str]) -> None:
        """Every prompt will do."""

    def release(self) -> None:
        """Nothing to free."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        unique = list(dict.fromkeys(prompts))
        side = (self.net.config.vision_config.image_size,) * 2
        small = interpolate(images, size=side, mode="bilinear", antialias=True)
        seen = self.net.get_image_features(pixel_values=4.0 * small - 2.0).pooler_output
        tokens = self.tokenizer(unique, padding="max_length", max_length=77, return_tensors="pt")
        read = self.net.get_text_features(input_ids=tokens.input_ids.to(images.device)).pooler_output
        rows = [unique.index(prompt) for prompt in prompts]
        scores: Tensor = (normalize(seen, dim=-1) * normalize(read, dim=-1)[rows]).sum(-1)
        return scores


def moment_at(prior: StableDiffusionPrior, x: Tensor, t: float, options: GuidanceOptions) -> Moment:
    """A step on latents [B, C, h, w], all views at one time."""
    cameras = turntable(len(x), size=prior.resolution)
    told = conditions(embed_prompt(prior, PROMPT), prior.embed([""]), cameras, options)
    times = torch.full((len(x),), t, dtype=x.dtype)
    return Moment(
        denoiser=Denoiser(prior, options),
        x=x,
        images=prior.decode(x),
        t=times.to(x.device),
        times=times,
        conditions=told,
        plain=lambda: told,
        cameras=cameras,
        prompts=(PROMPT,) * len(x),
        seed=0,
        step=0,
        steps=100,
    )


def batched(moment: Moment, ensemble: RewardEnsemble, o: WeightedOptions = OPTIONS) -> tuple[Tensor, int]:
    """Our step: G [B, C, h, w] and the images through the denoiser."""
    found = gradient(moment, SDS(), Weighted(o), ensemble)
    return found.value, found.model_calls


Guided = Callable[[Tensor, Tensor], Tensor]


def guided_alone(moment: Moment, view: Tensor) -> Guided:
    """Guided predictions for one image of a view [1] at a time: a batch of two."""
    told = moment.conditions.take(view)
    both = {name: torch.cat([told.positive[name], told.negative[name]]) for name in told.positive}
    cameras = moment.cameras[view.repeat(2)]

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        e_y, e_n = moment.prior.predict(torch.cat([x_t, x_t]), t.repeat(2), both, cameras).chunk(2)
        return e_n + moment.scale * (e_y - e_n)

    return guided


def denoised(prior: Prior, guided: Guided, x: Tensor, times: list[Tensor]) -> Tensor:
    """Deterministic DDIM through times (each [1]) and on to 0."""
    for n, here in enumerate(times):
        eps = guided(x, here)
        alpha, sigma = prior.alpha_sigma(here)
        x = (x - sigma * eps) / alpha
        if n + 1 < len(times):
            alpha, sigma = prior.alpha_sigma(times[n + 1])
            x = alpha * x + sigma * eps
    return x


@torch.no_grad()
def literal(moment: Moment, ensemble: RewardEnsemble, o: WeightedOptions = OPTIONS) -> tuple[Tensor, int]:
    """The same G, one candidate of one view after the other."""
    prior, draws = moment.prior, moment.rng("noise")
    noises = [torch.randn(moment.x.shape, generator=draws).to(moment.x) for _ in range(o.candidates)]
    calls, found = 0, []
    for b in range(len(moment.x)):
        view = torch.tensor([b])
        guided, start = guided_alone(moment, view), moment.t[view]
        grid = [start.new_tensor([n / o.lookahead]) for n in range(o.lookahead - 1, 0, -1)]
        times = [start, *(t for t in grid if t < start)]
        alpha, sigma = prior.alpha_sigma(start)
        x_t = [alpha * moment.x[view] + sigma * noise[view] for noise in noises]
        scores = []
        for x in x_t:
            image = prior.decode(denoised(prior, guided, x, times)).clamp(0.0, 1.0)
            scores.append(float(ensemble.each(image, [moment.prompts[b]])))
        order = sorted(range(o.candidates), key=lambda k: -scores[k])
        kept = [(k, o.top_weight / o.top) for k in order[: o.top]]
        kept += [(k, -o.bottom_weight / o.bottom) for k in order[-o.bottom :]]
        residuals = [w * (guided(x_t[k], start) - noises[k][view]) for k, w in kept]
        found.append(torch.stack(residuals).sum(0))
        calls += 2 * (o.candidates * len(times) + len(kept))
    return torch.cat(found), calls


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of the root mean square of b."""
    return float((a - b).abs().max() / b.square().mean().sqrt())


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    begin = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def measure(moment: Moment, ensemble: RewardEnsemble, rounds: int) -> dict[str, float]:
    """Both in turn, the first of a round last in the next."""
    (ours, calls), (loop, loop_calls) = batched(moment, ensemble), literal(moment, ensemble)
    apart = difference(ours, loop)
    if apart > 1e-3:
        raise RuntimeError(f"the two steps differ by {apart:.1e} of G: one of them is wrong")
    times: dict[str, list[tuple[float, float]]] = {"batched": [], "loop": []}
    turns = [("batched", batched), ("loop", literal)]
    for n in range(rounds):
        for name, work in turns[:: 1 if n % 2 else -1]:
            times[name].append(timed(functools.partial(work, moment, ensemble)))
    wall, cpu = ({k: statistics.median(t[n] for t in v) for k, v in times.items()} for n in range(2))
    return {
        "batched_s": round(wall["batched"], 3),
        "loop_s": round(wall["loop"], 3),
        "ratio": round(wall["loop"] / wall["batched"], 2),
        "batched_cpu_s": round(cpu["batched"], 3),
        "loop_cpu_s": round(cpu["loop"], 3),
        "cpu_ratio": round(cpu["loop"] / cpu["batched"], 2),
        "batched_calls": calls,
        "loop_calls": loop_calls,
        "difference": float(f"{apart:.1e}"),
    }


def measure_all(device: str, threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every number of views and every time."""
    torch.set_num_threads(threads)
    prior = stable_diffusion(latents=args.latents, device=device)
    ensemble = RewardEnsemble(rewards=(ClipReward(device),), weights=(1.0,), options=RewardOptions())
    rows = []
    for views, t in itertools.product(args.views, args.times):
        x = torch.randn(views, 4, args.latents, args.latents, generator=rng(0, 0, "x"))
        moment = moment_at(prior, x.to(device), t, GuidanceOptions(scale=7.5))
        found = measure(moment, ensemble, args.rounds)
        rows.append({"device": device_name(device), "threads": threads, "views": views, "t": t, **found})
        print(
            f"{device}, {threads} threads, {views} views, t {t}: loop {found['loop_s']} s, batched "
            f"{found['batched_s']} s, ratio {found['ratio']}; CPU seconds {found['cpu_ratio']}; calls "
            f"{found['loop_calls']}, {found['batched_calls']}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="pairs of steps, after one that warms up")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--times", type=float, nargs="+", default=[0.2, 0.5, 0.98])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--latents", type=int, default=16, help="side")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        keep_freed()  # as the commands do
    torch.backends.cudnn.allow_tf32 = False  # the two must agree
    rows = [row for threads in args.threads for row in measure_all("cpu", threads, args)]
    if torch.cuda.is_available():
        rows += measure_all("cuda", args.threads[-1], args)
    if args.out:
        settings = {"latents": args.latents, "rounds": args.rounds}
        settings["environment"] = {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MALLOC_"))}
        settings |= {"candidates": OPTIONS.candidates, "lookahead": OPTIONS.lookahead}
        settings["load"] = round(os.getloadavg()[2], 1)  # processes that wanted to run, over 15 minutes
        date = datetime.now(UTC).strftime("%Y%m%d")
        report = {"date": date, "machine": machine_name(), **settings, "rows": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
