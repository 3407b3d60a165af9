"""splatgen: text to 3D Gaussian splats under a 2D diffusion prior, aligned by reward models.

    import splatgen
    result = splatgen.generate("a red cube on top of a blue sphere", steps=300)

Torch is imported when one of these functions is used first; everything else may move.
Not here: anything but the door; every idea has its room, see docs/architecture.md.
"""

import os
from typing import TYPE_CHECKING, Any

from splatgen.runs.version import __version__

if TYPE_CHECKING:
    from splatgen.commands.functions import compare, edit, evaluate, generate, load, render, save, sweep

__all__ = ["__version__", "compare", "edit", "evaluate", "generate", "load", "render", "save", "sweep"]

# Read when torch loads OpenMP, so it is said before: spinning barriers turn a step of 6 ms into 40 ms on a
# core that somebody else uses too. Whatever the user has chosen stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'splatgen' has no attribute {name!r}; it has {', '.join(__all__)}")
    from splatgen.commands import functions

    return getattr(functions, name)


def __dir__() -> list[str]:
    return list(__all__)
