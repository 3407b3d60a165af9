"""How near a past run's object is to the exact one, where the toybox knows it: what no reward can say."""

from __future__ import annotations

from splatgen import formats
from splatgen.commands.common.past_runs import PastRun
from splatgen.worlds.toybox import grammar

SIZE = 64  # pixels of a picture


def caption(past: PastRun) -> grammar.Caption | None:
    """What the toybox makes of the prompt; None for words that it does not know."""
    try:
        return grammar.parse(past.config.prompt)
    except grammar.VocabularyError:
        return None


def measured(past: PastRun) -> str:
    """Silhouette and colours against exact pictures from eight views; ValueError and OSError in words."""
    known = caption(past)
    if known is None or past.splats is None:
        raise ValueError(f"nobody knows the exact picture of {past.config.prompt[:60]!r}")
    import torch

    from splatgen.rasterizer import render
    from splatgen.worlds.toybox.evaluation import BACKGROUND, compare, unseen_cameras
    from splatgen.worlds.toybox.world import ground_truth

    grey, cameras = torch.full((3,), BACKGROUND), unseen_cameras(SIZE)
    exact = ground_truth(known, cameras, grey)
    with torch.no_grad():
        seen = render(formats.load(past.splats), cameras, grey)
    iou, psnr, _ = compare(seen.rgb.clamp(0.0, 1.0), seen.alpha, exact.rgb, exact.alpha)
    return f"against the truth: silhouette {iou:.2f} of 1 (IoU), {psnr:.1f} dB"
