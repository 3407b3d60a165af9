"""Run a console script, a module or a file on the pretended device: `python -m pretend NAME ARGUMENTS...`."""

from __future__ import annotations

import importlib.metadata
import runpy
import sys
from pathlib import Path

from pretend import STATE, install


def report() -> str:
    """Waits by their places, the most frequent first, and the peak of memory."""
    rows = [f"{n:7}  {what:22} {where}" for (what, where), n in STATE.waited.most_common()]
    memory = f"peak of the pretended device's memory: {STATE.peak / 2**20:.1f} MB"
    return "\n".join([f"waits for the device: {STATE.waited.total()}", *rows, memory])


def main() -> None:
    sys.argv = sys.argv[1:]
    sys.argv = sys.argv[sys.argv[0] == "-m" :]
    name = sys.argv[0]
    install()
    scripts = [s for s in importlib.metadata.entry_points(group="console_scripts") if s.name == name]
    try:
        if scripts:
            sys.exit(scripts[0].load()())
        if name.endswith(".py"):
            sys.path.insert(0, str(Path(name).parent))
            runpy.run_path(name, run_name="__main__")
            return
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        if name != "pytest":
            print(report(), file=sys.stderr)


if __name__ == "__main__":
    main()
