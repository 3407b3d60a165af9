"""The panel of the 3D scene: splats, the cameras they were seen from, and what is behind them."""

from __future__ import annotations

import math

import numpy as np
import viser

from splatgen.loop.snapshot import Cloud, Snapshot

from .poses import FOV, first_position, pose

AS_PAGE = "as the page"
BACKGROUNDS: dict[str, int | None] = {AS_PAGE: None, "white": 255, "grey": 128, "black": 0}
LINES = (230, 60, 150)  # of cameras: seen on white, grey and black
MOST_CAMERAS = 16
FRUSTUM, THICKNESS = 0.15, 0.006  # of a camera and its lines, world units


class Scene:
    """Splats upright, seen from the front at first; the camera belongs to each page."""

    def __init__(self, server: viser.ViserServer, reach: float) -> None:
        self.scene, self.server = server.scene, server
        self.reach = reach
        self.splats: viser.GaussianSplatHandle | None = None
        self.frustums: list[viser.CameraFrustumHandle] = []
        self.scene.set_up_direction("+y")
        self.scene.configure_environment_map(None)  # splats need no light, whose shadows cost each frame
        self.scene.configure_default_lights(enabled=False, cast_shadow=False)
        start = server.initial_camera
        start.position, start.look_at = first_position(reach), (0.0, 0.0, 0.0)
        start.up, start.fov = (0.0, 1.0, 0.0), math.radians(FOV)
        self._controls(server.gui)

        @server.on_client_connect
        def _(client: viser.ClientHandle) -> None:
            if narrow(client) > 1.0:
                self._place_camera(client, turn=True)

    def _controls(self, gui: viser.GuiApi) -> None:
        self.with_cameras = gui.add_checkbox("Cameras", False, hint="Where the last step looked from")
        self.background = gui.add_dropdown("Background", tuple(BACKGROUNDS), initial_value=AS_PAGE)
        reset = gui.add_button("Reset view", hint="From the front, as at first (R); F looks at the middle")
        reset.on_click(lambda event: self._place_camera(event.client, turn=True))
        key = gui.add_command("Reset view", hotkey="R")
        key.on_trigger(lambda event: self._place_camera(event.client, turn=True))
        key = gui.add_command("Frame the object", hotkey="F")
        key.on_trigger(lambda event: self._place_camera(event.client, turn=False))

        @self.background.on_update
        def _(_: object) -> None:
            self._paint(self.background.value)

        @self.with_cameras.on_update
        def _(_: object) -> None:
            for frustum in list(self.frustums):
                frustum.visible = self.with_cameras.value

    def _paint(self, name: str) -> None:
        level = BACKGROUNDS[name]
        image = None if level is None else np.full((1, 1, 3), level, np.uint8)
        self.scene.set_background_image(image, format="png")

    def _place_camera(self, client: viser.ClientHandle | None, *, turn: bool) -> None:
        """One page's camera to where it was at first; without turn, as near, from where it looks now."""
        if client is None:
            return
        camera = client.camera
        position = np.array(first_position(self.reach)) * narrow(client)
        if not turn:
            way = np.array(camera.position) - np.array(camera.look_at)
            position = way * (np.linalg.norm(position) / max(float(np.linalg.norm(way)), 1e-9))
        with client.atomic():
            camera.up_direction = (0.0, 1.0, 0.0)
            camera.position = position
            camera.look_at = (0.0, 0.0, 0.0)

    def update(self, snapshot: Snapshot) -> None:
        self._draw(snapshot.cloud)
        if len(snapshot.cameras):
            self._place(snapshot)

    def _draw(self, cloud: Cloud) -> None:
        arrays = (cloud.means, cloud.covariances, cloud.rgbs, cloud.opacities[:, None])
        if self.splats is None:
            self.splats = self.scene.add_gaussian_splats("/splats", *arrays)
        else:
            self.splats.set_gaussians(*arrays)

    def _place(self, snapshot: Snapshot) -> None:
        cameras = snapshot.cameras[:MOST_CAMERAS]
        while len(self.frustums) > len(cameras):
            self.frustums.pop().remove()
        for number, c2w in enumerate(cameras):
            if number == len(self.frustums):
                self.frustums.append(self._frustum(f"/cameras/{number}", snapshot.fov))
            frustum = self.frustums[number]
            frustum.wxyz, frustum.position = pose(c2w)
            frustum.fov = math.radians(snapshot.fov)

    def _frustum(self, name: str, fov: float) -> viser.CameraFrustumHandle:
        shown = self.with_cameras.value
        return self.scene.add_camera_frustum(
            name, math.radians(fov), 1.0, scale=FRUSTUM, thickness=THICKNESS, color=LINES, visible=shown
        )


def narrow(client: viser.ClientHandle) -> float:
    """How much further away a camera has to be where a page is higher than wide, as on a phone; else 1."""
    return max(client.camera.image_height / max(client.camera.image_width, 1), 1.0)
