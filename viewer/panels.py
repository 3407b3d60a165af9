"""What a page consists of."""

from __future__ import annotations

from typing import Protocol

from splatgen.loop.snapshot import Snapshot


class Panel(Protocol):
    """A part of the page that follows a run. Called by one thread; its callbacks come from others."""

    def update(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
