"""The page in a real browser: Chromium without a window, and WebGL on the CPU.

Screenshots stay in pytest's temporary folders. Without a browser, or without playwright, these are skipped.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import threading

import numpy as np
import pytest
from pages import BLUE, LEFT, PATIENCE, RED, RIGHT, balls, candidate, free_port, snapshot, until, viewer
from PIL import Image
from splatgen_viewer.live import Viewer
from splatgen_viewer.page import Subject
from splatgen_viewer.scene import LINES

from splatgen import formats
from splatgen.config import Config, OutputOptions, SplatOptions, ViewOptions
from splatgen.loop import object_run, object_snapshots
from splatgen.loop.snapshot import Channel, Command

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: no browser tests"
)
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed: no browser tests")

SIZE = {"width": 1000, "height": 600}  # the panels take 400 of it
SECONDS = 1000 * PATIENCE  # ms
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SHARPNESS = 0.35  # pixels of the scene for one of the page, each way: all are painted by the CPU
GREEN = (0.0, 0.6, 0.0)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport=SIZE)
    page.set_default_timeout(SECONDS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    yield page
    page.close()
    assert page.problems == []


def visit(page, it, text="step"):
    page.goto(f"{it.url}?fixedDpr={SHARPNESS}")
    page.get_by_text(text).first.wait_for()


def scene(page, folder, name="scene"):
    """The pixels of the 3D scene, without the panels and what lies over it: [h, w, 3] in 0..1."""
    path = folder / f"{name}.png"
    content = page.screenshot(path=path)
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32) / 255.0
    return pixels[200:, : SIZE["width"] - 400]


def like(pixels, colour):
    """Which pixels [h, w] are about of a colour."""
    return np.linalg.norm(pixels - np.array(colour), axis=-1) < 0.35


def shares(pixels, colour):
    """Shares of the left and the right half that are of a colour."""
    half = pixels.shape[1] // 2
    found = like(pixels, colour)
    return found[:, :half].mean(), found[:, half:].mean()


def test_the_front_view_shows_red_left_and_blue_right_and_follows_a_change(page, tmp_path):
    channel = Channel(interval=0.0)
    channel.put(snapshot(1))
    with viewer(channel) as it:
        visit(page, it)
        until(lambda: shares(scene(page, tmp_path), RED)[0] > 0.03)
        pixels = scene(page, tmp_path)
        (red, none), (nothing, blue) = shares(pixels, RED), shares(pixels, BLUE)
        assert red == pytest.approx(blue, rel=0.2)
        assert none < 0.002
        assert nothing < 0.002
        assert like(pixels, (1, 1, 1)).mean() > 0.5  # white around them
        # as many as before: for another number the page compiles its shaders anew
        channel.put(snapshot(2, balls((LEFT, BLUE), (RIGHT, GREEN), ((0.0, 0.9, 0.0), RED), count=200)))
        until(lambda: shares(scene(page, tmp_path, "changed"), GREEN)[1] > 0.03)
        pixels = scene(page, tmp_path, "changed")
        assert shares(pixels, BLUE)[0] == pytest.approx(red, rel=0.2)
        assert shares(pixels, BLUE)[1] < 0.002


def test_up_is_up(page, tmp_path):
    channel = Channel(interval=0.0)
    channel.put(snapshot(1, balls(((0.0, 0.4, 0.0), RED), ((0.0, -0.4, 0.0), BLUE), size=0.15)))
    with viewer(channel) as it:
        visit(page, it)
        until(lambda: like(scene(page, tmp_path), BLUE).mean() > 0.005)
        full = np.asarray(Image.open(tmp_path / "scene.png").convert("RGB"), np.float32)[:, :600] / 255.0
        heights = [np.flatnonzero(like(full, colour).any(1)).mean() for colour in (RED, BLUE)]
        assert heights[0] < 300 < heights[1]  # rows count downward


def test_the_background_can_be_black_or_grey(page, tmp_path):
    channel = Channel(interval=0.0)
    channel.put(snapshot(1))
    with viewer(channel) as it:
        visit(page, it)
        for name, level in (("black", 0.0), ("grey", 0.5), ("white", 1.0)):
            page.locator("input[aria-haspopup=listbox]:visible").first.click()
            page.get_by_role("option", name=name).click()
            until(lambda: like(scene(page, tmp_path, name), (level,) * 3).mean() > 0.5)  # noqa: B023


def test_cameras_of_the_run_are_drawn_on_request(page, tmp_path):
    channel = Channel(interval=0.0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    c2w[:, :3, 3] = (-1.0, -0.2, 0.5), (1.0, -0.2, 0.5)
    channel.put(snapshot(1, balls((LEFT, RED), size=0.01), cameras=c2w))
    with viewer(channel) as it:
        visit(page, it)
        until(lambda: like(scene(page, tmp_path, "without"), RED).sum() > 10)
        lines = np.array(LINES) / 255.0
        before = like(scene(page, tmp_path, "without"), lines).sum()
        page.get_by_role("checkbox").nth(1).click(force=True)
        until(lambda: like(scene(page, tmp_path, "with"), lines).sum() > before + 50)


def asked_for(page, channel):
    """The next command; the page's own events go on meanwhile."""
    until(lambda: page.wait_for_timeout(20) or channel.commands.qsize())
    return channel.commands.get()


def lengths(page):
    """How many points each chart has."""
    return page.evaluate(
        "() => Object.values(window.__viserTestpoints?.uplots ?? {}).map(u => u.chart.data[0].length)"
    )


def test_curves_grow_and_the_last_step_shows_its_candidates(page, tmp_path):
    channel = Channel(interval=0.0)
    rows = tuple({"step": n, "loss": 1 / (n + 1), "preference/gap": 0.1} for n in range(20))
    channel.put(snapshot(20, rows=rows, candidates=(candidate("win", 0.9), candidate("lose", 0.1))))
    with viewer(channel, settings={"guidance.scale": 7.5, "lr.factor": 1.0, "reward.toybox": 1.0}) as it:
        visit(page, it)
        page.get_by_role("tab", name="Curves").click()
        until(lambda: lengths(page) == [20, 20])
        page.screenshot(path=tmp_path / "curves.png")
        channel.put(snapshot(25, rows=({"step": 20, "loss": 0.01, "preference/gap": 0.2},), status="paused"))
        until(lambda: lengths(page) == [21, 21])
        page.get_by_role("tab", name="Last step").click()
        page.locator("figure").nth(1).wait_for()
        assert page.locator("figure").count() == 2
        assert page.locator("figure").first.inner_text().split() == ["win", "reward", "0.900", "weight", "1"]
        widths = "all => all.map(one => one.naturalWidth)"
        until(lambda: page.locator("figure img").evaluate_all(widths) == [16, 16])  # once they are decoded
        page.screenshot(path=tmp_path / "last.png")
        page.get_by_role("tab", name="Settings").click()
        page.screenshot(path=tmp_path / "settings.png")
        number = page.get_by_role("textbox").first
        number.fill("4.25")
        number.press("Enter")
        page.get_by_role("button", name="Apply").click()
        command = asked_for(page, channel)
        assert (command.kind, command.setting, command.value) == ("set", "guidance.scale", 4.25)
        page.get_by_text("guidance.scale is 4.25 from the next step on").wait_for()
        number.fill("-3")
        number.press("Enter")
        page.get_by_role("button", name="Apply").click()
        page.get_by_text("guidance.scale is -3: give 0 to 1,000").wait_for()
        until(lambda: page.wait_for_timeout(20) or number.input_value() == "4.25")
        assert channel.commands.qsize() == 0


def start(folder, channel):
    """A real run in a thread, which ends when it is told to."""
    config = Config(
        prompt="a red cube",
        prior="toybox-mini",
        reward=("toybox-mini",),
        preference="psd",
        steps=1_000_000,
        device="cpu",
        views=ViewOptions(count=2, size=(16,)),
        splats=SplatOptions(count=200),
        output=OutputOptions(frames=0, size=16),
    )
    results = []

    def work():
        results.append(object_run.generate(config, out=folder, command=["test"], channel=channel))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


def step(page):
    return int(page.locator("b", has_text="step ").inner_text().split()[1].replace(",", ""))


def test_a_real_run_is_watched_paused_looked_at_and_stopped(page, tmp_path):
    channel = Channel()
    with viewer(channel, settings={"guidance.scale": 7.5}) as it:
        thread, results = start(tmp_path / "runs", channel)
        try:
            visit(page, it, "of 1,000,000")
            first = step(page)
            until(lambda: step(page) > first)
            page.get_by_role("button", name="Pause").click()
            page.get_by_text("· paused").wait_for()
            at = step(page)
            page.get_by_role("checkbox").first.click(force=True)
            page.locator("img[src^=blob]").first.wait_for()
            assert step(page) == at
            page.screenshot(path=tmp_path / "paused.png")
            page.get_by_role("button", name="Continue").click()
            until(lambda: step(page) > at)
            page.get_by_role("button", name="Take a checkpoint").click()
            page.get_by_text("checkpoint of step").wait_for()
            page.get_by_role("button", name="Stop and keep").click()
            thread.join(timeout=PATIENCE)
        finally:
            channel.send(Command(kind="stop"))
            thread.join(timeout=PATIENCE)
    assert results[0].status == "stopped"


def test_our_rasterizers_picture_is_of_what_the_page_shows(page, tmp_path):
    """From the page's own camera: the same colours on the same sides, at about the same places."""
    channel = Channel(interval=0.0)
    cloud = balls((LEFT, RED), (RIGHT, BLUE))
    channel.put(snapshot(1, cloud, status="paused"))
    with viewer(channel) as it:
        visit(page, it)
        until(lambda: shares(scene(page, tmp_path), RED)[0] > 0.03)
        page.mouse.move(300, 400)
        page.mouse.down()
        page.mouse.move(360, 380, steps=5)  # around the object
        page.mouse.up()
        page.wait_for_timeout(1000)
        page.get_by_role("checkbox").first.click(force=True)
        asked = asked_for(page, channel)
        seen = np.asarray(Image.open(io.BytesIO(page.screenshot(path=tmp_path / "seen.png"))).convert("RGB"))
    look = dataclasses.replace(asked.look, width=600, height=600)
    ours = object_snapshots.picture(splats_of(cloud), look)
    Image.fromarray(ours).save(tmp_path / "ours.png")
    theirs = np.asarray(Image.fromarray(seen[:, :600]).resize(ours.shape[1::-1]))
    for colour in (RED, BLUE):
        a, b = (like(picture / 255.0, colour) for picture in (ours, theirs))
        a[: len(a) // 3] = b[: len(b) // 3] = False  # a note of the page is there
        assert (a & b).sum() / (a | b).sum() > 0.85


def splats_of(cloud):
    """Round splats of one size, as the balls are."""
    import torch

    from splatgen.scene.splats import SH_C0, Splats

    n = len(cloud)
    return Splats(
        means=torch.from_numpy(cloud.means),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        scales=torch.full((n, 3), float(np.log(0.05))),
        opacities=torch.logit(torch.from_numpy(cloud.opacities)),
        sh=((torch.from_numpy(cloud.rgbs) - 0.5) / SH_C0)[:, None],
    )


def test_save_downloads_a_ply_that_reads_back(page, tmp_path):
    channel = Channel()
    with viewer(channel) as it:
        thread, _ = start(tmp_path / "runs", channel)
        try:
            visit(page, it, "of 1,000,000")
            with page.expect_download() as download:
                page.get_by_role("button", name="Save .ply").click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
        finally:
            channel.send(Command(kind="stop"))
            thread.join(timeout=PATIENCE)
    assert path.suffix == ".ply"
    assert len(formats.load(path)) >= 190


def test_a_page_with_a_token_connects_and_reloads(page):
    channel = Channel(interval=0.0)
    channel.put(snapshot(1))
    with Viewer(channel, Subject(title="a test"), host="0.0.0.0", port=free_port()) as it:
        it.host = "127.0.0.1"
        visit(page, it, "step 1 of 100")
        page.reload()
        page.get_by_text("step 1 of 100").wait_for()
        page.goto(it.url.replace(it.access.token, "wrong"))
        assert "token" in page.content()


def test_a_page_takes_nothing_from_another_server_and_is_in_nobodys_frame(page):
    asked = []
    with viewer(Channel()) as it, viewer(Channel(), title="another") as other:
        other.server.on_client_connect(asked.append)
        page.goto(f"{it.url}?websocket=ws://127.0.0.1:{other.port}")
        page.wait_for_timeout(1500)
        assert page.get_by_text("another").count() == 0
        assert asked == []
        page.set_content(f'<iframe src="{it.url}" width="500" height="500"></iframe>')
        page.wait_for_timeout(1000)
        assert "Viser" not in [frame.title() for frame in page.frames]
        assert it.server.readers() == 0


def test_a_script_of_another_site_cannot_reach_the_run(page):
    with viewer(Channel()) as it, viewer(Channel(), title="another") as other:
        page.goto(f"{other.url}nothing")  # a page of another origin, without our rules
        opened = page.evaluate(
            """([address, protocol]) => new Promise(done => {
                const socket = new WebSocket(address, protocol);
                socket.onopen = () => done(true);
                socket.onerror = () => done(false);
            })""",
            [it.url.replace("http", "ws"), "viser-v1.1.1"],
        )
        assert opened is False
        assert it.server.readers() == 0
