"""What the denoiser is told of each view: the prompt as it looks from there, and what to keep away from.

Shapes: B views, A prompts to keep away from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splatgen.config import BridgeOptions, GuidanceOptions
from splatgen.priors import Conditioning, Prior
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload
from splatgen.scene.view_prompts import OVERHEAD, VIEW_WORDS, view_prompts, view_word

Decay = tuple[float, float, float]

# Perp-Neg (Armandpour et al. 2023): f(r) = a exp(-b r) + c, with the constants of its DreamFusion code.
SIDE_BACK: Decay = (1.0, 0.5, -0.606)
FRONT_SIDE_BACK: Decay = (1.0, 0.5, 0.967)
FRONT_SIDE: Decay = (4.0, 0.5, -2.426)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """One row a view in every tensor."""

    positive: Conditioning
    negative: Conditioning
    null: Conditioning | None = None  # the empty prompt, which the negative need not be
    away: tuple[Conditioning, ...] = ()  # Perp-Neg's
    away_weights: Tensor | None = None  # [A, B], not above 0

    def take(self, rows: Tensor) -> Conditions:
        """The conditions of some views [R], which may repeat."""
        rows = upload(rows, device_of(self.positive))
        return Conditions(
            positive=take(self.positive, rows),
            negative=take(self.negative, rows),
            null=None if self.null is None else take(self.null, rows),
            away=tuple(take(c, rows) for c in self.away),
            away_weights=None if self.away_weights is None else self.away_weights[:, rows],
        )

    @property
    def unprompted(self) -> Conditions:
        """With the empty prompt in the negative's place, for unconditional predictions."""
        return self if self.null is None else replace(self, negative=self.null)

    def repeated(self, count: int) -> Conditions:
        """All views, `count` times over."""
        return Conditions(
            positive=tile(self.positive, count),
            negative=tile(self.negative, count),
            null=None if self.null is None else tile(self.null, count),
            away=tuple(tile(c, count) for c in self.away),
            away_weights=None if self.away_weights is None else self.away_weights.repeat(1, count),
        )


def device_of(condition: Conditioning) -> torch.device:
    """Where it is: one device for all of its tensors."""
    return next(iter(condition.values())).device


def take(condition: Conditioning, rows: Tensor) -> Conditioning:
    """Rows [R] of every tensor."""
    rows = upload(rows, device_of(condition))
    return {name: value[rows] for name, value in condition.items()}


def tile(condition: Conditioning, count: int) -> Conditioning:
    """All rows, `count` times over."""
    return {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in condition.items()}


def repeat(condition: Conditioning, count: int) -> Conditioning:
    """A single row, `count` times."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in condition.items()}


def mix(a: Conditioning, b: Conditioning, share: Tensor) -> Conditioning:
    """share [B] of a and the rest of b; what is not a floating-point tensor is a's."""
    mixed, share = {}, upload(share, device_of(a))
    for name, value in a.items():
        part = share.view(-1, *[1] * (value.dim() - 1))
        mixed[name] = torch.lerp(b[name], value, part.to(value)) if value.is_floating_point() else value
    return mixed


def decay(constants: Decay, r: float) -> float:
    a, b, c = constants
    return a * math.exp(-b * r) + c


@dataclass(frozen=True, kw_only=True)
class Blend:
    """A view between two of VIEW_WORDS, and the views to keep away from."""

    words: tuple[str, str]
    share: float  # of the first word
    away: tuple[str, str]
    weights: tuple[float, float]  # not above 0


def blend(azimuth: float, elevation: float, overhead: float = OVERHEAD) -> Blend:
    """The prompt by angle: front to side to back, linear in the azimuth; views from overhead are whole."""
    if elevation > overhead:
        return Blend(
            words=("overhead", "overhead"), share=1.0, away=("overhead", "overhead"), weights=(0.0, 0.0)
        )
    turn = abs((azimuth + 180.0) % 360.0 - 180.0)
    if turn < 90.0:
        r = 1.0 - turn / 90.0  # 1 in front, 0 at the side
        weights = -decay(FRONT_SIDE, r), -decay(FRONT_SIDE, 1.0 - r)
        words, away = ("front", "side"), ("front", "side")
    else:
        r = 2.0 - turn / 90.0  # 1 at the side, 0 behind
        weights = -decay(SIDE_BACK, r), -decay(FRONT_SIDE_BACK, r)
        words, away = ("side", "back"), ("side", "front")
    first, second = (min(w, 0.0) for w in weights)
    return Blend(words=words, share=r, away=away, weights=(first, second))


@dataclass(frozen=True, kw_only=True)
class PromptEmbedding:
    """A prompt, embedded once."""

    views: Conditioning  # one row for each of VIEW_WORDS, in their order
    plain: Conditioning  # one row, without a view


def embed_prompt(prior: Prior, prompt: str) -> PromptEmbedding:
    """Embed a prompt; raises ValueError for what the prior cannot read."""
    return PromptEmbedding(views=prior.embed(view_prompts(prompt)), plain=prior.embed([prompt]))


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """A prompt with words for quality, and with words for flaws."""

    better: PromptEmbedding
    worse: PromptEmbedding | None  # None where the negative stands in


def embed_pair(prior: Prior, prompt: str, options: BridgeOptions) -> PromptPair:
    """Embed both; raises ValueError for what the prior cannot read."""
    better, worse = (f"{prompt}, {words}" if words else "" for words in (options.quality, options.flaws))
    return PromptPair(
        better=embed_prompt(prior, better or prompt), worse=embed_prompt(prior, worse) if worse else None
    )


def conditions(
    prompt: PromptEmbedding,
    negative: Conditioning,
    cameras: Cameras,
    options: GuidanceOptions,
    null: Conditioning | None = None,
) -> Conditions:
    """Rows for each camera, out of an embedded prompt and single rows of the negative and of the empty one.

    Every tensor has its views in the order of the cameras, so batches of any size are aligned. (threestudio
    lays out images batch-major and negatives item-major, which is right for one image only: issue 456.)
    """
    angles = list(zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True))
    behind = repeat(negative, len(angles))
    empty = None if null is None else repeat(null, len(angles))
    if options.view_prompts == "none":
        return Conditions(positive=repeat(prompt.plain, len(angles)), negative=behind, null=empty)
    if options.view_prompts == "words":
        words = [view_word(a, e, options.view_limits) for a, e in angles]
        return Conditions(positive=_pick(prompt.views, words), negative=behind, null=empty)
    blends = [blend(a, e, options.view_limits[1]) for a, e in angles]
    first, second = (_pick(prompt.views, [b.words[n] for b in blends]) for n in range(2))
    positive = mix(first, second, torch.tensor([b.share for b in blends]))
    if not options.perp_neg:
        return Conditions(positive=positive, negative=behind, null=empty)
    return Conditions(
        positive=positive,
        negative=behind,
        null=empty,
        away=tuple(_pick(prompt.views, [b.away[n] for b in blends]) for n in range(2)),
        away_weights=upload(
            torch.tensor([b.weights for b in blends]).T.contiguous(), device_of(prompt.plain)
        ),
    )


def pair_conditions(
    pair: PromptPair,
    negative: Conditioning,
    cameras: Cameras,
    options: GuidanceOptions,
    null: Conditioning | None,
) -> Conditions:
    """Rows for each camera with the pair as prompt and negative."""
    better = conditions(pair.better, negative, cameras, options, null)
    if pair.worse is None:
        return better
    return replace(better, negative=conditions(pair.worse, negative, cameras, options).positive)


def _pick(views: Conditioning, words: list[str]) -> Conditioning:
    return take(views, torch.tensor([VIEW_WORDS.index(word) for word in words]))
