"""The panel of the next run: a prompt, where its settings come from, and a button."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import viser

from .studio_program import Form, Program, Refusal, Work

GENERATE, INSTEAD = "Generate", "Stop this run and generate"
MOST_STEPS = 10_000_000
CHOOSE = "choose one"

Event = viser.GuiEvent[Any]
T = TypeVar("T")


class Request:
    """Fields that all pages share. What cannot be run is said here, in words."""

    def __init__(self, gui: viser.GuiApi, program: Program) -> None:
        self.gui, self.program = gui, program
        form = program.form(program.choices.bases[0])
        with gui.add_form(None) as self.frame:
            self.prompt = gui.add_text("Prompt", form.prompt, hint="Enter generates, too")
            self.generate = gui.add_button(GENERATE, color="green")
            self.said = gui.add_html("", visible=False)
            self.nearest = gui.add_button("", visible=False, hint="Take this prompt")
            self.hints = gui.add_html("", visible=False)
            self.examples = gui.add_dropdown("Examples", (CHOOSE,), visible=False)
            with gui.add_folder("Settings", expand_by_default=False):
                self._fields(gui, form)
        self._hint(form.prior)
        self._listen()

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
        self.more = gui.add_text(
            "More", form.more, multiline=True, hint="Other settings, a line each: guidance.scale = 7.5"
        )

    def _listen(self) -> None:
        self.generate.on_click(lambda _: self.frame.submit())
        self.frame.on_submit(lambda _: self.begin())
        self.nearest.on_click(lambda _: self._take(self.nearest.label))
        self.examples.on_update(lambda _: self._take(self.examples.value))

        @self.prior.on_update
        def _(event: Event) -> None:
            self._hint(self.prior.value)
            if event.client is not None:
                self._warn()

        @self.base.on_update
        def _(event: Event) -> None:
            if event.client is not None:  # a page chose it, not `start_from`
                self._fill(self.base.value, with_prompt=False)

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
            more=self.more.value,
        )

    def begin(self) -> None:
        """Ask for the run, once a press."""
        self.generate.disabled = True
        try:
            self.tell(self.program.begin(self.form()))
        finally:
            self.generate.disabled = False

    def tell(self, refusal: Refusal | None) -> None:
        """Say why a run was not begun, or clear what was said."""
        self.said.content = "" if refusal is None else alert(refusal.message)
        self.said.visible = refusal is not None
        if refusal is not None and refusal.nearest:
            self.nearest.label = refusal.nearest
        self.nearest.visible = refusal is not None and bool(refusal.nearest)

    def start_from(self, name: str) -> None:
        """Fill the fields with the settings of a past run, prompt and seed too."""
        known = tuple(self.program.choices.bases)
        self.base.options = (*known, name)
        put(self.base, name)
        self._fill(name, with_prompt=True)

    def show(self, work: Work) -> None:
        """Follow the run at work."""
        self.generate.label = INSTEAD if work.busy else GENERATE

    def _fill(self, base: str, *, with_prompt: bool) -> None:
        form = attempt(self.tell, lambda: self.program.form(base))
        if form is None:
            return
        if with_prompt:
            put(self.prompt, form.prompt)
            put(self.seed, form.seed)
        put(self.prior, form.prior)
        put(self.score, form.score)
        put(self.preference, form.preference)
        put(self.steps, form.steps)
        put(self.more, form.more)

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
        self.hints.visible = self.examples.visible = found is not None
        if found is not None:
            lines = (f"<b>{html.escape(kind)}</b> {_listed(words)}" for kind, words in found.lines.items())
            self.hints.content = box("<br>".join(lines))
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


def _listed(words: Sequence[str]) -> str:
    return html.escape(", ".join(words))


def box(text: str) -> str:
    """HTML in the panels' size."""
    return f'<div style="padding: 0 1em 0.5em; font-size: 0.8em; line-height: 1.5">{text}</div>'


def alert(text: str) -> str:
    """Words about something that went wrong; any text."""
    return box(f'<span style="color: #c92a2a">{html.escape(text)}</span>')
