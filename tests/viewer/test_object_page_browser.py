"""The page of one object in a real browser. Without one, or without playwright, this is skipped."""

from __future__ import annotations

import io

import numpy as np
import test_browser as shared
from pages import BLUE, LEFT, RED, RIGHT, balls
from PIL import Image

from splatgen import formats

pytestmark = shared.pytestmark
browser, page = shared.browser, shared.page  # fixtures


def seen(page, path):
    content = page.screenshot(path=path)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32) / 255.0


def test_it_shows_its_object_without_a_server_and_turns(page, tmp_path):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    splats = shared.splats_of(balls((LEFT, RED), (RIGHT, BLUE), ((0.0, 0.6, 0.0), shared.GREEN)))
    formats.save(splats, tmp_path / "two-balls.html")
    page.goto(f"file://{tmp_path}/two-balls.html")
    page.get_by_text("900 splats").wait_for()
    shared.until(lambda: shared.shares(seen(page, tmp_path / "front.png"), RED)[0] > 0.03)
    front = seen(page, tmp_path / "front.png")
    (red, none), (nothing, blue) = shared.shares(front, RED), shared.shares(front, BLUE)
    assert max(none, nothing) < 0.002
    assert 0.8 < red / blue < 1.25
    rows = [np.flatnonzero(shared.like(front, colour).any(1)).mean() for colour in (shared.GREEN, RED)]
    assert rows[0] < rows[1]  # up is up
    assert page.title() == "two balls"
    page.mouse.move(500, 300)
    page.mouse.down()
    page.mouse.move(500 + 180 * np.pi, 300, steps=4)  # half a turn
    page.mouse.up()
    shared.until(lambda: shared.shares(seen(page, tmp_path / "back.png"), BLUE)[0] > 0.03)
    page.get_by_role("button", name="Reset view").click()
    shared.until(lambda: shared.shares(seen(page, tmp_path / "again.png"), RED)[0] > 0.03)
    assert asked == [f"file://{tmp_path}/two-balls.html"]
