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
import os
import sys
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
from splatgen.loop.step import Models, assemble, make_moment  # noqa: E402
from splatgen.models.budget import BUDGETS  # noqa: E402
from splatgen.priors import PRIORS, Prior, load_options_for  # noqa: E402
from splatgen.rewards.ensemble import RewardEnsemble  # noqa: E402
from splatgen.runs import atomic  # noqa: E402
from splatgen.runs.rng import rng  # noqa: E402
from splatgen.scene.cameras import sample_orbit  # noqa: E402

GIB = 2.0**30
VIEWS = {"sd15": 4, "sdxl": 1, "mvdream": 4}
_CANDIDATES = {"candidates": 4, "lookahead": 1, "stop": 1.0}
_PSD = {"preference": "psd", "psd": {"interval": 1, "t_limit": 1.0}}
METHODS: dict[str, dict[str, Any]] = {  # csd, sdi, ism need what sds does, dpo less than weighted
    "sds": {},
    "weighted": {"preference": "weighted", "weighted": _CANDIDATES},
    "psd": _PSD,
    "ascent": {"preference": "ascent", "ascent": {"start": 0.0, "straight_through": 1.0}},
    "vsd": {"score": "vsd"},
    "vsd+psd": {"score": "vsd", **_PSD},
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """GiB of live storages at most, by what went on."""

    prior: str
    views: int
    method: str
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


def config(prior: str, method: str, budget: str, views: int) -> Config:
    """Guided, at times of one half, in the prior's own size."""
    return from_dict(
        {
            "prompt": "a corgi",
            "prior": prior,
            "budget": budget,
            "steps": 1000,
            "guidance": {"scale": 7.5, "t_min": 0.5, "t_max": [0.5, 0.5], "view_prompts": "none"},
            "views": {"count": views, "size": [random_models.FULL[prior].side]},
            **METHODS[method],
        }
    )


class Bench:
    """The networks of a prior under a budget, made once for all methods; vsd has to come last."""

    def __init__(self, prior: str, budget: str) -> None:
        gc.collect()  # of the one before: networks are full of cycles
        given = config(prior, "sds", budget, VIEWS[prior])
        how = load_options_for(given, "cuda")
        self.how = dataclasses.replace(how, text_device="cuda")  # text encoders go, wherever they are
        self.prior, self.budget = prior, budget
        self.networks = random_models.networks(prior, random_models.FULL[prior], self.how)
        self.tower: Any = None  # HPSv2's

    def models(self, given: Config) -> Models:
        """A run's, with HPSv2 where a preference asks for it."""
        if given.preference == "none":
            self.tower = None
            gc.collect()
        else:
            self.tower = self.tower or random_models.image_tower(random_models.HPSV2, self.how)
        chosen = [random_models.reward(self.tower, random_models.HPSV2, self.how)] if self.tower else []
        ensemble = RewardEnsemble(
            rewards=tuple(chosen), weights=(1.0,) * len(chosen), options=RewardOptions()
        )
        made = assemble(given, cast("Prior", random_models.prior(self.networks, self.how)), ensemble, ())
        made.prior.release()
        for reward in made.rewards:
            reward.release()
        return made

    def estimate(self, method: str, views: int | None = None) -> Estimate:
        """One step."""
        views = views or VIEWS[self.prior]
        given = config(self.prior, method, self.budget, views)
        models, peaks = self.models(given), []
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

        def mark() -> None:
            peaks.append(torch.cuda.max_memory_allocated() / GIB)
            torch.cuda.reset_peak_memory_stats()

        side, group = given.views.size[0], PRIORS[self.prior].views
        cameras = sample_orbit(
            rng(0, 0, "cameras"), views=views, size=side, elevation=(0.0, 30.0), group=group
        )
        images = torch.empty(views, 3, side, side, device="cuda", requires_grad=True)
        x = encode(models.prior, (images,), models.encode)
        mark()
        moment = make_moment(given, models, step=0, x=x, images=images, cameras=cameras, before=None)
        found = gradient(moment, models.score, models.preference, models.ensemble)
        mark()
        pull_back(models.prior, models.encode, x, found.value, (images,), images, found.on_render)
        mark()
        return Estimate(
            prior=self.prior,
            views=views,
            method=method,
            budget=self.budget,
            models=held / GIB,
            **dict(zip(("encode", "guidance", "backward"), peaks, strict=True)),
            bound=BUDGETS[self.budget].most if views == VIEWS[self.prior] else 0.0,
        )


def cells(priors: Sequence[str], budgets: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Prior, budget and views; without a budget SD 1.5's views make a difference."""
    for budget in budgets:
        for prior in priors:
            yield prior, budget, VIEWS[prior]
            if (prior, budget) == ("sd15", "none"):
                yield prior, budget, 1


def line(row: Estimate) -> str:
    what = f"{row.prior} x {row.views} {row.method} {row.budget}"
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
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args(argv)
    prepare()
    rows: list[Estimate] = []
    for prior, budget, views in cells(args.priors, args.budgets):
        bench = Bench(prior, budget)
        for method in args.methods:
            rows.append(bench.estimate(method, views))
            print(line(rows[-1]), flush=True)
            if args.out:
                write(args.out, rows)
    return 0 if all(row.kept for row in rows) else 1


def prepare() -> None:
    """From here on this process has a device of shapes, and networks without numbers."""
    pretend.install()
    random_models.draw = lambda network: None
    random_models.ASIDE = "meta"  # gigabytes, otherwise


def write(path: Path, rows: Sequence[Estimate]) -> None:
    """All rows so far; GiB in hundredths."""
    named = [{**asdict(row), "peak": row.peak} for row in rows]
    short = [{k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in named]
    date = datetime.now(UTC).strftime("%Y%m%d")
    atomic.write_json(path, {"date": date, "torch": torch.__version__, "unit": "GiB", "rows": short})


if __name__ == "__main__":
    sys.exit(main())
