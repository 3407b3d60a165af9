"""The README's picture: `python benchmarks/gallery.py docs/gallery.png`.

Makes every prompt with the default settings and seed 0 and shows each from two sides.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from splatgen import formats
from splatgen.config import from_dict
from splatgen.loop import object_run
from splatgen.loop.results import pictures
from splatgen.runs import video
from splatgen.scene.cameras import orbit

PROMPTS = (
    "a blue sphere on top of a green cylinder",
    "a red cube",
    "a purple cone on top of a yellow cube",
    "a blue and white striped sphere",
    "an orange torus next to a white cylinder",
    "a green cylinder with a red front",
    "a cyan and red checkered cube",
    "a yellow cone",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of them")
    args = parser.parse_args()
    cameras = orbit(torch.tensor([25.0, 205.0]), torch.tensor([20.0, 20.0]), size=args.size)
    images = []
    for prompt in PROMPTS[: args.prompts]:
        with tempfile.TemporaryDirectory() as folder:
            config = from_dict({"prompt": prompt, "steps": args.steps, "output": {"frames": 0}})
            made = object_run.generate(config, out=Path(folder), command=["benchmarks/gallery.py"])
            images += list(pictures(formats.load(made.run.splats_ply), cameras))
        print(prompt, flush=True)
    video.write_preview(images, args.path, columns=4)


if __name__ == "__main__":
    main()
