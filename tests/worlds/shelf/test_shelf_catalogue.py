"""The catalogue is whole, and one that contradicts itself is refused in a line."""

import json
from pathlib import Path

import pytest

from splatgen.worlds.shelf import catalogue as module
from splatgen.worlds.shelf import gallery, grammar
from splatgen.worlds.shelf.catalogue import catalogue, read
from splatgen.worlds.shelf.words import COLORS
from splatgen.worlds.toybox import grammar as toybox

PACKAGED = Path(module.__file__).with_name("catalogue.json")


def test_every_word_of_every_caption_is_in_the_vocabulary():
    words = set(catalogue().words)
    assert len(words) == len(catalogue().words)
    assert set(COLORS) <= words
    for noun in catalogue().nouns:
        assert set(noun.split()) <= words, noun
    for caption in toybox.all_captions():
        assert set(grammar.tokens(caption)) <= words, caption


def test_nouns_are_many_and_have_their_articles_models_and_licences():
    nouns = catalogue().nouns
    assert len(nouns) >= 120
    assert sum(noun.recolour for noun in nouns.values()) >= 20
    for name, noun in nouns.items():
        assert noun.name == name
        assert noun.caption == grammar.with_article(name)
        assert noun.model.licence.startswith("CC0")
        assert noun.model.repository.count("/") == 1
        assert noun.model.file.endswith((".glb", ".gltf"))
        assert noun.color in (None, *COLORS)
    assert len({noun.model.id for noun in nouns.values()}) == len(nouns)
    assert sum(len(group) for group in catalogue().groups().values()) == len(nouns)


def test_common_words_lead_to_nouns_and_never_away_from_one():
    known = catalogue()
    own = {name for noun in known.nouns.values() for name in (noun.name, *noun.synonyms)}
    assert len(known.near) > 300
    assert set(known.near.values()) <= set(known.nouns)
    assert not own & set(known.near)


def test_the_gallery_has_a_picture_of_every_noun():
    pictures = gallery.thumbnails()
    assert list(pictures) == list(catalogue().nouns)
    assert gallery.path().stat().st_size < 400_000
    for noun, picture in pictures.items():
        low, high = zip(*picture.getextrema(), strict=True)
        assert max(high) - min(low) > 40, noun  # something is on it


def damaged(change) -> str:
    data = json.loads(PACKAGED.read_text())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (damaged(lambda d: d["nouns"][0]["synonyms"].append("taxi")), "'taxi' names 'cow' and 'taxi'"),
        (damaged(lambda d: d["nouns"][0]["synonyms"].append("cab")), "'cab' names 'cow' and 'taxi'"),
        (damaged(lambda d: d["near"].update(corgi="wolf")), "'wolf', which is no noun"),
        (damaged(lambda d: d["nouns"][0].pop("model")), "KeyError"),
        (damaged(lambda d: d.update(nouns=[3])), "no catalogue"),
        (damaged(lambda d: d.update(licences={})), "no catalogue"),
        ("[]", "no catalogue"),
        ("{", "no catalogue"),
    ],
)
def test_a_catalogue_that_contradicts_itself_is_refused_in_a_line(tmp_path, text, said):
    path = tmp_path / "catalogue.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="catalogue") as raised:
        read(path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
