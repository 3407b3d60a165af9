"""Files of prompts in every layout, and what holds none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splatgen.sweeps.prompts import MOST_PROMPTS, find, included, read_prompts
from splatgen.worlds.shelf.grammar import Caption, parse
from splatgen.worlds.shelf.sampling import held_out_pair

TWO = ["a corgi, wearing a hat", "a castle"]
LAYOUTS = {
    "t3bench.txt": "\ufeffa corgi, wearing a hat\r\n\r\na castle\n",
    "a.csv": 'id,Prompt,kind\n1,"a corgi, wearing a hat",single\n2,a castle,single\n',
    "bare.csv": '"a corgi, wearing a hat"\na castle\n',
    "texts.json": json.dumps(TWO),
    "objects.json": json.dumps([{"prompt": TWO[0], "id": 1}, {"caption": TWO[1]}]),
    "gpteval3d.json": json.dumps({"easy": [{"prompt": TWO[0]}], "hard": [TWO[1]]}),
    "by-id.json": json.dumps({"0": {"prompt": TWO[0]}, "1": {"prompt": TWO[1]}}),
    "a.jsonl": json.dumps({"text": TWO[0]}) + "\n\n" + json.dumps(TWO[1]) + "\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LAYOUTS[name], encoding="utf-8")
    assert read_prompts(find(str(tmp_path / name))) == (TWO, [])


def test_what_is_there_again_is_taken_once_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("b\na\n a \nb\nb\nc\n")
    assert read_prompts(tmp_path / "a.txt") == (["b", "a", "c"], ["b", "a"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no prompt"),
        ("a.txt", b"\xff\xfe\x00a", "is not text in UTF-8"),
        ("a.txt", b"a\n" * 2**22, "has 8 MB: a file of prompts has 4 at most"),
        ("a.txt", "\n".join(map(str, range(MOST_PROMPTS + 1))).encode(), "10,001 prompts: take 10,000"),
        ("a.csv", b"id,kind\n1,b\n", "no column is named prompt, of id, kind"),
        ("a.csv", b"id,prompt\n1\n", "row 1 has 1 cells: it has no prompt"),
        ("a.csv", b'prompt\n"a\n', "a.csv: "),
        ("a.json", b"{", "a.json: "),
        ("a.json", b"3", "holds a int: write a list of prompts"),
        ("a.json", b"[3]", "entry 1 of the file is no text and has no field `prompt`"),
        ("a.json", b'[{"name": "a"}]', "has no field `prompt`"),
        ("a.json", b"[" * 100_000, "a.json: "),
        ("a.jsonl", b'"a"\n{', "line 2 is not JSON"),
    ],
)
def test_what_holds_no_prompts_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_prompts(tmp_path / name)
    assert "\n" not in str(raised.value)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=1)))
def test_json_and_jsonl_give_back_what_was_written(prompts: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for path, text in (
            (Path(folder, "a.json"), json.dumps(prompts)),
            (Path(folder, "a.jsonl"), "".join(json.dumps({"prompt": p}) + "\n" for p in prompts)),
        ):
            path.write_text(text)
            if not any(prompt.strip() for prompt in prompts):
                continue
            found, again = read_prompts(path)
            assert found == list(dict.fromkeys(p.strip() for p in prompts if p.strip()))
            assert set(again) <= set(found)


def test_our_own_set_is_a_hundred_captions_of_the_shelf() -> None:
    found, again = read_prompts(included()["shelf-100"])
    assert (len(found), again) == (100, [])
    captions = [parse(prompt) for prompt in found]
    assert [str(caption) for caption in captions] == found
    things = [c for c in captions if isinstance(c, Caption)]
    kinds = [c.relation or ("colour" if c.first.color else "single") for c in things]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "single": 42, "colour": 18, "on top of": 20, "next to": 20,
    }  # fmt: skip
    assert all(held_out_pair(c) for c in things if c.second is not None)
