"""The objects of a job in the scene: one in the middle, or its variants in a grid under one camera."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import viser

from splatgen.loop.snapshot import Cloud, Snapshot

from .history import History
from .poses import first_position
from .studio_program import Lane

APART = 2.4  # world units, between the middles of two objects


def places(count: int) -> list[tuple[float, float, float]]:
    """Middles of objects that stand in rows, the first at the top left; none of no objects."""
    columns = max(math.ceil(math.sqrt(count)), 1)
    rows = math.ceil(count / columns)
    return [
        ((n % columns - (columns - 1) / 2.0) * APART, ((rows - 1) / 2.0 - n // columns) * APART, 0.0)
        for n in range(count)
    ]


def reach(count: int) -> float:
    """How far up from the middle a camera has to see so many objects."""
    return APART / 2.0 * max(math.ceil(math.sqrt(count)), 1)


def step_back(server: viser.ViserServer, count: int) -> None:
    """Bring pages' cameras to where so many objects are in view, in the direction that each looks from."""
    least = float(np.linalg.norm(first_position(reach(count) * (1.0 if count == 2 else 1.2))))
    for client in server.get_clients().values():
        camera = client.camera
        try:
            position, middle = np.array(camera.position), np.array(camera.look_at)
        except AssertionError:  # a page that has just come has no camera yet
            continue
        distance = float(np.linalg.norm(position - middle))
        if 0.0 < distance < least:
            camera.position = middle + (position - middle) * (least / distance)
            camera.look_at = middle  # a new position moves it along


class Grid:
    """The variants of the job at work; the first thread that draws is the only one."""

    def __init__(self, server: viser.ViserServer) -> None:
        self.server = server
        self.lanes: tuple[Lane, ...] = ()
        self.histories: list[History] = []
        self.steps: list[int] = []
        self.newest: list[Snapshot | None] = []
        self.visible = True
        self._splats: list[Any] = []
        self._labels: list[Any] = []

    def begin(self, lanes: tuple[Lane, ...]) -> None:
        """Make room for other runs; a single one is drawn elsewhere."""
        for node in (*self._splats, *self._labels):
            if node is not None:
                node.remove()
        self.lanes = lanes
        self.histories = [History() for _ in lanes]
        self.steps, self.newest = [0] * len(lanes), [None] * len(lanes)
        self._splats, self._labels = [None] * len(lanes), [None] * len(lanes)
        if len(lanes) > 1:
            step_back(self.server, len(lanes))

    def take(self) -> list[int]:
        """Draw what the runs have left; the numbers of those that left something."""
        fresh = []
        for n, lane in enumerate(self.lanes):
            snapshot = lane.channel.take()
            if snapshot is not None:
                self.histories[n].add(snapshot.rows)
                self.steps[n], self.newest[n] = snapshot.step, snapshot
                self._draw(n, snapshot.cloud)
                fresh.append(n)
        return fresh

    def scores(self) -> list[float | None]:
        """How each run stands: by what was held out, else by what guides; None where nothing is known."""
        return [score(history) for history in self.histories]

    def reveal(self, visible: bool) -> None:
        """Show the grid, or make room."""
        if visible == self.visible:
            return
        self.visible = visible
        for node in (*self._splats, *self._labels):
            if node is not None:
                node.visible = visible

    def _draw(self, n: int, cloud: Cloud) -> None:
        arrays = (cloud.means, cloud.covariances, cloud.rgbs, cloud.opacities[:, None])
        if self._splats[n] is not None:
            self._splats[n].set_gaussians(*arrays)
            return
        x, y, z = places(len(self.lanes))[n]
        name, shown = f"/grid/{n}", self.visible
        self._splats[n] = self.server.scene.add_gaussian_splats(
            name, *arrays, position=(x, y, z), visible=shown
        )
        self._labels[n] = self.server.scene.add_label(
            f"/names/{n}",
            self.lanes[n].name,
            position=(x, y - APART / 2.2, z),
            anchor="top-center",
            visible=shown,
        )


def score(history: History) -> float | None:
    """The mean of the newest held-out rewards, else of those that guide."""
    for kind in ("holdout/", "reward/"):
        found = [history.last(name) for name in history.columns if name.startswith(kind)]
        known = [value for value in found if value is not None]
        if known:
            return sum(known) / len(known)
    return None
