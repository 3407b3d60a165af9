"""What went wrong, as an exit code and one line for the user. Imports nothing heavy.

0 done; 2 usage or settings; 3 model or dependency missing; 4 diverged; 5 out of memory; 6 disk or I/O;
130 interrupted; 143 terminated. Anything that is not listed here is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from splatgen.models.memory import is_lost_device, is_out_of_memory

USAGE, MISSING, DIVERGED, MEMORY, DISK, INTERRUPTED = 2, 3, 4, 5, 6, 130
_MEMORY_ADVICE = (
    "take --budget 8gb (the smallest), or lower --guidance.batch, --views.size, --views.count or "
    "--densify.max-splats (for pictures: --size)"
)
_LOST_ADVICE = (
    "`splatgen resume RUN` goes on from the last checkpoint; `splatgen doctor` says what is there now"
)


class Failure(Exception):
    """An error that already knows its exit code; the message says what was wrong and what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def describe(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an expected error, None for a bug."""
    if isinstance(error, Failure):
        return error.code, str(error)
    for matches, code, wording in _TABLE:
        if matches(error):
            return code, wording(error)
    return None


def one_line(message: str) -> str:
    """A message without line breaks and other control characters, which an error may quote from a file."""
    return " ".join("".join(c if c.isprintable() else " " for c in message).split())


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether it is of that class; a class whose module was never imported can't have been raised."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _is_diverged(error: BaseException) -> bool:
    return _is(error, "splatgen.loop.loop", "Diverged")


def _is_weights(error: BaseException) -> bool:
    return _is(error, "splatgen.models.weights", "WeightsError")


def _is_backend(error: BaseException) -> bool:
    return _is(error, "splatgen.rasterizer.backends", "BackendError")


def _is_fleet(error: BaseException) -> bool:
    return _is(error, "splatgen.sweeps.fleet", "FleetError")


def _is_safetensors(error: BaseException) -> bool:
    return _is(error, "safetensors", "SafetensorError")


def _disk(error: BaseException) -> str:
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}: {error.filename}" if error.filename is not None else reason


def _is_any(*kinds: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kinds)


def _says(words: str) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, RuntimeError) and words in str(error)


# The first row that matches decides: UnicodeError is a ValueError, torch's out of memory a RuntimeError.
_TABLE: tuple[tuple[Callable[[BaseException], bool], int, Callable[[BaseException], str]], ...] = (
    (_is_any(KeyboardInterrupt), INTERRUPTED, lambda _: "interrupted"),
    (_is_weights, MISSING, str),
    (_is_diverged, DIVERGED, str),
    (_is_backend, MISSING, str),
    (_is_fleet, MISSING, str),
    (is_out_of_memory, MEMORY, lambda _: f"out of memory: {_MEMORY_ADVICE}"),
    (is_lost_device, MISSING, lambda error: f"the GPU failed ({str(error).splitlines()[0]}): {_LOST_ADVICE}"),
    (_is_any(ImportError), MISSING, lambda error: f"{error}: `splatgen doctor` says what this machine lacks"),
    (_is_safetensors, MISSING, lambda error: f"the weights are damaged ({error}): install them again"),
    (_says("NUMBA_CACHE_DIR"), MISSING, str),
    (_says("ffmpeg failed"), DISK, str),
    (_is_any(OSError), DISK, _disk),
    (_is_any(ValueError), USAGE, str),
)
