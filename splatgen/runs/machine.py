"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def machine_name() -> str:
    """The processor's name and the number of cores this process may use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
