"""A CUDA device that is not there: its tensors hold real numbers, computed by the CPU's kernels.

    PYTHONPATH=tests python -m pretend pytest tests/gpu
    PYTHONPATH=tests python -m pretend splatgen generate "a red cube" --device cuda

or, in Python and before anything is put on a device, `pretend.install()`; it lasts as long as the process.

What fails on a GPU fails here: operators on tensors of two devices, generators and indices of the wrong one,
`.numpy()`. What waits for a GPU is counted by its place in the code: `.item()`, `bool()`, copies to the CPU,
copies to the device but from pinned memory with non_blocking, `nonzero`, boolean indexing. Memory is that of
live storages; it can be made to run out, and the device to be lost.

Not seen: the kernels (their numbers, speed, workspaces, what they refuse), streams, fragmentation, what C++
decides by device, torch.compile, subprocesses, and whether C++ made a tensor on the wrong device (all that a
call with a tensor of the device makes is taken to be on it).

PRETEND_META   1 keeps shapes in place of numbers, for the memory of large models; what is read of them is
               true, 1.0 or 0
"""

from __future__ import annotations

from pretend.device import install
from pretend.state import DEVICE, META, STATE, Waits, counted, limited

__all__ = ["DEVICE", "META", "STATE", "Waits", "counted", "install", "limited"]
