"""Several runs in one process, of which one goes on at a time: each makes a step and hands on.

The runs share networks, and have random numbers of (seed, step, purpose), so each comes to the bit to what it
would be alone. On a CPU, steps side by side would be no faster; on a GPU, the networks are there once.
"""

from __future__ import annotations

import threading


class Turns:
    """An order of runs, by number. whole: each is made to its end before the next begins."""

    def __init__(self, count: int, *, whole: bool = False) -> None:
        self._order = list(range(count))
        self._whole = whole
        self._changed = threading.Condition()

    def wait(self, run: int) -> None:
        """Until it is this run's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == run)

    def hand_on(self, run: int) -> None:
        """To the next in order, and wait for the turn to come round."""
        with self._changed:
            if self._whole or len(self._order) == 1:
                return
            self._order.append(self._order.pop(0))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._order[0] == run)

    def leave(self, run: int) -> None:
        """This run is over."""
        with self._changed:
            self._order.remove(run)
            self._changed.notify_all()
