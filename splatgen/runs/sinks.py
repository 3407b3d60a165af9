"""Where rows of metrics go beside metrics.jsonl, under the same keys: TensorBoard, or Weights & Biases.

Both are packages that need not be installed. What goes wrong with one is logged, and the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

from splatgen.runs.run_folder import Run

Log = Literal["none", "tensorboard", "wandb"]

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes rows of metrics.jsonl."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """The finite numbers of a row, by the names of metrics.jsonl."""

    def close(self) -> None:
        """Everything is on its way."""


class TensorBoard:
    """Event files in RUN/tensorboard: tensorboard --logdir OUTPUTS shows the runs of a folder together."""

    def __init__(self, run: Run, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what a resumed run writes again replaces what came after its checkpoint
        self._writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=first)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the same id, in the project that WANDB_PROJECT names; WANDB_MODE=offline keeps it here."""

    def __init__(self, run: Run, _first: int) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "splatgen"),
            id=run.id,
            name=run.id,
            resume="allow",
            dir=str(run.folder),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")  # a resumed run goes back, which its own count can't

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[Run, int], Sink]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def missing(log: Log) -> str:
    """How to install what a log needs, where it is not; empty where nothing is missing."""
    if log == "none" or importlib.util.find_spec(log) is not None:
        return ""
    return f"--log {log} needs the package {log}: pip install 'splatgen[{log}]'"


@contextlib.contextmanager
def opened(log: Log, run: Run, first: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Within, a function that takes rows; first is the step that comes next.

    Raises ImportError without the package, ValueError when it refuses.
    """
    if log == "none":
        yield lambda row: None
        return
    try:
        sink = SINKS[log](run, first)
    except ImportError:
        raise
    except Exception as error:  # of many kinds: no login, no network
        raise ValueError(f"--log {log} cannot start: {error}") from error
    broken: list[Exception] = []

    def write(row: Mapping[str, Any]) -> None:
        if broken:
            return
        numbers = {name: float(value) for name, value in row.items() if name != "step" and _is_number(value)}
        try:
            sink.write(int(row["step"]), numbers)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
            broken.append(error)
            _log.warning("--log %s failed, and is left alone from now on: %s", log, error)

    try:
        yield write
    finally:
        try:
            sink.close()
        except Exception as error:  # noqa: BLE001 - must not hide what ended the run
            _log.warning("--log %s failed at its end: %s", log, error)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
