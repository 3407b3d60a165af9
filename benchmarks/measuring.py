"""Time and memory of a device, and the network calls inside a step: taken down, and made once more."""

from __future__ import annotations

import contextlib
import gc
import statistics
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from splatgen.runs.machine import machine_name

ROOT = Path(__file__).parents[1]
Work = Callable[[], object]


class NotMeasured(Exception):
    """Why a number cannot be had here."""


class Device(Protocol):
    """What is measured."""

    name: str  # torch's

    def wait(self) -> None:
        """Until all work is done."""

    def reset(self) -> None:
        """Forget the peaks of memory, and give back what is free."""

    def peaks(self) -> tuple[float, float]:
        """GB allocated and reserved at most since then; NotMeasured where it is not counted."""

    def limited(self, gigabytes: float) -> contextlib.AbstractContextManager[None]:
        """Where more than that is out of memory; NotMeasured where it cannot be bounded so."""

    def waits(self, work: Work) -> dict[str, int]:
        """Where work makes the program wait for the device, by line; NotMeasured where it is not told."""

    def about(self) -> dict[str, Any]:
        """For the report."""


class Processor:
    """The CPU, on which memory is not counted."""

    name = "cpu"

    def wait(self) -> None:
        pass

    def reset(self) -> None:
        pass

    def peaks(self) -> tuple[float, float]:
        raise NotMeasured("memory is counted on CUDA only")

    def limited(self, gigabytes: float) -> contextlib.AbstractContextManager[None]:
        raise NotMeasured("memory is bounded on CUDA only")

    def waits(self, work: Work) -> dict[str, int]:
        raise NotMeasured("only CUDA is waited for")

    def about(self) -> dict[str, Any]:
        return {"gpu": None, "driver": None, "cuda": None}


class Card:
    """The current CUDA device."""

    name = "cuda"

    def wait(self) -> None:
        torch.cuda.synchronize()

    def reset(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> tuple[float, float]:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9

    @contextlib.contextmanager
    def limited(self, gigabytes: float) -> Iterator[None]:
        """By torch's allocator; a card of N GB has 7 % more than N x 10^9 bytes, for CUDA's own context."""
        total = torch.cuda.get_device_properties(0).total_memory
        if gigabytes * 1e9 > total:
            raise NotMeasured(f"the card has {total / 1e9:.1f} GB")
        self.reset()
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()

    def waits(self, work: Work) -> dict[str, int]:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        lines = [f"{_place(w.filename)}:{w.lineno}" for w in told if "synchronizing" in str(w.message)]
        return dict(Counter(lines).most_common())

    def about(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(0)
        return {
            "gpu": f"{found.name}, {found.total_memory / 1e9:.1f} GB",
            "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
        }


def _place(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-2:])


def _said(*command: str) -> str | None:
    """The first line that a command prints; None where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def environment(device: Device) -> dict[str, Any]:
    """What a report says of where it was made."""
    packages = ("torch", "diffusers", "transformers", "gsplat")
    return {
        "machine": machine_name(),
        **device.about(),
        "packages": {name: version(name) for name in packages},
        "commit": _said("git", "rev-parse", "--short", "HEAD"),
    }


def timed(device: Device, work: Work) -> float:
    """Wall seconds from an idle device to an idle device."""
    device.wait()
    begin = time.perf_counter()
    work()
    device.wait()
    return time.perf_counter() - begin


def medians(
    device: Device, works: Mapping[str, Work], *, rounds: int, seconds: float = 6.0
) -> dict[str, float]:
    """Median seconds of works that take turns: `rounds` each, or three once they took longer than that."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for n in range(rounds):
        for name, work in works.items():
            times[name].append(timed(device, work))
        if n >= 2 and sum(map(sum, times.values())) > seconds:
            break
    return {name: statistics.median(found) for name, found in times.items()}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a network, with tensors that nothing else holds."""

    what: str
    network: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def images(self) -> int:
        return len(self.args[0])

    def leaves(self) -> list[Tensor]:
        """What a gradient was asked for."""
        values = (*self.args, *self.kwargs.values())
        return [z for z in values if isinstance(z, Tensor) and z.requires_grad]

    def again(self) -> None:
        """The same call, with its backward pass where it had one."""
        leaves = self.leaves()
        with torch.set_grad_enabled(bool(leaves)):
            out = self.network(*self.args, **self.kwargs)
            if leaves:
                first = out if isinstance(out, Tensor) else out[0]
                torch.autograd.grad(first, leaves, torch.ones_like(first))


@contextlib.contextmanager
def recorded(networks: Mapping[str, torch.nn.Module]) -> Iterator[list[Call]]:
    """Every call of some networks, in order."""
    calls: list[Call] = []

    def take_down(what: str) -> Callable[..., None]:
        def hook(network: torch.nn.Module, args: Any, kwargs: Any) -> None:
            given = tuple(map(_own, args))
            named = {name: _own(value) for name, value in kwargs.items()}
            calls.append(Call(what=what, network=network, args=given, kwargs=named))

        return hook

    handles = [
        network.register_forward_pre_hook(take_down(what), with_kwargs=True)
        for what, network in networks.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _own(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    wanted = value.requires_grad and torch.is_grad_enabled()
    return value.detach().clone().requires_grad_(wanted)


def again(calls: Sequence[Call], what: str) -> Work:
    """All calls of one kind once more."""
    chosen = [call for call in calls if call.what == what]

    def work() -> None:
        for call in chosen:
            call.again()

    return work
