"""The marks that other programs give a meaning to in prompts are not taken for words without saying so."""

import pytest

from splatgen.commands.common import checks
from splatgen.commands.common.errors import Failure
from splatgen.config import Config


def check(prompt: str, *, negative: str = "", force: bool = False) -> str:
    return checks.check_prompts(Config(prompt=prompt, negative=negative, prior="sd15"), force=force).prompt


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a (red:1.3) cube", "a red cube"),
        ("a (shiny red:0.8) cube", "a shiny red cube"),
        ("a [blue : -1] cube, (old:2)", "a blue cube, old"),
        ("(a corgi:1.1)", "a corgi"),
    ],
)
def test_weights_are_refused_with_the_words_alone(prompt, plain):
    with pytest.raises(Failure, match="gives words a weight, which is not read here") as caught:
        check(prompt)
    assert f"write {plain!r}" in str(caught.value)
    assert check(prompt, force=True) == prompt
    with pytest.raises(Failure, match="gives words a weight"):
        check("a cube", negative=prompt)


@pytest.mark.parametrize(
    "prompt", ["a corgi (with a hat)", "a clock at 12:30", "ratio 3:4", "a (very) old [map]", "title: a (b)"]
)
def test_brackets_and_colons_of_a_sentence_stay(prompt):
    assert check(prompt) == prompt


def test_a_file_in_the_prompt_gets_its_option():
    with pytest.raises(Failure, match=r"names LoRA weights: give their file as --prior\.lora"):
        check("a corgi <lora:fluffy:0.8>")
