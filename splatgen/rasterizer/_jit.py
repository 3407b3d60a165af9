"""How the CPU kernels are compiled, and the constants they share.

Numbers inside kernels are np.float32 constants: one stray Python float turns the arithmetic around
it into float64 and halves the vector width.

Helpers that are inlined into a kernel live in the kernel's own file: numba's disk cache looks at
the time stamp of that file only and would keep machine code made from an older helper. For the same
reason, touch the kernels' files after changing a constant here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

# gsplat 1.5.3's constants (cuda/include/Common.h; RasterizeToPixels3DGSFwd.cu); 1.6 has ALPHA_MAX 0.99.
ALPHA_MAX = np.float32(0.999)
ALPHA_MIN = np.float32(1.0 / 255.0)
T_STOP = np.float32(1e-4)  # a pixel is finished before its transmittance would fall to this
TILE = 8  # pixels; 16 costs 1.3-2x, 8x4 gains nothing. The picture does not depend on it.

# No nnan and no ninf: comparisons have to reject NaN, or a broken splat would write out of bounds.
FASTMATH = {"reassoc", "nsz", "arcp", "contract", "afn"}


def jit(function: Callable[..., Any]) -> Any:
    """Compile on first use and keep the code on disk; the kernel runs without the GIL.

    Not parallel=True: it doubles the compile time, and OpenMP's spinning barriers make a 6 ms job
    take 40 ms as soon as another process wants the core.
    """
    return numba.njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")(function)


def is_cached(kernel: Any) -> bool:
    """Whether the kernel's machine code is on disk and newer than its source."""
    source = Path(kernel.py_func.__code__.co_filename)
    name = f"{source.stem}.{kernel.py_func.__qualname__}-*.nbi"
    stamps = [path.stat().st_mtime for path in Path(kernel.stats.cache_path).glob(name)]
    return bool(stamps) and max(stamps) >= source.stat().st_mtime
