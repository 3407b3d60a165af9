"""Which caption's exact pictures splats come nearest to: what is right by truth, without a network.

Shapes: V views, K captions, S image side.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.evaluation import SIZES, choices
from splatgen.worlds.shelf.grammar import AnyCaption, Caption
from splatgen.worlds.shelf.scenes import ground_truth
from splatgen.worlds.toybox.evaluation import BACKGROUND, VISIBLE, unseen_cameras


def likely_wrong(caption: AnyCaption, *, nouns: bool = True) -> tuple[AnyCaption, ...]:
    """Every other arrangement, every other colour, and (nouns) every noun of its group in the place of each.

    Among all views some tell left from right, so the mirrored pair is among them.
    """
    found = choices(caption, ordered=True)
    siblings = [other for other in found.nouns if nouns and _groups(other) == _groups(caption)]
    return (*found.places, *found.others, *siblings)


def _groups(caption: AnyCaption) -> list[str]:
    if not isinstance(caption, Caption):
        return []
    return [catalogue().nouns[item.noun].group for item in caption.items]


@functools.lru_cache(maxsize=4)  # some 20 MB each; the runs of a caption follow one another
def alternatives(caption: AnyCaption, size: int, nouns: bool = True) -> Tensor:
    """Exact pictures [K, V, 3, S, S] on grey from the unseen views, the right caption's first.

    Wrong ones that can't be told from it are left out: another colour of a castle is that of its flags.
    Raises ShelfError where the models are not on this machine.
    """
    cameras, grey = unseen_cameras(size), torch.full((3,), BACKGROUND)
    captions = (caption, *likely_wrong(caption, nouns=nouns))
    found = torch.stack([ground_truth(c, cameras, grey).rgb for c in captions])
    apart = (found - found[0]).square().mean((1, 2, 3, 4)) > VISIBLE
    apart[0] = True
    return found[apart]


def share_ahead(images: Tensor, caption: AnyCaption, *, nouns: bool = True, size: int = SIZES[0]) -> float:
    """Share of the wrong captions whose exact pictures are farther from images [V, 3, S, S] than the right.

    By mean squared error over all the unseen views together, among the captions of `likely_wrong`; at 1 the
    right caption is the nearest, as it is where none is wrong.
    Raises ShelfError where the models are not on this machine.
    """
    errors = (alternatives(caption, size, nouns) - images).square().mean((1, 2, 3, 4))
    return float((errors[1:] > errors[0]).double().mean()) if len(errors) > 1 else 1.0
