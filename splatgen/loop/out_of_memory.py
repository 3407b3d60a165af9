"""When memory runs out: the same step with half of what goes through the networks at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch

from splatgen.guidance.denoiser import Denoiser
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
    if denoise <= views and decode <= 1:
        return None
    guidance = dataclasses.replace(denoiser.options, batch=max(denoise // 2, 1))
    options = dataclasses.replace(ensemble.options, batch=max(decode // 2, 1))
    return dataclasses.replace(
        models,
        denoiser=Denoiser(denoiser.prior, guidance),
        ensemble=dataclasses.replace(ensemble, options=options),
        halved=True,
    )


def within_memory(step: Callable[[Models], S], models: Models, clear: Callable[[], None]) -> tuple[S, Models]:
    """A step, and the models to go on with: when memory runs out, once more with half the batches.

    clear drops what the failed step left behind. A step's noises do not depend on the try, but a copy of
    the prior that vsd trains may have learned from the first one already. Raises what torch raises for want
    of memory when halving does not help, or has been done in an earlier step.
    """
    try:
        return step(models), models
    except (RuntimeError, MemoryError) as error:
        less = None if models.halved or not is_out_of_memory(error) else lighter(models)
        if less is None:
            raise
    clear()  # not above: until there, the error holds the tensors of the step
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return step(less), less
