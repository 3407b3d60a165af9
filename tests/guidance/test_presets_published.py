"""Every published preset's gradient on fixed tensors against its equation with the published numbers.

The left side is what a preset makes, read from its file. The right side is written down from the papers and
official codes, number by number, with nothing but predictions of the prior. In float64.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from analytic import moment, normal
from analytic_rewards import Given, Linear, Seen, ensemble

from splatgen.config import from_dict, presets, read_preset
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import make_preference
from splatgen.guidance.scores import make_score
from splatgen.runs.rng import rng
from splatgen.scene.cameras import orbit

X = 0.5 * normal("x", 4, 3, 4, 4)
CAMERAS = orbit(torch.tensor([0.0, 40.0, 95.0, 170.0]), torch.tensor([0.0, 56.0, 61.0, 10.0]), size=4)
T = 0.5
ALPHA = SIGMA = math.cos(math.pi / 4)


class Told(Seen):
    """With a copy that begins as the prior."""

    def adapter(self, rank, generator):
        added = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def predict(x_t, t, condition, cameras, told):
            return self.predict(x_t, t, condition, cameras) + added

        return SimpleNamespace(
            parameters=lambda: {"added": added}, predict=predict, enabled=torch.enable_grad
        )


def run(name, reward=None, *, step=0, t=T, prior=None, x=X, cameras=CAMERAS):
    config = from_dict(read_preset(name))
    prior = prior or Told(1)
    at = moment(
        prior,
        x,
        t,
        cameras=cameras,
        options=config.guidance,
        step=step,
        steps=config.steps,
        negative="flaws",
    )
    rewards = None if reward is None else ensemble(reward)
    return gradient(at, make_score(config, prior), make_preference(config), rewards)


def noises(count=1, step=0, x=X):
    """Of the candidates of a step."""
    generator = rng(0, step, "noise")
    return [torch.randn(x.shape, generator=generator).double() for _ in range(count)]


def e(texts, x_t, t=T, prior=None, cameras=CAMERAS):
    """Predictions for a text, one for each view, or an embedding [B, 3]."""
    prior = prior or Told(1)
    times = torch.full((len(x_t),), t, dtype=torch.float64)
    rows = [texts] * len(x_t) if isinstance(texts, str) else texts
    told = rows if isinstance(rows, torch.Tensor) else prior.embed(rows)["colour"]
    return prior.predict(x_t, times, {"colour": told}, cameras)


def noised(n, x=X):
    return ALPHA * x + SIGMA * n


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_sds():
    """DreamGaussian: (1 - abar) (e_n + 100 (e_y - e_n) - n), one prompt for all sides."""
    (n,) = noises()
    y, f = (e(p, noised(n)) for p in ("a", "flaws"))
    close(run("sds").value, SIGMA**2 * (f + 100 * (y - f) - n))


def test_threestudio_3dgs():
    """(1 - abar) (e_y + 100 (e_y - e_n) - n); overhead above 60 degrees, front and back within 45."""
    (n,) = noises()
    words = ["a, front view", "a, front view", "a, overhead view", "a, back view"]
    y, f = (e(p, noised(n)) for p in (words, "flaws"))
    close(run("threestudio-3dgs").value, SIGMA**2 * (y + 100 * (y - f) - n))


class Flow(Told):
    def alpha_sigma(self, t):
        sigma = t.view(-1, 1, 1, 1)
        return 1.0 - sigma, sigma


def test_rfds_sd3():
    """v_n + 100 (v_y - v_n) - (n - x); front and back within 30 degrees."""
    (n,) = noises()
    x_t, prior = 0.7 * X + 0.3 * n, Flow(1)
    words = ["a, front view", "a, side view", "a, overhead view", "a, back view"]
    y, f = ((e(p, x_t, 0.3, prior) - x_t) / 0.7 for p in (words, "flaws"))
    close(run("rfds-sd3", t=0.3, prior=prior).value, f + 100 * (y - f) - (n - X))


def test_vsd():
    """ProlificDreamer: (1 - abar) (e_n + 7.5 (e_y - e_n) - e_lora); the copy is told no view."""
    (n,) = noises()
    words = ["a, front view", "a, side view", "a, overhead view", "a, back view"]
    y, f, copy = (e(p, noised(n)) for p in (words, "flaws", "a"))
    close(run("vsd").value, SIGMA**2 * (f + 7.5 * (y - f) - copy))


def reconstruction(n, prior):
    """MVDream: x - (0.5 f x0 + 0.5 x0), x0 guided by 50, f its spread's ratio over the four views."""
    x_t = noised(n)
    y, f = (e(p, x_t, prior=prior) for p in ("a", "flaws"))
    x0, plain = ((x_t - SIGMA * z) / ALPHA for z in (f + 50 * (y - f), y))
    factor = (plain.std() + 1e-8) / (x0.std() + 1e-8)
    return X - (0.5 * factor * x0 + 0.5 * x0)


def test_mvdream():
    prior = Told(4)
    close(run("mvdream", prior=prior).value, reconstruction(noises()[0], prior))


@pytest.mark.parametrize(("step", "acts"), [(5999, False), (6000, True), (9999, True)])
def test_dreamreward(step, acts):
    """Its code: MVDream's loss and, from step 6,000, 0.6 10^(digits - digits) relu(4 - r)."""
    prior, reward = Told(4), Linear(scale=50.0)
    found = run("dreamreward", reward, step=step, prior=prior)
    G = reconstruction(noises(step=step)[0], prior)
    close(found.value, G)
    assert (found.on_render is not None) == acts
    if acts:
        images = prior.decode(X)
        missing = (4.0 - 50.0 * (images * reward.picture(images)).flatten(1).mean(1)).clamp_min(0.0)
        digits = [len(str(int(z))) for z in (0.5 * G.square().sum() / 4, missing.mean())]
        each = -0.6 * 10.0 ** (digits[0] - digits[1]) * 50.0 * reward.picture(images) / images[0].numel() / 4
        close(found.on_render, (missing > 0).view(-1, 1, 1, 1) * each)


@pytest.mark.parametrize("gap", [0.02, 0.005])
def test_dreamdpo(gap):
    """(1 - abar) ((e - n) of the winner - (e - n) of the loser); the winner alone below a gap of 0.01."""
    prior, pair = Told(4), noises(2)
    found = run("dreamdpo", Given(torch.tensor([[0.3] * 4, [0.3 + gap] * 4])), prior=prior).value
    told = [(e("a", noised(n), prior=prior), e("flaws", noised(n), prior=prior)) for n in pair]
    lose, win = (f + 7.5 * (y - f) - n for (y, f), n in zip(told, pair, strict=True))
    close(found, SIGMA**2 * (win - lose if gap > 0.01 else win))


def test_psd():
    """d_gen + 7.5 d_cls + beta d_pref of the winner, beta = 7.5 |d_cls| / |d_pref| sigmoid(-gap)."""
    prior, pair = Told(4), noises(2)
    found = run("psd", Given(torch.tensor([[0.9] * 4, [0.4] * 4]).double()), prior=prior, step=1).value
    pair = noises(2, step=1)
    told = [(e("a", noised(n), prior=prior), e("flaws", noised(n), prior=prior)) for n in pair]
    win, lose = (y + 7.5 * (y - f) - n for (y, f), n in zip(told, pair, strict=True))
    (y, f), d_pref = told[0], win - lose
    beta = 7.5 * (y - f).norm() / d_pref.norm() / (1 + math.exp(0.5))
    close(found, SIGMA**2 * (y - pair[0] + 7.5 * (y - f) + beta * d_pref), 1e-6)  # float32 sigmoid


@pytest.mark.parametrize("name", ["rewardsds-fast", "rewardsds-paper", "rewardsds-mv", "rewardvsd"])
def test_rewardsds(name):
    """0.9 of the mean of the two best less 0.1 of that of the two worst, after S steps of scoring.

    (1 - abar) and 100 on DreamGaussian; 1 with MVDream, and one order for its four views; for RewardVSD 7.5
    and the copy's prediction.
    """
    count = {"rewardsds-fast": 4, "rewardsds-mv": 7}.get(name, 10)
    views = 4 if name == "rewardsds-mv" else 1
    rewards = torch.rand(count, 4, generator=rng(0, 0, name)).double()
    prior = Told(views)
    found = run(name, Given(rewards), prior=prior).value
    order = rewards.mean(1, keepdim=True).expand(-1, 4) if views == 4 else rewards
    rank = order.argsort(0, descending=True).argsort(0)
    weight = 0.45 * (rank < 2).double() - 0.05 * (rank >= count - 2).double()
    words = ["a, front view", "a, side view", "a, overhead view", "a, back view"]
    expected = torch.zeros_like(X)
    for n, omega in zip(noises(count), weight, strict=True):
        x_t = noised(n)
        y, f = (e(p, x_t, prior=prior) for p in (words if name == "rewardvsd" else "a", "flaws"))
        scale, base = (7.5, e("a", x_t, prior=prior)) if name == "rewardvsd" else (100.0, n)
        expected = expected + omega.view(-1, 1, 1, 1) * (f + scale * (y - f) - base)
    close(found, (1.0 if name == "rewardsds-mv" else SIGMA**2) * expected, 1e-8)


def perp_neg(x_t, t, scale, azimuth, elevation, camera):
    """e_n + w (d + sum_i omega_i (e_i - e_n) at right angles to d), d = e_y - e_n, of one view."""
    colours = {word: Told(1).embed([f"a, {word} view"])["colour"] for word in ("front", "side", "back")}

    def f(a, b, c, r):
        return a * math.exp(-b * r) + c

    if azimuth < 90:
        r = 1 - azimuth / 90
        told, away = (colours["front"], colours["side"]), ("front", "side")
        omega = -f(4, 0.5, -2.426, r), -f(4, 0.5, -2.426, 1 - r)
    else:
        r = 2 - azimuth / 90
        told, away = (colours["side"], colours["back"]), ("side", "front")
        omega = -f(1, 0.5, -0.606, r), -f(1, 0.5, 0.967, r)
    n = e("flaws", x_t, t, cameras=camera)
    d = e(r * told[0] + (1 - r) * told[1], x_t, t, cameras=camera) - n
    whole = d.clone()
    for word, weight in zip(away, omega, strict=True):
        other = e(colours[word], x_t, t, cameras=camera) - n
        whole = whole + min(weight, 0.0) * (other - (other * d).sum() / (d * d).sum() * d)
    return n + scale * whole


def amplitudes(t):
    return math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)


def moved(x, eps, here, there):
    (a, b), (c, d) = amplitudes(here), amplitudes(there)
    return c * (x - b * eps) / a + d * eps


LOW = orbit(torch.tensor([0.0, 40.0, 95.0, 170.0]), torch.tensor([0.0, 5.0, 10.0, 10.0]), size=4)
AZIMUTHS = (0.0, 40.0, 95.0, 170.0)


@pytest.mark.parametrize("t", [0.98, 0.55])
def test_sdi(t):
    """int(10 t) DDIM steps at -7.5 to t + tau, tau of U(0, 1/30), 0.3 sigma of fresh noise; x - x0 at 7.5."""
    found = run("sdi", t=t, cameras=LOW).value
    tau = torch.rand(4, generator=rng(0, 0, "tau")).double() / 30
    (fresh,) = noises()
    alpha, sigma = amplitudes(t)
    for b in range(4):
        view, end, count = LOW[b : b + 1], min(t + float(tau[b]), 0.999), int(10 * t + 1e-6)
        y = X[b : b + 1]
        for k in range(count):
            here, there = end * k / count, end * (k + 1) / count
            y = moved(y, perp_neg(y, here, -7.5, AZIMUTHS[b], 0.0, view), here, there)
        a, s = amplitudes(end)
        kappa = (y - a * X[b : b + 1]) / s + 0.3 * sigma * fresh[b : b + 1]
        x_t = alpha * X[b : b + 1] + sigma * kappa
        x0 = (x_t - sigma * perp_neg(x_t, t, 7.5, AZIMUTHS[b], 0.0, view)) / alpha
        close(found[b : b + 1], X[b : b + 1] - x0, 1e-5)


@pytest.mark.parametrize(("step", "interval"), [(0, 0.1), (1500, 0.08)])
def test_ism(step, interval):
    """LucidDreamer: (e(x_t) - e_0(x_s)) sigma / alpha, its inversion from timestep 1 in steps of 200."""
    found = run("ism", t=T, cameras=LOW, step=step).value
    (n,) = noises(step=step)
    offset = torch.randn(1, 3, 1, 1, generator=rng(0, step, "offset")).double()
    a, s = amplitudes(0.001)
    for b in range(4):
        view, here, end = LOW[b : b + 1], 0.001, T - interval
        y = a * X[b : b + 1] + s * (n[b : b + 1] + 0.1 * offset)
        while here < end - 1e-9:
            there = min(here + 0.2, end)
            y = moved(y, e("", y, here, cameras=view), here, there)
            here = there
        e_s = e("", y, end, cameras=view)
        x_t = moved(y, e_s, end, T)
        e_t = perp_neg(x_t, T, 7.5, AZIMUTHS[b], 0.0, view)
        close(found[b : b + 1], e_t - e_s, 1e-5)  # at t = 0.5 sigma / alpha is 1


OURS = {
    "toybox",
    "toybox-draft",
    "shelf",
    "shelf-draft",
    "sd15-fast",
    "sd21-quality",
    "rewardsds-sd",
    "psd-mvdream",
}
OURS |= {"mvdream-then-sd", "refine"}


def test_every_published_preset_is_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in text for name in set(presets()) - OURS)
