"""The studio's page, as pages without a browser see it, around real runs of the miniature models."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from pages import PATIENCE, Page, free_port, settle, until
from PIL import Image
from splatgen_viewer.studio import Studio
from splatgen_viewer.studio_grid import APART
from splatgen_viewer.studio_past_runs import PER_PAGE, labels
from splatgen_viewer.studio_program import PastRun

from splatgen import formats
from splatgen.commands import studio as verb
from splatgen.commands.common import studio_backend
from splatgen.commands.common.errors import Failure
from splatgen.config import ConfigError, from_dict, read_file
from splatgen.loop import lifecycle, object_run, resident_models
from splatgen.loop.resident_models import ResidentModels
from splatgen.loop.session import Session
from splatgen.runs import run_folder
from splatgen.runs.run_folder import Run

MINIATURE = (
    "a red cube --prior toybox-mini --reward toybox-mini --steps 4 --device cpu --views.count 2 "
    "--views.size 16 --splats.count 60 --densify.max-splats 100 --output.frames 0 --output.size 16"
)
WORDS = ("a red cube", *MINIATURE.removeprefix("a red cube ").split())
NEVER_MET = 10**6  # steps


class Bench:
    """A studio, and a page of it."""

    def __init__(self, viewer, session, program, page, out):
        self.viewer, self.session, self.program, self.page, self.out = viewer, session, program, page, out
        self.pressed = 0

    def until(self, done):
        """Wait while the page reads on, as a browser would."""
        return until(lambda: done() or (self.page.read(0.02) and None))

    def value(self, label, page=None):
        """What a field of a page holds."""
        page = page or self.page
        uuid = page.element(label)
        found = [m.get("value") for m in page.seen if m.get("uuid") == uuid and "value" in m]
        found += [m["updates"]["value"] for m in page.seen if is_update(m, uuid, "value")]
        return found[-1]

    def shows(self, words):
        self.until(lambda: words in self.page.texts())

    def label(self, uuid):
        """A button's label by now."""
        found = [m["props"]["label"] for m in self.page.seen if m.get("uuid") == uuid and m.get("props")]
        found += [m["updates"]["label"] for m in self.page.seen if is_update(m, uuid, "label")]
        return found[-1]

    def generate(self, **fields):
        """Fill fields and press the button; returns the session's status once the run is over."""
        number = self.session.status.number
        for label, value in fields.items():
            self.page.fill(label, value)
        self.page.press("Generate")
        self.until(lambda: self.session.status.number > number)
        self.until(lambda: not self.session.status.busy)
        return self.session.status

    def refused(self):
        """Press the button for what cannot be run; returns once the press was answered."""
        button, before = self.page.element("Generate"), len(self.page.seen)
        self.page.press("Generate")
        self.until(lambda: any(is_ready(m, button) for m in self.page.seen[before:]))

    def listed(self):
        """Past runs on the page, top first: the labels of each one's buttons."""
        content = self.viewer.studio.past_runs.list.content
        parts = content.split('<div class="row">')[1:]
        return [re.findall(r"<button[^>]*>([^<]*)</button>", part) for part in parts]

    def names(self):
        """Their folders."""
        return re.findall(r'data-deed="delete" data-of="([^"]*)"', self.viewer.studio.past_runs.list.content)

    def deed(self, name, of=""):
        """Press a button inside HTML, as page.js does."""
        self.pressed += 1
        self.page.fill("deeds", f"{self.pressed} {name} {of}")

    def click(self, row, name):
        """Press a button of a past run."""
        self.deed(name, self.until(lambda: (names := self.names())[row:] and names[row]))

    def rows(self, *options):
        """Wait for rows with these buttons, and no others of these kinds."""
        known = {"Show", "Hide", "Continue"}
        self.until(
            lambda: [[b for b in row if b in known] for row in self.listed()] == list(map(list, options))
        )


def is_ready(message, button):
    """Whether a button may be pressed again."""
    return is_update(message, button, "disabled") and not message["updates"]["disabled"]


def is_update(message, uuid, name):
    return message["type"] == "GuiUpdateMessage" and message["uuid"] == uuid and name in message["updates"]


@contextlib.contextmanager
def bench(out, *words, ahead=False):
    """A studio of the miniature models, as its command makes it."""
    argv = [*WORDS, *words, "--out", str(out)]
    options = verb.read(argv)
    verb.check(options)
    session = Session(
        ResidentModels(), check=lambda c: verb.checked(out, c), describe=studio_backend.in_words
    )
    if ahead:
        session.prepare(verb.first(options.settings))
        session.wait(PATIENCE)
    program = verb.workshop(session, options, argv)
    try:
        with Studio(program, host="127.0.0.1", port=free_port()) as viewer, Page(viewer) as page:
            yield Bench(viewer, session, program, page, out)
    finally:
        session.close(PATIENCE)


def config_of(run):
    return from_dict(read_file(run / "config.json"))


def made(out):
    """Folders of runs, oldest first."""
    runs = [path for path in out.iterdir() if path.name[0] != "."]
    return sorted(runs, key=lambda path: run_folder.read(Run(folder=path))["started"])


def is_splats(message):
    return message["type"] == "GaussianSplatsMessage"


# One prompt after the other


def test_two_prompts_in_a_row_and_the_second_loads_nothing(tmp_path, monkeypatch):
    loads = []
    load = resident_models.load_prior
    monkeypatch.setattr(resident_models, "load_prior", lambda *args: (loads.append(args[0]), load(*args))[1])
    with bench(tmp_path) as it:
        assert it.value("Prompt") == "a red cube"
        first = it.generate()
        it.page.wait(is_splats)
        it.shows("step 4 of 4")
        second = it.generate(Prompt="a blue sphere", Seed=5)
        it.shows("<b>a blue sphere</b> · done")
        assert (first.state, second.state) == ("done", "done")
        assert loads == ["toybox-mini"]
        assert it.page.wait(lambda m: "buffer" in (m.get("updates") or {}))  # the scene moved on
    a, b = made(tmp_path)
    assert (config_of(a).prompt, config_of(a).seed) == ("a red cube", 0)
    assert (config_of(b).prompt, config_of(b).seed) == ("a blue sphere", 5)
    splats = formats.load(Run(folder=b).splats_ply)
    assert len(splats.means) >= 60


def test_models_are_loaded_before_the_first_press(tmp_path, monkeypatch):
    with bench(tmp_path, ahead=True) as it:
        monkeypatch.setattr(resident_models, "load_prior", None)
        assert it.generate(Prompt="a blue sphere").state == "done"


def test_enter_in_the_prompt_generates(tmp_path):
    with bench(tmp_path) as it:
        it.page.fill("Prompt", "a blue sphere")
        form = it.page.wait(lambda m: m["type"] == "GuiFormMessage")
        it.page.send(type="GuiFormSubmitMessage", uuid=form["uuid"])
        it.until(lambda: it.session.status.number == 1)
        it.until(lambda: not it.session.status.busy)
        assert it.session.status.job.config.prompt == "a blue sphere"


def test_a_press_during_a_run_adds_a_job_and_two_presses_add_one(tmp_path, monkeypatch):
    with bench(tmp_path) as it:
        button = it.page.element("Generate")
        it.page.fill("Steps", NEVER_MET)
        it.page.press("Generate")
        it.until(lambda: it.session.status.state == "running")
        it.until(lambda: it.label(button) == "Add to the queue")
        it.page.fill("Steps", 3)
        for seed in (1, 2, 3):
            it.page.fill("Seed", seed)
            it.page.press("Generate")
            it.page.press("Generate")
            it.until(lambda: len(it.session.waiting) == seed)  # noqa: B023
        it.shows('data-deed="cancel" data-of="4"')
        monkeypatch.setattr(studio_backend, "TWICE", 0.0)  # long after
        it.page.press("Generate")
        it.shows("is in the list already: another seed makes another")
        assert len(it.session.waiting) == 3
        it.deed("up", 4)
        it.until(lambda: [entry.number for entry in it.session.waiting] == [2, 4, 3])
        it.deed("cancel", 2)
        it.until(lambda: [entry.number for entry in it.session.waiting] == [4, 3])
        it.deed("stop")
        it.until(lambda: not it.session.waiting and not it.session.status.busy)
        it.until(lambda: it.label(button) == "Generate")
        it.shows("stopped · sds, toybox-mini")
    found = [
        (read["status"], read["seed"])
        for read in (run_folder.read(Run(folder=run)) for run in made(tmp_path))
    ]
    assert found == [("stopped", 0), ("done", 3), ("done", 2)]


def test_the_run_at_work_is_paused_steered_and_stopped_and_goes_on(tmp_path):
    with bench(tmp_path) as it:
        it.page.fill("Steps", NEVER_MET)
        it.page.press("Generate")
        it.until(lambda: it.session.status.state == "running")
        it.shows(f"of {NEVER_MET:,}")
        it.page.press("Pause")
        it.until(lambda: it.session.status.state == "paused")
        it.shows("<b>a red cube</b> · paused")
        it.page.fill("guidance.scale", 4.0)
        it.page.press("Apply")
        it.shows("guidance.scale is 4 from the next step on")  # buttons pressed at once may overtake
        it.page.press("Stop and keep")
        it.until(lambda: it.session.status.state == "stopped")
        folder = it.session.status.folder
        assert json.loads((folder / "steering.jsonl").read_text())["value"] == 4.0
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(
            text.replace(str(NEVER_MET), str(run_folder.read(Run(folder=folder))["steps"] + 3))
        )
        run_folder.update(Run(folder=folder), status="stopped")  # so that the shelf reads it again
        it.rows(["Show", "Continue"])
        it.until(lambda: it.program.past()[0].told.count(f"{NEVER_MET:,}") == 0)
        it.click(0, "continue")
        it.until(lambda: it.session.status.state == "done")
        assert it.session.status.folder == folder
        it.rows(["Show"])


def test_a_new_run_begins_with_curves_and_candidates_of_its_own(tmp_path):
    with bench(tmp_path) as it:

        def charts():
            return [m for m in it.page.seen if m["type"] == "GuiUplotMessage"]

        it.page.fill("Preference", "psd")
        it.page.fill("Steps", NEVER_MET)
        it.page.press("Generate")
        it.until(lambda: "preference strength" in {m["props"]["title"] for m in charts()})
        it.shows("win")
        it.page.press("Stop and keep")
        it.until(lambda: it.session.status.state == "stopped")
        old, before = charts(), len(it.page.seen)
        it.generate(Preference="none", Steps=4)
        it.shows("<b>a red cube</b> · done")
        gone = {m["uuid"] for m in it.page.seen if m["type"] == "GuiRemoveMessage"}
        assert {m["uuid"] for m in old} <= gone
        fresh = {m["props"]["title"] for m in it.page.seen[before:] if m["type"] == "GuiUplotMessage"}
        assert "preference strength" not in fresh


def test_all_pages_see_the_same(tmp_path):
    with bench(tmp_path) as it, Page(it.viewer) as other:
        it.page.fill("Prompt", "a blue sphere")
        it.until(lambda: (other.read(0.02), it.value("Prompt", other) == "a blue sphere")[1])
        other.press("Generate")
        it.until(lambda: it.session.status.number == 1 and not it.session.status.busy)
        for page in (it.page, other):
            it.until(lambda: (page.read(0.02), "<b>a blue sphere</b> · done" in page.texts())[1])  # noqa: B023
            page.wait(is_splats)
        with Page(it.viewer) as late:
            late.wait(is_splats)
            late.wait(lambda m: "<b>a blue sphere</b> · done" in str(m))


# What cannot be run


def test_an_unknown_word_shows_its_message_and_the_nearest_prompt_as_a_button(tmp_path):
    with bench(tmp_path) as it:
        it.page.fill("Prompt", "a bleu spere <b>")
        it.page.press("Generate")
        it.shows("does not know")
        assert "&#x27;&lt;b&gt;&#x27;" in it.page.texts()
        button = it.until(
            lambda: [
                m["uuid"]
                for m in it.page.seen
                if m["type"] == "GuiUpdateMessage" and m["updates"].get("label") == "a blue sphere"
            ]
        )
        it.page.send(type="GuiUpdateMessage", uuid=button[0], updates={"value": True})
        it.until(lambda: it.value("Prompt") == "a blue sphere")
        assert it.generate().state == "done"
    (run,) = made(tmp_path)
    assert config_of(run).prompt == "a blue sphere"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Prompt": " "}, "the prompt is empty"),
        ({"Prompt": "a red\ncube"}, "has a line break"),
        ({"Prompt": "x" * 3000}, "shorten it to 2,000"),
        ({"Prior": "sd15"}, "splatgen fetch sd15"),
        ({"Prior": "nothing"}, "no prior &#x27;nothing&#x27;"),
        ({"Score": "nothing"}, "score is &#x27;nothing&#x27;: choose one of sds"),
        ({"More": "guidance.scle = 3"}, "unknown setting guidance.scle; did you mean guidance.scale?"),
        ({"More": "guidance.scale"}, "more settings: "),
        ({"More": "guidance.scale = nan"}, "guidance.scale is nan: give a finite number"),
        ({"More": "psd.rho = 0.5"}, "psd.rho is 0.5: it acts with --preference psd only"),
        ({"More": "views.count = 3\nprior = 'mvdream'"}, "give a multiple of 4"),
        ({"Steps": 0}, "steps is 0: give at least 1"),
        ({"Start from": "../../etc"}, "there is no preset or run &#x27;../../etc&#x27; to start from"),
    ],
)
def test_what_cannot_be_run_is_said_in_words_and_leaves_nothing(tmp_path, fields, words):
    with bench(tmp_path / "out") as it:
        for label, value in fields.items():
            it.page.fill(label, value)
            if label == "Prior":  # which has words of its own, in the same place
                it.shows("the other settings are still those of")
        it.refused()
        it.shows(words)
        assert it.session.status.number == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory: take --budget 8gb"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("an oversight"), "this is a bug: KeyError: &#x27;an oversight&#x27;"),
    ],
)
def test_a_run_that_fails_says_why_and_the_next_one_is_made(tmp_path, monkeypatch, error, words):
    def fail(*_):
        raise error

    with bench(tmp_path) as it:
        with monkeypatch.context() as patch:
            patch.setattr(lifecycle, "run_loop", fail)
            assert it.generate().state == "failed"
            it.shows(words)
        assert it.generate().state == "done"
        it.shows("<b>a red cube</b> · done")


def test_hints_are_those_of_the_toybox_while_its_prior_is_chosen(tmp_path):
    def visible(it):
        words = it.page.element("Words")
        found = [m["updates"]["visible"] for m in it.page.seen if is_update(m, words, "visible")]
        return found[-1] if found else True

    with bench(tmp_path) as it:
        it.shows("<b>colours</b> red, orange")
        it.page.fill("Prior", "sd15")
        it.until(lambda: visible(it) is False)
        it.shows("for toybox-mini: a preset for sd15 under Start from would change them")
        it.page.fill("Prior", "toybox")
        it.until(lambda: visible(it) is True)
        it.page.fill("Examples", "a green torus")
        it.until(lambda: it.value("Prompt") == "a green torus")


# Settings


def test_a_preset_changes_the_fields_but_not_the_prompt_nor_what_the_command_line_said(tmp_path):
    with bench(tmp_path) as it:
        it.page.fill("Prompt", "a blue sphere")
        it.page.fill("Start from", "psd")
        it.until(lambda: it.value("Preference") == "psd")
        status = it.generate()
        assert status.state == "done"
    (run,) = made(tmp_path)
    found = config_of(run)
    assert (found.preference, found.prompt, found.prior) == ("psd", "a blue sphere", "toybox-mini")
    assert found.splats.count == 60


def test_every_preset_can_be_started_from(tmp_path):
    with bench(tmp_path) as it:
        for name in it.program.choices.bases:
            form = it.program.form(name)
            assert (form.prompt, form.steps, form.prior) == ("a red cube", 4, "toybox-mini")


def test_the_words_of_the_command_line_keep_their_place_after_a_preset():
    assert verb.without_preset(["a", "--preset", "psd", "--steps", "3"]) == ["a", "--steps", "3"]
    assert verb.without_preset(["--preset=psd", "--steps", "3"]) == ["--steps", "3"]
    assert verb.without_preset(["a"]) == ["a"]


def test_options_of_what_was_deselected_are_dropped(tmp_path):
    with bench(tmp_path, "--preference", "psd", "--psd.rho", "0.5") as it:
        assert it.generate().state == "done"
        assert it.generate(Preference="none", More="guidance.scale = 3\noutput.log_every = 2").state == "done"
    first, second = made(tmp_path)
    assert config_of(first).psd.rho == 0.5
    found = config_of(second)
    assert (found.psd.rho, found.guidance.scale, found.output.log_every) == (1.0, 3.0, 2)


def test_again_is_the_same_settings_with_one_change(tmp_path):
    with bench(tmp_path) as it:
        it.generate(Prompt="a blue sphere", Score="csd", Seed=7, Guidance=5.5, More="lr.means = 0.004")
        other = {"Prompt": "a red cube", "Score": "sds", "Seed": 0, "Guidance": 9.0, "More": ""}
        for label, value in other.items():
            it.page.fill(label, value)
        it.click(0, "again")
        it.until(lambda: it.value("Guidance") == 5.5)  # filled after the steps
        assert (it.value("Prompt"), it.value("Seed")) == ("a blue sphere", 7)
        assert it.generate(Steps=3).state == "done"
    first, second = (read_file(run / "config.json") for run in made(tmp_path))
    assert second["lr"]["means"] == 0.004
    assert {**first, "steps": 3} == second


# Past runs


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Two finished runs of an earlier session, the second one newer, and a broken folder."""
    out = tmp_path_factory.mktemp("shelf")
    options = verb.read([*WORDS, "--out", str(out)])
    for number, prompt in enumerate(("a red cube", "a blue sphere")):
        given = dataclasses.replace(options.settings, prompt=prompt)
        object_run.generate(given, out=out, command=["test"], name=f"run-{number}")
    (out / "broken").mkdir()
    (out / "broken" / "run.json").write_text("{")
    return out


def centres(it, name):
    """Where splats are in the scene, and whether they are visible; the last of that name."""
    found = [m for m in it.page.seen if is_splats(m) and m["name"] == name]
    return found[-1] if found else None


def test_runs_of_earlier_sessions_are_there_with_their_pictures(shelf):
    with bench(shelf) as it:
        it.rows(["Show"], ["Show"])
        text = it.viewer.studio.past_runs.list.content
        it.until(lambda: text in it.page.texts())
        assert text.index("<b>a blue sphere</b>") < text.index("<b>a red cube</b>")  # newest first
        assert "sds, toybox-mini, 4 steps, seed 0" in text
        assert re.search(r"scored by toybox-mini: -?0\.\d{3}", text)
        images = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
        assert len(images) == 2
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[0]))))
        assert picture.shape == (96, 96, 3)
        assert picture.std() > 1  # not blank


def test_one_is_shown_in_the_middle_and_two_side_by_side_under_one_camera(shelf):
    with bench(shelf) as it:
        it.click(1, "show")
        first = it.until(lambda: centres(it, "/past/0"))
        settle(it.viewer, it.page)
        assert position(it, "/past/0") == (0.0, 0.0, 0.0)
        count = len(formats.load(Run(folder=shelf / "run-0").splats_ply).means)
        assert len(first["props"]["buffer"]) == 32 * count
        it.rows(["Show"], ["Hide"])
        it.click(0, "beside")
        it.until(lambda: centres(it, "/past/1"))
        it.shows("What differs, left and right")
        assert position(it, "/past/0") == (-APART / 2, 0.0, 0.0)
        assert position(it, "/past/1") == (APART / 2, 0.0, 0.0)
        words = [m["props"]["text"] for m in it.page.seen if m["type"] == "LabelMessage"]
        assert words[-2:] == ["a red cube", "a blue sphere"]
        moved = it.page.wait(lambda m: m["type"] == "SetCameraPositionMessage" and not m.get("initial"))
        assert np.linalg.norm(moved["position"]) > 3.0  # the page's own was there
        it.rows(["Hide"], ["Hide"])
        it.page.press("Back to the live run")
        it.rows(["Show"], ["Show"])
        for name in ("/past/0", "/past/1"):
            it.until(lambda: is_gone(it, name))  # noqa: B023


def test_labels_say_what_differs():
    def past(name, prompt, told):
        more = {"status": "done", "rewards": {}, "finished": True, "goes_on": False}
        return PastRun(name=name, prompt=prompt, told=told, **more)

    one, other = past("1", "a cube", "sds"), past("2", "a ball", "sds")
    assert labels([one, other]) == ["a cube", "a ball"]
    assert labels([one, past("3", "a cube", "csd")]) == ["sds", "csd"]
    assert labels([one, past("4", "a cube", "sds")]) == ["1", "4"]


def is_gone(it, name):
    kinds = ("GaussianSplatsMessage", "RemoveSceneNodeMessage")
    return [m["type"] for m in it.page.seen if m.get("name") == name and m["type"] in kinds][-1] == kinds[1]


def position(it, name):
    found = [m["position"] for m in it.page.seen if m["type"] == "SetPositionMessage" and m["name"] == name]
    return tuple(found[-1]) if found else (0.0, 0.0, 0.0)


def visibility(it):
    found = [m for m in it.page.seen if m["type"] == "SetSceneNodeVisibilityMessage"]
    return [m["visible"] for m in found if m["name"] == "/splats"][-1:]


def test_the_live_object_makes_room_until_it_is_wanted_or_somebody_makes_another(shelf):
    with bench(shelf) as it:
        it.page.fill("Steps", NEVER_MET)
        it.page.press("Generate")
        it.page.wait(is_splats)
        it.until(lambda: len(it.names()) == 3)
        it.click(1, "show")
        it.until(lambda: visibility(it) == [False])
        it.page.fill("Steps", 2)
        it.page.press("Generate")
        it.until(lambda: it.session.waiting)
        it.deed("stop")
        it.until(lambda: it.session.status.number == 2 and not it.session.status.busy)
        settle(it.viewer, it.page)
        assert visibility(it) == [False]  # out of the queue
        it.page.press("Back to the live run")
        it.until(lambda: visibility(it) == [True])
        it.click(1, "show")
        it.until(lambda: visibility(it) == [False])
        it.page.fill("Seed", 9)
        it.page.press("Generate")
        it.until(lambda: visibility(it) == [True])
        it.until(lambda: it.session.status.number == 3 and not it.session.status.busy)
    for run in made_here(shelf):
        run.rename(shelf.parent / run.name)


def made_here(out):
    return [path for path in out.iterdir() if path.name[:2] == "20"]


def test_a_ply_is_downloaded_whole(shelf):
    with bench(shelf) as it:
        it.click(1, "save-ply")
        start = it.page.wait(lambda m: m["type"] == "FileTransferStartDownload")
        assert start["filename"] == "a-red-cube.ply"
        it.until(lambda: sum(m["type"] == "FileTransferPart" for m in it.page.seen) == start["part_count"])
        parts = [m["content"] for m in it.page.seen if m["type"] == "FileTransferPart"]
    assert b"".join(map(bytes, parts)) == (shelf / "run-0" / "splats.ply").read_bytes()


def test_a_run_whose_folder_went_away_is_gone_and_a_broken_file_is_told(shelf, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shelf, out)
    with bench(out) as it:
        (out / "run-1" / "splats.ply").write_bytes(b"ply\nnonsense")
        it.click(0, "show")
        it.until(lambda: it.page.texts().count('class="alert"'))
        shutil.rmtree(out / "run-1")
        it.rows(["Show"])


def test_words_out_of_a_folder_are_text_on_the_page(shelf, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shelf, out)
    path = out / "run-0" / "config.json"
    path.write_text(path.read_text().replace("a red cube", "<img src=x onerror=alert(1)>"))
    with bench(out) as it:
        it.shows("&lt;img src=x onerror=alert(1)&gt;")
        assert "<img src=x" not in it.page.texts()


def test_many_runs_are_on_several_pages(shelf, tmp_path):
    out = tmp_path / "out"
    for number in range(PER_PAGE + 2):
        shutil.copytree(shelf / "run-0", out / f"run-{number}")
    with bench(out) as it:
        it.rows(*[["Show"]] * PER_PAGE)
        it.deed("page", PER_PAGE)
        it.rows(*[["Show"]] * 2)
        it.deed("page", -PER_PAGE)
        it.rows(*[["Show"]] * PER_PAGE)


def test_past_runs_are_searched_marked_put_away_and_brought_back(shelf, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shelf, out)
    with bench(out) as it:
        it.until(lambda: it.names() == ["run-1", "run-0"])
        it.page.fill("Search", "sds BLUE")
        it.until(lambda: it.names() == ["run-1"])
        it.page.fill("Search", "")
        it.deed("star", "run-0")
        it.until(lambda: "★" in it.viewer.studio.past_runs.list.content)
        it.page.fill("Which", "starred")
        it.until(lambda: it.names() == ["run-0"])
        it.page.fill("Which", "all")
        it.deed("measure", "run-0")
        it.shows("against the truth: silhouette ")
        it.deed("delete", "run-0")
        it.until(lambda: it.names() == ["run-1"])
        it.shows('data-deed="undo"')
        it.deed("undo")
        it.until(lambda: it.names() == ["run-1", "run-0"])
        it.deed("delete", "run-1")
        it.until(lambda: it.names() == ["run-0"] and it.viewer.studio.past_runs._put_away == "run-1")
        it.program.close()
    assert sorted(path.name for path in out.iterdir()) == ["broken", "run-0"]


def test_a_result_is_saved_in_other_formats_under_its_prompt(shelf):
    with bench(shelf) as it:
        it.until(lambda: len(it.names()) == 2)
        for suffix in (".spz", ".glb", ".html"):
            name, content = it.program.file("run-1", suffix)
            assert name == f"a-blue-sphere{suffix}"
            assert len(content) > 500
        with pytest.raises(ValueError, match="no picture"):
            it.program.file("run-1", ".png")


def test_an_object_that_is_opened_is_edited_into_the_prompt(shelf, tmp_path):
    content = (shelf / "run-0" / "splats.ply").read_bytes()
    with bench(tmp_path) as it:
        opened = it.program.open("mine.ply", content)
        it.viewer.studio.request.hold(opened)
        it.viewer.studio.past_runs.bring(opened.name, "mine.ply", opened.cloud)
        it.until(lambda: centres(it, "/past/0"))
        assert it.generate(**{"It shows": "a red cube", "Prompt": "a blue sphere"}).state == "done"
        it.shows("a red cube -&gt; a blue sphere")
    (run,) = made(tmp_path)
    assert (config_of(run).source, config_of(run).prompt) == ("a red cube", "a blue sphere")


def test_two_buttons_at_once_are_both_done(tmp_path):
    """Both are written into one field, and what they ask for takes a while."""
    with bench(tmp_path) as it:
        done = []
        it.viewer.studio.deeds.add("late", lambda of, _: done.append(of))
        for number in range(50):
            it.deed("late", number)
        it.until(lambda: len(done) == 50)
    assert sorted(done, key=int) == [str(number) for number in range(50)]


# The process

CODE = "import sys; from splatgen.commands.studio import main; sys.exit(main(sys.argv[1:]))"


class At:
    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/"


def test_ctrl_c_ends_it_with_a_checkpoint_of_the_run_at_work(tmp_path):
    port = free_port()
    words = [sys.executable, "-c", CODE, *WORDS, "--out", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert f"http://127.0.0.1:{port}/" in process.stderr.readline()
        with Page(At(port)) as page:
            page.fill("Steps", NEVER_MET)
            page.press("Generate")
            page.wait(is_splats)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    (run,) = made(tmp_path)
    assert (process.returncode, out) == (130, "")
    assert f"continue it with: splatgen resume {run}" in err
    assert run_folder.read(Run(folder=run))["status"] == "stopped"
    assert list((run / "checkpoints").glob("step-*"))


def test_idle_it_ends_with_success(tmp_path):
    port = free_port()
    words = [sys.executable, "-c", CODE, *WORDS, "--out", str(tmp_path / "out"), "--port", str(port)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert f"http://127.0.0.1:{port}/" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prior", "nothing"], "no prior 'nothing'"),
        (["--steps", "0"], "steps is 0"),
        (["--reward", "nothing"], "no reward 'nothing'"),
    ],
)
def test_settings_that_suit_no_prompt_are_refused_at_the_start(words, message):
    with pytest.raises((Failure, ConfigError), match=message):
        verb.check(verb.read(["--device", "cpu", *words]))


def test_the_page_imports_no_torch():
    code = "import sys, splatgen_viewer.studio; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
