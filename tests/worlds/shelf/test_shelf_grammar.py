"""Prompts are read by meaning, canonical text comes back, and a refusal names words and a way out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splatgen.worlds.shelf import grammar
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import Caption, Item, parse, tokens
from splatgen.worlds.shelf.words import COLORS
from splatgen.worlds.toybox import grammar as toybox
from splatgen.worlds.toybox.grammar import VocabularyError

NOUNS = list(catalogue().nouns)
READ = {
    "a taxi": "a taxi",
    "Taxi": "a taxi",
    "an  old-fashioned": None,
    "a cab": "a taxi",
    "two": None,
    "a red couch": "a red couch",
    "the RED sofa!": "a red couch",
    "a violet couch": "a purple couch",
    "an orange": "an orange",
    "an orange couch": "an orange couch",
    "an orange on top of an orange couch": "an orange on top of an orange couch",
    "a jack o'lantern": "a jack-o-lantern",
    "a jack-o-lantern": "a jack-o-lantern",
    "jack o lantern": "a jack-o-lantern",
    "T-Rex": "a tyrannosaurus",
    "pumpkins": "a pumpkin",
    "cacti": "a cactus",
    "wooden boxes": None,
    "a pumpkin on top of a barrel": "a pumpkin on top of a barrel",
    "pumpkin on barrel": "a pumpkin on top of a barrel",
    "a pumpkin that is sitting on a barrel": "a pumpkin on top of a barrel",
    "a barrel below a pumpkin": "a pumpkin on top of a barrel",
    "a barrel under a pumpkin": "a pumpkin on top of a barrel",
    "a barrel beneath a pumpkin": "a pumpkin on top of a barrel",
    "a frog next to a mushroom": "a frog next to a mushroom",
    "a frog beside a mushroom": "a frog next to a mushroom",
    "a frog and a mushroom": "a frog next to a mushroom",
    "a red couch and a blue car": "a red couch next to a blue car",
    "a frog to the left of a mushroom": "a frog next to a mushroom",
    "a frog to the right of a mushroom": "a mushroom next to a frog",
    "a photo of a castle": "a castle",
    "a yellow taxi": "a taxi",  # it is yellow
    "a cone": "a traffic cone",
    "a red cone": "a red cone",
    "a blue box": "a blue cube",
    "a box": "a cardboard box",
    "a red cube on top of a blue sphere": "a red cube on top of a blue sphere",
    "a blue and white striped sphere": "a blue and white striped sphere",
    "a green cylinder with a red front": "a green cylinder with a red front",
}


@pytest.mark.parametrize("prompt", [p for p, text in READ.items() if text])
def test_prompts_are_read(prompt):
    assert str(parse(prompt)) == READ[prompt]


@pytest.mark.parametrize("prompt", [p for p, text in READ.items() if text is None])
def test_what_is_not_known_is_refused(prompt):
    with pytest.raises(VocabularyError):
        parse(prompt)


items = st.builds(Item, st.sampled_from(NOUNS)) | st.builds(
    Item, st.sampled_from([n for n in NOUNS if catalogue().nouns[n].recolour]), st.sampled_from(COLORS)
)
pairs = st.builds(Caption, items, st.sampled_from(["on top of", "next to"]), items)
captions = st.builds(Caption, items) | pairs.filter(lambda c: c.first.noun != c.second.noun)


@given(captions)
def test_canonical_text_is_read_as_what_it_says(caption):
    found = parse(str(caption))
    own = catalogue().nouns
    plain = [
        Item(i.noun) if own[i.noun].color == i.color and not own[i.noun].recolour else i
        for i in caption.items
    ]
    assert list(found.items) == plain
    assert found.relation == caption.relation


@given(st.sampled_from(toybox.all_captions()))
def test_the_toyboxs_captions_are_captions_of_the_toybox(caption):
    assert parse(str(caption)) == caption


@given(captions)
def test_tokens_are_the_text_without_its_articles(caption):
    assert " ".join(tokens(caption)) == " ".join(w for w in str(caption).split() if w not in ("a", "an"))
    assert set(tokens(caption)) <= set(catalogue().words)
    assert len(tokens(caption)) <= 14


@pytest.mark.parametrize(
    ("prompt", "unknown", "nearest"),
    [
        ("a corgi", ("corgi",), "a dog"),
        ("a lorry", ("lorry",), "a pickup truck"),
        ("two dogs", ("two",), "a dog"),
        ("a shiny old taxi", ("shiny", "old"), "a taxi"),
        ("a corgi on a sofa", ("corgi",), "a dog on top of a couch"),
        ("a corgi below a sofa", ("corgi",), "a couch on top of a dog"),
        ("a frog with a mushroom", ("with",), "a frog next to a mushroom"),
        ("a cyan couch", ("cyan",), "a blue couch"),
        ("a dragn", ("dragn",), "a dragon"),
        ("a red fire hidrant", ("hidrant",), "a fire hydrant"),
        ("a cube", (), "a red cube"),
        ("a big red cube", ("big",), "a red cube"),
        ("a red ball next to a corgi", ("ball", "corgi"), "an earth planet next to a dog"),
        ("a beach ball", ("beach ball",), "an earth planet"),
        ("a house on fire", ("on fire",), "a house"),
        ("a cube on a barrel", ("cube",), "a wooden crate on top of a barrel"),
        ("a xyzzy", ("xyzzy",), ""),
        ("", (), ""),
    ],
)
def test_a_refusal_names_the_words_and_the_nearest_prompt_by_meaning(prompt, unknown, nearest):
    with pytest.raises(VocabularyError) as raised:
        parse(prompt)
    assert set(unknown) <= set(raised.value.unknown)
    assert raised.value.nearest == nearest
    assert "\n" not in str(raised.value)
    for word in unknown:
        assert repr(word) in str(raised.value)


@pytest.mark.parametrize(
    ("prompt", "said", "nearest"),
    [
        ("a cube", "a solid needs a colour", "a red cube"),
        ("犬", "prompts are English", ""),
        ("a red cube next to", "knows these words but not this sentence", "a red cube"),
        (
            "a red cube next to a taxi",
            "'cube' together with other solids only",
            "a wooden crate next to a taxi",
        ),
        ("a red barrel", "the colour of a barrel can't be changed", "a barrel"),
        ("a blue taxi", "the colour of a taxi can't be changed", "a taxi"),
        ("a car next to a car", "two of a kind", "a car"),
        ("a frog on a barrel on a table", "two things at most", "a frog on top of a barrel"),
        ("on a table", "needs a thing on either side", "a wooden table"),
        ("", "the prompt is empty", ""),
    ],
)
def test_a_refusal_says_what_cannot_be_done(prompt, said, nearest):
    with pytest.raises(VocabularyError, match=said) as raised:
        parse(prompt)
    assert raised.value.nearest == nearest


WORDS = [*catalogue().words, *catalogue().near, "on", "under", "a", "shiny", "and", "-", "'", "é"]


@given(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join) | st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_prompt_that_works(text):
    try:
        caption = parse(text)
    except VocabularyError as error:
        if error.nearest:
            assert str(parse(error.nearest)) == error.nearest
    else:
        assert str(parse(str(caption))) == str(caption)


def test_a_long_prompt_is_read_in_no_time():
    with pytest.raises(VocabularyError) as raised:
        grammar.parse("shiny " * 300 + "taxi")
    assert raised.value.nearest == "a taxi"
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a frog wearing a crown", "the shelf does not know 'wearing'; the shelf cannot use 'frog' there; "),
        (
            "a frog on top of a barrel next to a taxi",
            "the shelf cannot use 'next to', 'taxi' there; ",
        ),
        ("a corgi", "the shelf does not know 'corgi'; the nearest"),
    ],
)
def test_words_that_are_known_are_not_called_unknown(prompt, told):
    with pytest.raises(VocabularyError) as raised:
        parse(prompt)
    assert str(raised.value).startswith(told)
