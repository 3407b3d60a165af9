"""The panel of the next job: a prompt, where its settings come from, and a button."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, TypeVar

import viser

from .deeds import Deeds, Event, alert, box
from .studio_program import Form, Opened, Program, Refusal, Work
from .studio_words import words

GENERATE, QUEUE = "Generate", "Add to the queue"
MOST_STEPS = 10_000_000
CHOOSE = "choose one"
ONE, SEEDS = "one object", {"one object": 1, "2 seeds": 2, "4 seeds": 4, "6 seeds": 6, "9 seeds": 9}

T = TypeVar("T")


class Request:
    """Fields that all pages share. What cannot be run is said here, in words."""

    def __init__(self, gui: viser.GuiApi, program: Program, deeds: Deeds) -> None:
        self.gui, self.program = gui, program
        self.opened = ""  # a file to go on from
        self.busy = False  # a job is at work
        self.at_once = False  # somebody asked for a job and waits to see it
        form = program.form(program.choices.bases[0])
        with gui.add_form(None) as self.frame:
            self.prompt = gui.add_text("Prompt", form.prompt, hint="Enter generates, too")
            self.source = gui.add_text("It shows", "", visible=False, hint="What the opened object is now")
            self.generate = gui.add_button(GENERATE, color="green")
            self.said = gui.add_html("", visible=False)
            self.nearest = gui.add_button("", visible=False, hint="Take this prompt")
            self.variants = gui.add_dropdown(
                "Variants", tuple(SEEDS), initial_value=ONE, hint="Side by side under one camera, in turns"
            )
            with gui.add_folder("Settings", expand_by_default=False):
                self._fields(gui, form)
            with gui.add_folder("Words", expand_by_default=False) as self.folder:
                self.hints = gui.add_html("")
                self.examples = gui.add_dropdown("Examples", (CHOOSE,))
        self.file = gui.add_upload_button(
            "Open a file", hint="Or drop it here: .ply .spz .glb .splat, config.json"
        )
        self.put_away = gui.add_button("Leave the opened file", visible=False)
        self._known = ""  # the prior whose words are shown
        self._hint(form.prior)
        self._listen(deeds)

    def _fields(self, gui: viser.GuiApi, form: Form) -> None:
        choices = self.program.choices
        self.base = gui.add_dropdown(
            "Start from", tuple(choices.bases), initial_value=form.base, hint="A preset, or a past run"
        )
        self.prior = gui.add_dropdown("Prior", tuple(choices.priors), initial_value=form.prior)
        self.score = gui.add_dropdown("Score", tuple(choices.scores), initial_value=form.score)
        self.preference = gui.add_dropdown(
            "Preference", tuple(choices.preferences), initial_value=form.preference
        )
        self.steps = gui.add_number("Steps", form.steps, min=1, max=MOST_STEPS, step=1)
        self.seed = gui.add_number("Seed", form.seed, min=0, max=2**53, step=1)  # a page counts in doubles
        self.scale = gui.add_number("Guidance", float(form.scale), step=0.5, hint="guidance.scale")
        self.negative = gui.add_text("Negative", form.negative, hint="What to keep away from")
        self.rewards = gui.add_text("Rewards", form.rewards, hint="hpsv2=0.7 aesthetic=0.3; auto; or nothing")
        self.held_out = gui.add_text("Held out", form.held_out, hint="Rewards that only watch")
        self.methods = gui.add_text(
            "Methods", "", hint=f"Compare these, side by side: {' '.join(choices.methods)}"
        )
        self.more = gui.add_text(
            "More", form.more, multiline=True, hint="Other settings, a line each: guidance.t_min = 0.02"
        )

    def _listen(self, deeds: Deeds) -> None:
        self.generate.on_click(lambda _: self.frame.submit())
        self.frame.on_submit(lambda _: self.begin())
        self.nearest.on_click(lambda _: self._take(self.nearest.label))
        self.examples.on_update(lambda _: self._take(self.examples.value))
        self.put_away.on_click(lambda _: self.hold(None))
        deeds.add(
            "word", lambda word, _: self._take(f"a {word}" if word[:1] not in "aeiou" else f"an {word}")
        )

        @self.prior.on_update
        def _(event: Event) -> None:
            self._hint(self.prior.value)
            if event.client is not None:
                self._warn()

        @self.base.on_update
        def _(event: Event) -> None:
            if event.client is not None:  # a page chose it, not `start_from`
                self.fill(self.base.value, with_prompt=False)
                self._advise(self.form())

    def form(self) -> Form:
        """What the fields hold now."""
        return Form(
            base=self.base.value,
            prompt=self.prompt.value,
            prior=self.prior.value,
            score=self.score.value,
            preference=self.preference.value,
            steps=int(self.steps.value),
            seed=int(self.seed.value),
            negative=self.negative.value,
            scale=float(self.scale.value),
            rewards=self.rewards.value,
            held_out=self.held_out.value,
            seeds=SEEDS.get(self.variants.value, 1),
            methods=self.methods.value,
            opened=self.opened,
            source=self.source.value if self.opened else "",
            more=self.more.value,
        )

    def begin(self) -> None:
        """Ask for the job, once a press."""
        self.generate.disabled = True
        try:
            form = self.form()
            refusal = self.program.begin(form)
            self.tell(refusal)
            if refusal is None:
                self.at_once = not self.busy
                self._advise(form)
        finally:
            self.generate.disabled = False

    def _advise(self, form: Form) -> None:
        """Say what is known against some settings, if anything."""
        advice = attempt(self.tell, lambda: self.program.advice(form))
        if advice:
            self.said.content, self.said.visible = box(html.escape(advice)), True

    def tell(self, refusal: Refusal | None) -> None:
        """Say why a job was not begun, or clear what was said."""
        self.said.content = "" if refusal is None else alert(refusal.message)
        self.said.visible = refusal is not None
        if refusal is not None and refusal.nearest:
            self.nearest.label = refusal.nearest
        self.nearest.visible = refusal is not None and bool(refusal.nearest)

    def start_from(self, name: str) -> None:
        """Fill the fields with the settings of a past run, prompt and seed too."""
        self._name_base(name)
        self.fill(name, with_prompt=True)

    def hold(self, opened: Opened | None) -> None:
        """Go on from a file that was opened: an object, or settings; None for nothing any more."""
        splats = opened is not None and opened.cloud is not None
        self.opened = opened.name if opened is not None and splats else ""
        self.source.visible = self.put_away.visible = splats
        if opened is not None and opened.form is not None:
            self._name_base(opened.form.base)
            self._put(opened.form, with_prompt=True)
        if opened is not None:
            self.said.content, self.said.visible = box(html.escape(opened.told)), True

    def _name_base(self, name: str) -> None:
        """Settings to start from that are no preset."""
        self.base.options = (*self.program.choices.bases, name)
        put(self.base, name)

    def show(self, work: Work) -> None:
        """Follow the job at work."""
        self.busy = work.busy
        self.generate.label = QUEUE if work.busy else GENERATE

    def fill(self, base: str, *, with_prompt: bool) -> None:
        """Fields as a base has them."""
        form = attempt(self.tell, lambda: self.program.form(base))
        if form is not None:
            self._put(form, with_prompt=with_prompt)

    def _put(self, form: Form, *, with_prompt: bool) -> None:
        if with_prompt:
            put(self.prompt, form.prompt)
            put(self.seed, form.seed)
        fields = ("prior", "score", "preference", "steps", "scale", "negative", "rewards", "held_out", "more")
        for name in fields:
            put(getattr(self, name), getattr(form, name))

    def _warn(self) -> None:
        """Settings that were made for another prior seldom suit this one."""
        usual = attempt(self.tell, lambda: self.program.form(self.base.value))
        if usual is not None and usual.prior != self.prior.value:
            self.tell(
                Refusal(
                    message=f"the other settings are still those of {usual.base!r}, for {usual.prior}: "
                    f"a preset for {self.prior.value} under Start from would change them"
                )
            )

    def _take(self, prompt: str) -> None:
        if prompt != CHOOSE:
            put(self.prompt, prompt)
            put(self.examples, CHOOSE)
            self.tell(None)

    def _hint(self, prior: str) -> None:
        found = self.program.vocabulary(prior)
        self.folder.visible = found is not None
        if found is not None:
            self.hints.content = words(found)
            self.examples.options = (CHOOSE, *found.examples)


def attempt(tell: Callable[[Refusal | None], None], do: Callable[[], T]) -> T | None:
    """What `do` returns; what it raises in words is told instead."""
    try:
        found = do()
    except (ValueError, OSError) as error:
        tell(Refusal(message=str(error)))
        return None
    tell(None)
    return found


def put(field: Any, value: object) -> None:
    """Set a field on all pages; viser's setter is one that type checkers do not see."""
    field.value = value
