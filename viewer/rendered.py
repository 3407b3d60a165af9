"""The panel of our own rasterizer's picture, from the camera of the page that moved last.

The browser sorts and blends splats in its own way; this is what the prior and the rewards see.
"""

from __future__ import annotations

import time

import numpy as np
import viser

from splatgen.loop.snapshot import Channel, Command, Snapshot

from .poses import view_request

INTERVAL = 0.2  # seconds between questions while a camera moves


class Rendered:
    """A checkbox and a picture."""

    def __init__(self, server: viser.ViserServer, channel: Channel) -> None:
        self.channel = channel
        self.camera: viser.CameraHandle | None = None  # that moved last
        self.moved = False
        self.asked = 0.0
        self.on = server.gui.add_checkbox(
            "Rasterized", False, hint="What splatgen's own rasterizer sees from this page's camera, on white"
        )
        blank = np.full((8, 8, 3), 255, np.uint8)
        self.image = server.gui.add_image(blank, visible=False)

        @server.on_client_connect
        async def _(client: viser.ClientHandle) -> None:
            client.camera.on_update(self._follow)

        @self.on.on_update
        def _(event: viser.GuiEvent[viser.GuiCheckboxHandle]) -> None:
            self._switch(event.client)

    async def _follow(self, camera: viser.CameraHandle) -> None:
        self.camera, self.moved = camera, True

    def _switch(self, client: viser.ClientHandle | None) -> None:
        if client is not None:
            self.camera = client.camera
        self.moved = self.on.value
        if not self.on.value:
            self.channel.send(Command(kind="look"))
            self.image.visible = False

    def tick(self) -> None:
        """Ask for a picture when a camera moved."""
        now = time.monotonic()
        if self.on.value and self.moved and self.camera is not None and now - self.asked >= INTERVAL:
            self.moved, self.asked = False, now
            self.channel.send(Command(kind="look", look=view_request(self.camera)))

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.view is not None and self.on.value:
            self.image.image = snapshot.view
            self.image.visible = True
