"""What a step takes of a GPU's memory, estimated without one: `python benchmarks/memory_estimate.py --out F`.

The networks are made at full size on the pretended device of tests/pretend, which keeps shapes only, and the
peak is that of live storages: tensors of the networks and of one step, the text encoders gone. No renderer
(splats take little), no CUDA context, no workspaces of kernels, no fragmentation: some 0.5 to 1 GiB more.

Each row says what holds the peak: encode, guidance or backward. A column that is promised has a bound, and
the exit code is 1 where one is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

os.environ["PRETEND_META"] = "1"  # before the pretended device is imported
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

import pretend  # noqa: E402
import random_models  # noqa: E402
import torch  # noqa: E402

from splatgen.config import Config, RewardOptions, from_dict  # noqa: E402
from splatgen.guidance.distillation import gradient  # noqa: E402
from splatgen.loop.encoding import encode, pull_back  # noqa: E402
from splatgen.loop.step import assemble, make_moment  # noqa: E402
from splatgen.models.budget import BUDGETS  # noqa: E402
from splatgen.priors import PRIORS, Prior, load_options_for  # noqa: E402
from splatgen.rewards import Reward  # noqa: E402
from splatgen.rewards.ensemble import RewardEnsemble  # noqa: E402
from splatgen.runs import atomic  # noqa: E402
from splatgen.runs.rng import rng  # noqa: E402
from splatgen.scene.cameras import sample_orbit  # noqa: E402

GIB = 2.0**30
VIEWS = {"sd15": 4, "sdxl": 1, "mvdream": 4}
SCORES = ("sds", "csd", "sdi", "ism", "vsd")
PREFERENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "weighted": {"weighted": {"candidates": 4, "lookahead": 1, "stop": 1.0}},
    "dpo": {},
    "psd": {"psd": {"interval": 1, "t_limit": 1.0}},
    "ascent": {"ascent": {"start": 0.0, "straight_through": 1.0}},
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """GiB of live storages at most, by what went on."""

    prior: str
    views: int
    score: str
    preference: str
    budget: str
    models: float  # before the step
    encode: float
    guidance: float
    backward: float
    bound: float  # 0 where nothing is promised

    @property
    def peak(self) -> float:
        return max(self.encode, self.guidance, self.backward)

    @property
    def kept(self) -> bool:
        return not self.bound or self.peak <= self.bound


def config(prior: str, score: str, preference: str, budget: str, views: int) -> Config:
    """Guided, at times of one half, in the prior's own size."""
    return from_dict(
        {
            "prompt": "a corgi",
            "prior": prior,
            "budget": budget,
            "steps": 1000,
            "score": score,
            "preference": preference,
            "guidance": {"scale": 7.5, "t_min": 0.5, "t_max": [0.5, 0.5], "view_prompts": "none"},
            "views": {"count": views, "size": [random_models.FULL[prior].side]},
            **PREFERENCES[preference],
        }
    )


def estimate(prior: str, score: str, preference: str, budget: str, views: int) -> Estimate:
    """One step of one method, with HPSv2 where a reward is asked."""
    given = config(prior, score, preference, budget, views)
    how = dataclasses.replace(load_options_for(given, "cuda"), text_device="cuda")  # it goes either way
    networks = random_models.networks(prior, random_models.FULL[prior], how)
    rewards: tuple[Reward, ...] = ()
    if preference != "none":
        tower = random_models.image_tower(random_models.HPSV2, how)
        rewards = (random_models.reward(tower, random_models.HPSV2, how),)
    ensemble = RewardEnsemble(rewards=rewards, weights=(1.0,) * len(rewards), options=RewardOptions())
    models = assemble(given, cast("Prior", random_models.prior(networks, how)), ensemble, ())
    models.prior.release()
    for reward in models.rewards:
        reward.release()
    held, peaks = torch.cuda.memory_allocated(), []
    torch.cuda.reset_peak_memory_stats()

    def mark() -> None:
        peaks.append(torch.cuda.max_memory_allocated() / GIB)
        torch.cuda.reset_peak_memory_stats()

    side, group = given.views.size[0], PRIORS[prior].views
    cameras = sample_orbit(rng(0, 0, "cameras"), views=views, size=side, elevation=(0.0, 30.0), group=group)
    images = torch.empty(views, 3, side, side, device="cuda", requires_grad=True)
    x = encode(models.prior, (images,), models.encode)
    mark()
    moment = make_moment(given, models, step=0, x=x, images=images, cameras=cameras, before=None)
    found = gradient(moment, models.score, models.preference, models.ensemble)
    mark()
    pull_back(models.prior, models.encode, x, found.value, (images,), images, found.on_render)
    mark()
    return Estimate(
        prior=prior,
        views=views,
        score=score,
        preference=preference,
        budget=budget,
        models=held / GIB,
        encode=peaks[0],
        guidance=peaks[1],
        backward=peaks[2],
        bound=BUDGETS[budget].most if VIEWS[prior] == views else 0.0,
    )


def cells(priors: Sequence[str], budgets: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Every preference with sds, and every other score with none, psd and weighted."""
    for prior in priors:
        for budget in budgets:
            for score in SCORES:
                for preference in PREFERENCES if score in ("sds", "vsd") else ("none", "psd"):
                    yield prior, score, preference, budget


def measured(prior: str, score: str, preference: str, budget: str, views: int | None = None) -> Estimate:
    """One row in a process where other rows may have been; nothing of them is left."""
    gc.collect()  # networks are full of cycles
    random_models.draw = lambda network: None  # shapes have no values
    return estimate(prior, score, preference, budget, views or VIEWS[prior])


def line(row: Estimate) -> str:
    what = f"{row.prior} x {row.views} {row.score} {row.preference} {row.budget}"
    stages = f"encode {row.encode:.2f}, guidance {row.guidance:.2f}, backward {row.backward:.2f}"
    bound = f" of {row.bound:.1f}{'' if row.kept else ': BROKEN'}" if row.bound else ""
    return f"{what}: {row.peak:.2f} GiB{bound} (models {row.models:.2f}; {stages})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="result JSON")
    parser.add_argument("--priors", nargs="+", choices=VIEWS, default=list(VIEWS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument("--preferences", nargs="+", choices=PREFERENCES, default=list(PREFERENCES))
    args = parser.parse_args(argv)
    pretend.install()
    rows = []
    for cell in cells(args.priors, args.budgets):
        if cell[1] in args.scores and cell[2] in args.preferences:
            begin = time.process_time()
            rows.append(measured(*cell))
            print(f"{line(rows[-1])} [{time.process_time() - begin:.1f} s]", flush=True)
    if args.out:
        report = {"date": datetime.now(UTC).strftime("%Y%m%d"), "torch": torch.__version__}
        found = [{**asdict(row), "peak": row.peak} for row in rows]
        atomic.write_json(args.out, {**report, "rows": json.loads(json.dumps(found), parse_float=_short)})
    return 0 if all(row.kept for row in rows) else 1


def _short(text: str) -> float:
    return round(float(text), 3)


if __name__ == "__main__":
    sys.exit(main())
