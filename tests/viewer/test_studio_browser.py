"""The studio in a real browser. Without one, or without playwright, these are skipped."""

from __future__ import annotations

import shutil

import pytest
import test_browser as shared
import test_studio as studio
from pages import BLUE, RED, balls
from test_studio import bench, config_of, made

from splatgen import formats

pytestmark = shared.pytestmark
browser, page, shelf = shared.browser, shared.page, studio.shelf  # fixtures


def wait(page, done):
    """Until something in this process is so, while the page goes on."""
    shared.until(lambda: (page.wait_for_timeout(50), done())[1], seconds=60)


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
        assert page.get_by_text("does not know").count() == 0
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
        for run in (1, 0):  # the older first
            page.get_by_role("button", name="Show").nth(run).click()
            page.get_by_role("button", name="Hide").first.wait_for()
        shared.until(lambda: shared.shares(shared.scene(page, tmp_path), BLUE)[1] > 0.02, seconds=30)
        pixels = shared.scene(page, tmp_path)
        (red, none), (nothing, blue) = shared.shares(pixels, RED), shared.shares(pixels, BLUE)
        assert red == pytest.approx(blue, rel=0.2)
        assert max(none, nothing) < 0.002
