"""When memory runs out: the same step with less at once, until it is one image at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch

from splatgen.loop.step import Models
from splatgen.models.memory import is_out_of_memory

S = TypeVar("S")


def lighter(models: Models) -> Models | None:
    """The same with half of what goes through the networks at once; None where that is one item already.

    Everything that learns is shared with the models that are given.
    """
    denoiser, ensemble, views = models.denoiser, models.ensemble, models.prior.views
    most = denoiser.largest or 2 * views  # nothing went through yet: two prompts of one item
    denoise, decode = denoiser.options.batch or most, ensemble.options.batch or most
    learning, encode = denoiser.learning or most, models.encode or most
    if denoise <= views and learning <= views and max(decode, encode) <= 1:
        return None
    less = denoiser.changed(batch=max(denoise // 2, 1))
    less.learning, less.largest = max(learning // 2, 1), denoiser.largest
    options = dataclasses.replace(ensemble.options, batch=max(decode // 2, 1))
    return dataclasses.replace(
        models,
        denoiser=less,
        ensemble=dataclasses.replace(ensemble, options=options),
        encode=max(encode // 2, 1),
        halved=True,
    )


def within_memory(step: Callable[[Models], S], models: Models, clear: Callable[[], None]) -> tuple[S, Models]:
    """A step, and the models to go on with: whenever memory runs out, once more with half the batches.

    clear drops what the failed step left behind. A step's noises do not depend on the try, but a copy of
    the prior that vsd trains may have learned from an earlier one already. Raises what torch raises for want
    of memory when one image at a time is still too much.
    """
    while True:
        try:
            return step(models), models
        except (RuntimeError, MemoryError) as error:
            less = lighter(models) if is_out_of_memory(error) else None
            if less is None:
                raise
        models = less
        clear()  # not above: until there, the error holds the tensors of the step
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
