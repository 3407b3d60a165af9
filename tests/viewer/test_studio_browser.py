"""The studio in a real browser. Without one, or without playwright, these are skipped."""

from __future__ import annotations

import base64
import shutil

import pytest
import test_browser as shared
import test_studio as studio
from pages import BLUE, LEFT, RED, balls
from test_studio import NEVER_MET, bench, config_of, made

from splatgen import formats
from splatgen.runs import run_folder
from splatgen.runs.run_folder import Run

pytestmark = shared.pytestmark
browser, page, shelf = shared.browser, shared.page, studio.shelf  # fixtures


def wait(page, done):
    """Until something in this process is so, while the page goes on."""
    shared.until(lambda: done() or page.wait_for_timeout(50))


def finished(it, number):
    return it.session.status.number == number and not it.session.status.busy


def test_two_prompts_in_a_row_are_typed_and_made(page, tmp_path):
    with bench(tmp_path / "out") as it:
        shared.visit(page, it.viewer, "Prompt")
        prompt = page.get_by_role("textbox").first
        prompt.fill("a green torus")
        prompt.press("Enter")
        wait(page, lambda: finished(it, 1))
        page.get_by_text("a green torus · done").wait_for()
        wait(page, lambda: page.title() == "a green torus · splatgen")
        page.screenshot(path=tmp_path / "first.png")
        prompt.fill("a blue sphere")
        page.get_by_role("button", name="Generate").click()
        wait(page, lambda: finished(it, 2))
        page.get_by_text("a blue sphere · done").wait_for()
        page.get_by_text("step 4 of 4").wait_for()
    assert [config_of(run).prompt for run in made(tmp_path / "out")] == ["a green torus", "a blue sphere"]


def test_an_unknown_word_shows_its_message_and_a_prompt_to_take(page, tmp_path):
    with bench(tmp_path / "out") as it:
        shared.visit(page, it.viewer, "Prompt")
        prompt = page.get_by_role("textbox").first
        prompt.fill("a bleu spere")
        prompt.press("Enter")
        page.get_by_text("does not know 'bleu', 'spere'").wait_for()
        page.screenshot(path=tmp_path / "refused.png")
        page.get_by_role("button", name="a blue sphere").click()
        wait(page, lambda: prompt.input_value() == "a blue sphere")
        wait(page, lambda: page.get_by_text("does not know").count() == 0)
        page.get_by_role("button", name="Generate").click()
        wait(page, lambda: finished(it, 1))


def test_two_past_runs_are_side_by_side(page, tmp_path, shelf):
    out = tmp_path / "out"
    shutil.copytree(shelf, out)
    for name, colour in (("run-0", RED), ("run-1", BLUE)):
        splats = shared.splats_of(balls(((0.0, 0.0, 0.0), colour), size=0.6))
        formats.save(splats, out / name / "splats.ply")
    with bench(out) as it:
        shared.visit(page, it.viewer, "Prompt")
        page.get_by_role("tab", name="Past").click()
        page.get_by_role("button", name="Show").nth(1).click()  # the older first
        page.get_by_role("button", name="Beside").click()
        page.get_by_text("What differs, left and right").wait_for()

        def stand_apart():
            pixels = shared.scene(page, tmp_path)
            (red, none), (nothing, blue) = shared.shares(pixels, RED), shared.shares(pixels, BLUE)
            return blue > 0.02 and red == pytest.approx(blue, rel=0.2) and max(none, nothing) < 0.002

        shared.until(stand_apart)  # once the camera has stepped back


def field(page, label):
    """A field of the panels by its label."""
    return page.locator(f"div.mantine-Flex-root:has(label:text-is('{label}')) input").first


def statuses(out):
    return [run_folder.read(Run(folder=run))["status"] for run in made(out)]


FOLDED = 'document.querySelector(\'[style*="position: fixed"][style*="bottom: 0px"]\').offsetHeight'


def test_two_wait_the_first_is_stopped_and_kept_and_a_second_tab_sees_it(page, browser, tmp_path):
    out = tmp_path / "out"
    with bench(out, "--steps", str(NEVER_MET)) as it:
        shared.visit(page, it.viewer, "Prompt")
        field(page, "Prompt").press("Enter")
        wait(page, lambda: it.session.status.state == "running")
        page.get_by_role("button", name="Settings").or_(
            page.get_by_text("Settings", exact=True)
        ).first.click()
        steps = field(page, "Steps")
        steps.fill("3")
        field(page, "Prompt").fill("a blue sphere")
        field(page, "Prompt").press("Enter")
        field(page, "Prompt").press("Enter")  # a second press is the first one's
        page.get_by_text("a blue sphere waiting").wait_for()
        field(page, "Prompt").fill("a green torus")
        field(page, "Prompt").press("Enter")
        page.get_by_text("a green torus waiting").wait_for()
        page.screenshot(path=tmp_path / "queue.png")
        page.get_by_role("button", name="Earlier").click()
        prompts = ["a green torus", "a blue sphere"]
        wait(page, lambda: [entry.job.config.prompt for entry in it.session.waiting] == prompts)
        page.reload()
        page.get_by_text("a blue sphere waiting").wait_for()
        other = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        other.set_default_timeout(shared.SECONDS)
        try:
            other.goto(it.viewer.url)
            other.get_by_text("splatgen studio").first.wait_for()
            wait(other, lambda: other.title() == "a red cube · splatgen")
            wait(other, lambda: other.evaluate(FOLDED) < 100)
            shown = other.evaluate("document.documentElement.dataset.mantineColorScheme")
            other.screenshot(path=tmp_path / "phone.png")
        finally:
            other.close()
        assert shown == "dark"
        page.get_by_role("button", name="Stop and keep").first.click()
        wait(page, lambda: not it.session.waiting and not it.session.status.busy)
        page.get_by_role("tab", name="Past").click()
        page.get_by_role("button", name="Continue").wait_for()
    assert [config_of(run).prompt for run in made(out)] == ["a red cube", *prompts]
    assert statuses(out) == ["stopped", "done", "done"]


def test_four_seeds_stand_in_a_grid_and_one_of_them_goes_on(page, tmp_path):
    with bench(tmp_path / "out", "--steps", str(NEVER_MET)) as it:
        shared.visit(page, it.viewer, "Prompt")
        field(page, "Variants").click()
        page.get_by_role("option", name="4 seeds").click()
        field(page, "Prompt").press("Enter")
        wait(page, lambda: it.viewer.studio.grid.steps and min(it.viewer.studio.grid.steps) > 1)
        page.get_by_text("seed 3").first.wait_for()
        page.screenshot(path=tmp_path / "grid.png")
        page.get_by_role("button", name="Stop the worst").click()
        wait(page, lambda: [lane.state for lane in it.session.status.lanes].count("stopped") == 1)
        page.get_by_role("button", name="Only the best goes on").click()
        wait(page, lambda: [lane.state for lane in it.session.status.lanes].count("stopped") == 3)
        assert it.session.status.busy
        page.get_by_role("button", name="Stop and keep").first.click()
        wait(page, lambda: not it.session.status.busy)
    assert statuses(tmp_path / "out") == ["stopped"] * 4


DROP = """([name, content]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
    const target = document.querySelector("canvas");
    for (const kind of ["dragover", "drop"])
        target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


def test_an_object_that_is_dropped_is_shown_and_gone_on_from(page, tmp_path):
    theirs = shared.splats_of(balls((LEFT, RED)))
    formats.save(theirs, tmp_path / "theirs.ply")
    content = base64.b64encode((tmp_path / "theirs.ply").read_bytes()).decode()
    with bench(tmp_path / "out") as it:
        shared.visit(page, it.viewer, "Prompt")
        page.evaluate(DROP, ["theirs.ply", content])
        page.get_by_text("theirs.ply: 300 splats").wait_for()
        shared.until(lambda: shared.like(shared.scene(page, tmp_path), RED).mean() > 0.02)
        page.keyboard.press("Escape")
        field(page, "Prompt").press("Enter")
        wait(page, lambda: finished(it, 1))
    (run,) = made(tmp_path / "out")
    assert config_of(run).init.endswith(".ply")
