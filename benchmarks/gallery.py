"""The README's picture: `python benchmarks/gallery.py docs/gallery.png`.

Makes every prompt as `splatgen generate` does without a GPU, with seed 0, and shows each from one side. With
--keep the splats stay in a folder, and those that are there are not made again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from splatgen import formats
from splatgen.config import from_dict, read_preset
from splatgen.loop import object_run
from splatgen.loop.results import pictures
from splatgen.runs import video
from splatgen.scene.cameras import orbit
from splatgen.scene.splats import Splats

PROMPTS = (
    "a taxi",
    "a pumpkin on top of a barrel",
    "a castle",
    "a knight",
    "a frog next to a mushroom",
    "a dragon",
    "a blue armchair",
    "a palm tree",
    "a viking ship",
    "a treasure chest",
    "a burger",
    "a purple race car",
    "a windmill",
    "a tyrannosaurus",
    "a spaceship",
    "a cow on top of a round table",
)
AZIMUTH, ELEVATION, DISTANCE = 30.0, 18.0, 2.1


def made(prompt: str, steps: int | None, keep: Path | None) -> Splats:
    """The object of a prompt."""
    kept = None if keep is None else keep / f"{prompt.replace(' ', '-')}.ply"
    if kept is not None and kept.is_file():
        return formats.load(kept)
    less = {} if steps is None else {"steps": steps, "stages": []}
    settings = {**read_preset("shelf"), **less, "prompt": prompt, "output": {"frames": 0}}
    with tempfile.TemporaryDirectory() as folder:
        done = object_run.generate(from_dict(settings), out=Path(folder), command=["benchmarks/gallery.py"])
        splats = formats.load(done.run.splats_ply)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        formats.save(splats, kept)
    return splats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--steps", type=int, help="in place of the preset's, and without its stages")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of them")
    parser.add_argument("--keep", type=Path, help="a folder for the splats")
    args = parser.parse_args()
    angle = torch.tensor([AZIMUTH])
    cameras = orbit(angle, torch.full_like(angle, ELEVATION), size=args.size, distance=DISTANCE)
    images = []
    for prompt in PROMPTS[: args.prompts]:
        images += list(pictures(made(prompt, args.steps, args.keep), cameras))
        print(prompt, flush=True)
    video.write_preview(images, args.path, columns=4)


if __name__ == "__main__":
    main()
