"""Which settings can be used together, and what to say when they cannot. No torch here."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass

from splatgen.config import (
    Config,
    ConfigError,
    DensifyOptions,
    GuidanceOptions,
    ImageConfig,
    ImageOptions,
    LearningOptions,
    Method,
    OutputOptions,
    SplatOptions,
    ViewOptions,
    WeightedOptions,
)
from splatgen.config.schema import PREFERENCES, RANKING, SCORES
from splatgen.config.stages import stages


def _check(condition: bool, name: str, value: object, advice: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}: {advice}")


def _check_range(pair: tuple[float, ...], name: str, low: float, high: float) -> None:
    ok = all(math.isfinite(v) and low <= v <= high for v in pair) and list(pair) == sorted(pair)
    _check(ok, name, pair, f"give two numbers from {low:g} to {high:g}, the smaller first")


def _check_finite(config: Method) -> None:
    for prefix, group in (("", config), *((f"{f.name}.", getattr(config, f.name)) for f in fields(config))):
        if is_dataclass(group):
            for f in fields(group):
                value = getattr(group, f.name)
                numbers = value if isinstance(value, tuple) else (value,)
                bad = any(isinstance(v, float) and not math.isfinite(v) for v in numbers)
                _check(not bad, f"{prefix}{f.name}", value, "give a finite number")


def _check_guidance(g: GuidanceOptions) -> None:
    _check(g.scale >= 0, "guidance.scale", g.scale, "give 0 or more")
    _check(0 <= g.rescale <= 1, "guidance.rescale", g.rescale, "give 0 to 1")
    _check(g.batch >= 0, "guidance.batch", g.batch, "give 0 or more")
    blend = g.view_prompts == "blend" or not g.perp_neg
    _check(blend, "guidance.perp_neg", g.perp_neg, "it takes --guidance.view-prompts blend")
    front, overhead = g.view_limits
    angles = 0 < front <= 90 and 0 < overhead <= 90
    _check(angles, "guidance.view_limits", g.view_limits, "give two angles of more than 0 up to 90 degrees")
    _check(0 < g.t_min < min(g.t_max), "guidance.t_min", g.t_min, "give more than 0 and less than t_max")
    start = g.t_min_start
    ordered = start is None or g.t_min <= start <= g.t_max[0]
    _check(ordered, "guidance.t_min_start", start, "give t_min up to the first t_max")
    _check(max(g.t_max) < 1, "guidance.t_max", g.t_max, "give less than 1")
    for name in ("anneal", "scale_over", "clip_over"):
        _check_range(getattr(g, name), f"guidance.{name}", 0, 1)
    _check(g.scale_end is None or g.scale_end >= 0, "guidance.scale_end", g.scale_end, "give 0 or more")
    _check(min(g.clip) >= 0, "guidance.clip", g.clip, "give 0 or more")
    _check(g.noise_cell > 0, "guidance.noise_cell", g.noise_cell, "give more than 0")
    _check(0 <= g.noise_renewals <= 1e6, "guidance.noise_renewals", g.noise_renewals, "give 0 or more")
    _check(0 < g.shift <= 100, "guidance.shift", g.shift, "give more than 0, up to 100")


def guides(g: GuidanceOptions) -> bool:
    """Whether guidance adds something, at some time of the run."""
    return g.scale not in (0.0, 1.0) or g.scale_end not in (None, 0.0, 1.0) or any(g.null_scale)


def _check_unused(config: Method) -> None:
    """An option of a piece that isn't selected does nothing: say so."""
    for names, chosen, slot in (
        (SCORES, config.score, "score"),
        (PREFERENCES, config.preference, "preference"),
    ):
        for name in names:
            group = getattr(config, name)
            usual = type(group)()
            changed = [f.name for f in fields(group) if getattr(group, f.name) != getattr(usual, f.name)]
            if name != chosen and changed:
                option = f"{name}.{changed[0]}"
                value = getattr(group, changed[0])
                _check(False, option, value, f"it acts with --{slot} {name} only, and {slot} is {chosen}")


def _check_scores(config: Method) -> None:
    s, v, i = config.sdi, config.vsd, config.ism
    if config.score == "csd":
        advice = "csd is what guidance adds: give more than 1"
        _check(guides(config.guidance), "guidance.scale", config.guidance.scale, advice)
    _check(1 <= s.steps <= 1000, "sdi.steps", s.steps, "give 1 to 1000")
    _check(0 <= s.tau <= 0.5, "sdi.tau", s.tau, "give 0 to 0.5")
    _check(s.entropy >= 0, "sdi.entropy", s.entropy, "give 0 or more")
    _check(1 <= v.rank <= 1024, "vsd.rank", v.rank, "give 1 to 1024")
    _check(
        v.lr >= 0 and v.weight_decay >= 0,
        "vsd.lr, vsd.weight_decay",
        (v.lr, v.weight_decay),
        "give 0 or more",
    )
    betas = all(0 <= beta < 1 for beta in v.betas)
    _check(betas and v.eps > 0, "vsd.betas, vsd.eps", (v.betas, v.eps), "give 0 to less than 1, more than 0")
    _check(0 <= v.camera_dropout <= 1, "vsd.camera_dropout", v.camera_dropout, "give 0 to 1")
    _check(1 <= s.reverse <= 1000, "sdi.reverse", s.reverse, "give 1 to 1000")
    for name, interval in (("interval", i.interval), ("interval_start", i.interval_start)):
        fits = interval is None or 0 < interval < 1
        _check(fits, f"ism.{name}", interval, "give more than 0 and less than 1")
    _check(0 < i.step <= 1, "ism.step", i.step, "give more than 0 up to 1")
    shares = (i.warmup, i.start, config.nfsd.limit, config.bridge.start)
    _check(
        all(0 <= z <= 1 for z in shares),
        "ism.warmup, ism.start, nfsd.limit, bridge.start",
        shares,
        "give 0 to 1",
    )
    _check(i.offset >= 0, "ism.offset", i.offset, "give 0 or more")
    _check_refine(config)
    if config.preference in RANKING:
        alike = "without it the candidates are the same and there is nothing to rank: give more than 0"
        _check(config.score != "sdi" or s.entropy > 0, "sdi.entropy", s.entropy, alike)
        _check(config.score != "ism" or i.start > 0, "ism.start", i.start, alike)


def _check_refine(config: Method) -> None:
    r = config.refine
    _check(0 < r.time < 1, "refine.time", r.time, "give more than 0 and less than 1")
    _check(1 <= r.steps <= 1000, "refine.steps", r.steps, "give 1 to 1000")
    _check(1 <= r.views <= 1000, "refine.views", r.views, "give 1 to 1000")
    _check(1 <= r.rounds <= 1000, "refine.rounds", r.rounds, "give 1 to 1000")
    _check(0 <= r.ssim <= 1, "refine.ssim", r.ssim, "give 0 to 1")
    if config.score == "refine":
        alone = "refine fits pictures, and no preference ranks those: leave it out"
        _check(config.preference == "none", "preference", config.preference, alone)


def _check_weighted(w: WeightedOptions) -> None:
    _check(1 <= w.candidates <= 1024, "weighted.candidates", w.candidates, "give 1 to 1024")
    _check(1 <= w.lookahead <= 1000, "weighted.lookahead", w.lookahead, "give 1 to 1000")
    _check(w.scale is None or w.scale >= 0, "weighted.scale", w.scale, "give 0 or more")
    _check(w.temperature > 0, "weighted.temperature", w.temperature, "give more than 0")
    _check_range((w.start, w.stop), "weighted.start, weighted.stop", 0, 1)
    _check(
        w.top >= 1 and w.bottom >= 0,
        "weighted.top, weighted.bottom",
        (w.top, w.bottom),
        "give 1 and 0 or more",
    )
    weights = (w.top_weight, w.bottom_weight)
    _check(min(weights) >= 0, "weighted.top_weight, weighted.bottom_weight", weights, "give 0 or more")
    alone = w.candidates == 1  # the plain score
    if w.strategy == "min-max" and not alone and w.top + w.bottom > w.candidates:
        advice = (
            f"min-max takes the {w.top} best and the {w.bottom} worst of them: give at least "
            f"{w.top + w.bottom}, or fewer with --weighted.top and --weighted.bottom"
        )
        _check(False, "weighted.candidates", w.candidates, advice)
    if w.strategy == "best" and not alone:
        _check(w.top <= w.candidates, "weighted.top", w.top, f"there are {w.candidates} candidates")


def _check_preferences(config: Method) -> None:
    _check_weighted(config.weighted)
    p, a = config.psd, config.ascent
    _check(config.dpo.gap >= 0, "dpo.gap", config.dpo.gap, "give 0 or more")
    _check(0 <= p.rho <= 1, "psd.rho", p.rho, "give 0 to 1")
    _check(p.temperature > 0, "psd.temperature", p.temperature, "give more than 0")
    _check(p.gap >= 0 and p.lr >= 0, "psd.gap, psd.lr", (p.gap, p.lr), "give 0 or more")
    _check(p.interval >= 1, "psd.interval", p.interval, "give at least 1")
    _check(
        0 <= p.anneal <= 1 and 0 <= p.t_limit <= 1,
        "psd.anneal, psd.t_limit",
        (p.anneal, p.t_limit),
        "give 0 to 1",
    )
    _check(a.weight >= 0, "ascent.weight", a.weight, "give 0 or more")
    shares = (a.start, a.pure, a.straight_through)
    _check(all(0 <= s <= 1 for s in shares), "ascent.start, .pure, .straight_through", shares, "give 0 to 1")
    if config.preference == "psd":
        advice = "psd measures its pair by what guidance adds: give more than 1"
        for name in ("scale", "scale_end"):
            scale = getattr(config.guidance, name)
            _check(scale not in (0.0, 1.0), f"guidance.{name}", scale, advice)
        learns = p.learn and config.score in ("nfsd", "bridge")
        advice = f"{config.score} does not guide away from the negative alone: --psd.no-learn"
        _check(not learns, "psd.learn", p.learn, advice)
    if config.preference != "none":
        _check(
            bool(config.rewards()),
            "reward",
            config.reward,
            f"--preference {config.preference} needs at least one, as in --reward hpsv2",
        )


def _check_rewards(config: Method) -> None:
    for name, weight in config.rewards().items():
        _check(
            math.isfinite(weight) and weight != 0,
            f"reward {name}",
            weight,
            "give a weight that is finite and not 0",
        )
    _check(config.reward_options.batch >= 0, "reward.batch", config.reward_options.batch, "give 0 or more")
    if config.reward_options.units == "candidates" and config.preference not in RANKING:
        _check(
            False,
            "reward.units",
            "candidates",
            "there are candidates with --preference weighted, dpo or psd only",
        )


def _check_models(config: Method) -> None:
    p = config.prior_options
    _check(
        p.revision is None or p.model is not None, "prior.revision", p.revision, "it needs --prior.model ID"
    )
    changed = p.lora_scale == type(p)().lora_scale or p.lora is not None
    _check(changed, "prior.lora_scale", p.lora_scale, "it needs --prior.lora FILE")
    _check(abs(p.lora_scale) <= 100, "prior.lora_scale", p.lora_scale, "give -100 to 100")


def _check_views(v: ViewOptions) -> None:
    _check(1 <= v.count <= 64, "views.count", v.count, "give 1 to 64")
    sizes = len(v.size) > 0 and all(8 <= s <= 2048 for s in v.size)
    _check(sizes, "views.size", v.size, "give sizes from 8 to 2048")
    _check_range(v.elevation, "views.elevation", -90, 90)
    _check_range(v.distance, "views.distance", 0.1, 100)
    _check_range(v.fov, "views.fov", 1, 170)


def _check_splats(s: SplatOptions, d: DensifyOptions) -> None:
    _check(1 <= d.max_splats <= 10_000_000, "densify.max_splats", d.max_splats, "give 1 to 10,000,000")
    _check(1 <= s.count <= d.max_splats, "splats.count", s.count, "give 1 up to densify.max_splats")
    _check(s.radius > 0 and s.scale > 0, "splats.radius and .scale", (s.radius, s.scale), "give more than 0")
    _check(0 < s.opacity < 1, "splats.opacity", s.opacity, "give more than 0 and less than 1")
    _check(s.sh_degree in (0, 1, 2, 3), "splats.sh_degree", s.sh_degree, "give 0 to 3")
    _check_range((d.start, d.stop), "densify.start, densify.stop", 0, 1)
    _check(0 <= d.grow <= 1, "densify.grow", d.grow, "give a share from 0 to 1")
    _check(d.rounds >= 0, "densify.rounds", d.rounds, "give 0 or more")
    _check(0 <= d.prune_opacity < 0.5, "densify.prune_opacity", d.prune_opacity, "give 0 to less than 0.5")
    _check(d.split_scale > 0, "densify.split_scale", d.split_scale, "give more than 0")
    _check(d.prune_scale > 0, "densify.prune_scale", d.prune_scale, "give more than 0")
    _check(
        not d.reset or d.prune_opacity > 0,
        "densify.reset",
        d.reset,
        "opacities are reset to twice densify.prune_opacity: give that more than 0",
    )
    resets = all(0 <= fraction <= 1 for fraction in d.reset)
    _check(resets, "densify.reset", d.reset, "give fractions of the run, 0 to 1")


def _falls(begin: float, end: float, share: float) -> bool:
    return 0 <= begin <= end <= 1 and 0 <= share <= 1


def _check_rates(lr: LearningOptions) -> None:
    for name, rate in asdict(lr).items():
        if name.endswith("_fall"):
            _check(
                rate is None or _falls(*rate), f"lr.{name}", rate, "give two fractions in order, and a share"
            )
        elif name != "betas":
            limit = 1 if name in ("decay_from", "final") else 1000
            _check(0 <= rate <= limit, f"lr.{name}", rate, f"give 0 to {limit}")
    _check(
        all(0 <= beta < 1 for beta in lr.betas), "lr.betas", lr.betas, "give two numbers, 0 to less than 1"
    )


def _check_output(o: OutputOptions) -> None:
    _check(0 <= o.frames <= 2000, "output.frames", o.frames, "give 0 to 2000")
    _check(16 <= o.size <= 2048, "output.size", o.size, "give 16 to 2048")
    _check(o.checkpoint_seconds >= 0, "output.checkpoint_seconds", o.checkpoint_seconds, "give 0 or more")
    _check(o.log_every >= 1, "output.log_every", o.log_every, "give at least 1")
    _check(o.reward_every >= 1, "output.reward_every", o.reward_every, "give at least 1")


def validate_method(config: Method) -> None:
    """Raise ConfigError naming the first setting of what guides that cannot be used."""
    _check_finite(config)
    _check(1 <= config.steps <= 10_000_000, "steps", config.steps, "give at least 1")
    _check(config.patience >= 1, "patience", config.patience, "give at least 1")
    _check(0 <= config.seed < 2**63, "seed", config.seed, "give a number from 0 to 2^63 - 1")
    _check_guidance(config.guidance)
    _check_unused(config)
    _check_scores(config)
    _check_preferences(config)
    _check_rewards(config)
    _check_models(config)


def validate(config: Config) -> Config:
    """Return the config, or raise ConfigError naming the first setting that cannot be used, and its stage."""
    if not config.stages:
        return _validate(config)
    for stage in stages(config):
        try:
            _validate(stage.config)
        except ConfigError as error:
            raise ConfigError(f"{stage.label}: {error}") from error
    return config


def _validate(config: Config) -> Config:
    validate_method(config)
    _check_views(config.views)
    _check_splats(config.splats, config.densify)
    on_gpu = config.device != "cpu" or config.render.backend == "auto"
    _check(on_gpu, "render.backend", config.render.backend, "it is for CUDA: leave it out with --device cpu")
    _check_rates(config.lr)
    r = config.regularise
    for name, value in asdict(r).items():
        _check(value >= 0, f"regularise.{name}", value, "give 0 or more")
    _check(r.max_aspect >= 1, "regularise.max_aspect", r.max_aspect, "give 1 or more")
    _check_output(config.output)
    starts = config.init == Config().init or not config.source
    _check(starts, "init", config.init, "an edit starts from its input: leave it out")
    return config


def validate_image(config: ImageConfig) -> ImageConfig:
    """Return the config, or raise ConfigError naming the first setting that a 2D run cannot use."""
    validate_method(config)
    o, g = config.image, config.guidance
    _check(config.score != "refine", "score", config.score, "refine is for splats: use another")
    _check(g.noise == "fresh", "guidance.noise", g.noise, "a picture has no world around it: leave it out")
    _check(0 < o.lr <= 1000, "image.lr", o.lr, "give more than 0, up to 1000")
    _check(1 <= o.count <= 64, "image.count", o.count, "give 1 to 64")
    _check(o.checkpoint_seconds >= 0, "image.checkpoint_seconds", o.checkpoint_seconds, "give 0 or more")
    _check(o.log_every >= 1, "image.log_every", o.log_every, "give at least 1")
    _check(o.reward_every >= 1, "image.reward_every", o.reward_every, "give at least 1")
    if config.source:
        advice = (
            "an edit subtracts the prediction for the source, in place of what sets vsd, csd and ism apart: "
            "use --score sds or sdi"
        )
        _check(config.score in ("sds", "sdi"), "score", config.score, advice)
        noise = "an edit starts from its picture: leave it out"
        _check(o.start == ImageOptions().start, "image.start", o.start, noise)
    return config
