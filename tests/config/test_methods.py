"""Published methods by name: two slots each, and nothing else."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from splatgen.config import Config, ConfigError, merge
from splatgen.config.methods import METHODS, slots
from splatgen.config.validation import validate

SCORES = ("sds", "sdi", "vsd", "csd", "nfsd", "ism", "bridge")
PREFERENCES = ("none", "weighted", "dpo", "psd", "ascent")


@pytest.mark.parametrize(
    ("name", "score", "preference"),
    [
        ("sds", "sds", "none"),
        ("sdi", "sdi", "none"),
        ("vsd", "vsd", "none"),
        ("csd", "csd", "none"),
        ("nfsd", "nfsd", "none"),
        ("ism", "ism", "none"),
        ("bridge", "bridge", "none"),
        ("rewardsds", "sds", "weighted"),
        ("rewardsdi", "sdi", "weighted"),
        ("rewardvsd", "vsd", "weighted"),
        ("dreamdpo", "sds", "dpo"),
        ("psd", "sds", "psd"),
        ("dreamreward", "sds", "ascent"),
    ],
)
def test_a_name_is_a_score_and_a_preference(name: str, score: str, preference: str) -> None:
    assert slots(name) == {"score": score, "preference": preference}


def test_these_are_all_of_them_and_no_two_are_the_same() -> None:
    assert len(METHODS) == 13
    assert len(set(METHODS.values())) == len(METHODS)


@pytest.mark.parametrize(("score", "preference"), list(itertools.product(SCORES, PREFERENCES)))
def test_every_other_one_is_score_plus_preference(score: str, preference: str) -> None:
    assert slots(f"{score}+{preference}") == {"score": score, "preference": preference}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_every_other_setting_and_runs_with_it(name: str) -> None:
    mine = Config(prompt="a red cube", steps=7, seed=3)
    found = validate(merge(mine, slots(name)))
    assert (found.score, found.preference) == METHODS[name]
    assert merge(found, {"score": mine.score, "preference": mine.preference}) == mine


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dreamdop", "did you mean 'dreamdpo'?"),
        ("rewardds", "did you mean 'rewardsds'?"),
        ("zzz", "there are: sds"),
        ("", "there are: sds"),
        ("sds+", "SCORE+PREFERENCE as in sdi+psd"),
        ("+psd", "SCORE+PREFERENCE"),
        ("psd+sds", "SCORE+PREFERENCE"),
        ("sds+psd+none", "SCORE+PREFERENCE"),
        ("sds + psd", "SCORE+PREFERENCE"),
        ("SDS", "of sds, sdi, vsd, csd, nfsd, ism, bridge, refine and none, weighted, dpo, psd, ascent"),
    ],
)
def test_what_is_neither_is_refused_with_what_there_is(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        slots(name)
    assert str(caught.value).startswith(f"no method {name!r}; ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_known_without_torch() -> None:
    code = "import sys, splatgen.config.methods; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
