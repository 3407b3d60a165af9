"""Weights on this machine: found where they are, whole, and nothing else taken for them."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st
from loopback_hub import COMMIT, content, lay, lay_model, published_files, tensors

from splatgen.commands.common import errors
from splatgen.models import weights
from splatgen.models.catalogue import PUBLISHED, Part
from splatgen.models.weights import WeightsError

OTHER = "f" * 40
ELSEWHERE = [name for name, model in PUBLISHED.items() if any(part.url for part in model.parts)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "hub"


def fill(folder: Path, name: str) -> Path:
    """A published model in a folder of weights."""
    for part in PUBLISHED[name].parts:
        for file, data in published_files(name)[part.repo].items():
            path = folder / name / part.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder / name


# --- published models --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in ELSEWHERE])
@pytest.mark.parametrize("halves", [True, False])
def test_every_published_model_is_found_in_the_cache(cache: Path, name: str, halves: bool) -> None:
    lay_model(cache, name, halves=halves)
    found = weights.find(name)
    for part in PUBLISHED[name].parts:
        assert weights.missing(found.folders[part.folder], part.files) == []
        assert found.sources[part.folder] == f"{part.repo}@{COMMIT}"
    assert PUBLISHED[name].parts[0].repo in found.source


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_published_model_is_found_in_a_folder(tmp_path: Path, name: str) -> None:
    own = fill(tmp_path / "w", name)
    found = weights.find(name, str(tmp_path / "w"))
    assert found.main == own
    assert found.source == str(own)
    assert all(found.folders[part.folder] == own / part.folder for part in PUBLISHED[name].parts)


def test_a_part_that_is_not_on_the_hub_is_found_beside_the_cache(cache: Path) -> None:
    lay_model(cache, "aesthetic")
    with pytest.raises(WeightsError, match="aesthetic is not on this machine"):
        weights.find("aesthetic")
    part = PUBLISHED["aesthetic"].parts[1]
    folder = weights.elsewhere(part)
    folder.mkdir(parents=True)
    (folder / part.files[0]).write_bytes(b"head")
    assert weights.find("aesthetic").folders["head"] == folder


def test_a_folder_comes_before_the_cache_and_nowhere_else_is_looked(cache: Path, tmp_path: Path) -> None:
    lay_model(cache, "taesd")
    assert weights.find("taesd", str(tmp_path / "w")).main.name == COMMIT
    own = fill(tmp_path / "w", "taesd")
    assert weights.find("taesd", str(tmp_path / "w")).main == own
    (own / "config.json").unlink()
    with pytest.raises(WeightsError, match="take that folder away to use the cache"):
        weights.find("taesd", str(tmp_path / "w"))


def test_what_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        weights.find("sd15")
    assert str(error.value) == "sd15 is not on this machine: `splatgen fetch sd15` gets it (2.1 GB)"
    with pytest.raises(
        WeightsError, match=r"after accepting the licence at https://huggingface\.co/DeepFloyd/"
    ):
        weights.find("deepfloyd")
    with pytest.raises(
        WeightsError, match=r"neither in .*a w nor in the cache: `splatgen fetch sd15 --weights '"
    ):
        weights.find("sd15", str(tmp_path / "a w"))
    with pytest.raises(ValueError, match="did you mean 'sd15'"):
        weights.find("sd-15")


def test_a_link_that_leads_nowhere_and_an_unfinished_blob_are_missing(cache: Path) -> None:
    (snapshot,) = lay_model(cache, "sd15")
    blob = (snapshot / "unet" / "diffusion_pytorch_model.fp16.safetensors").resolve()
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    with pytest.raises(WeightsError, match=r"sd15 lacks unet/diffusion_pytorch_model\S+ in .*` completes it"):
        weights.find("sd15")


@pytest.mark.parametrize(
    "file", ["unet/config.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"]
)
def test_every_file_counts(cache: Path, file: str) -> None:
    (snapshot,) = lay_model(cache, "sd15")
    (snapshot / file).unlink()
    with pytest.raises(WeightsError, match=f"sd15 lacks {file} in "):
        weights.find("sd15")


@pytest.mark.parametrize(
    "beside",
    ["unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.8bit.safetensors"],
)
def test_weights_of_another_kind_are_not_taken_for_it(cache: Path, beside: str) -> None:
    (files,) = published_files("sd15").values()
    del files["unet/diffusion_pytorch_model.fp16.safetensors"]
    lay(cache, PUBLISHED["sd15"].parts[0].repo, files | {beside: tensors()})
    with pytest.raises(WeightsError, match="sd15 lacks unet/"):
        weights.find("sd15")


def test_one_shard_of_two_is_not_whole(cache: Path) -> None:
    (repo,) = published_files("sd3")
    files = published_files("sd3")[repo]
    del files["text_encoder_3/model.fp16.safetensors"]
    half = {"text_encoder_3/model.fp16-00001-of-00002.safetensors": tensors()}
    lay(cache, repo, files | half)
    with pytest.raises(WeightsError, match="sd3 lacks text_encoder_3/model"):
        weights.find("sd3")
    full = {f"text_encoder_3/model-0000{n}-of-00002.safetensors": tensors(n) for n in (1, 2)}
    lay(cache, repo, full)
    assert weights.find("sd3").main.name == COMMIT  # the other precision is whole


def test_small_asks_for_no_weights(cache: Path) -> None:
    (files,) = published_files("sd15").values()
    lay(cache, PUBLISHED["sd15"].parts[0].repo, {n: d for n, d in files.items() if not n.endswith("tensors")})
    assert weights.find("sd15", small=True).main.name == COMMIT
    with pytest.raises(WeightsError):
        weights.find("sd15")


# --- files that are cut short -------------------------------------------------------------------------


def test_a_safetensors_file_is_torn_at_every_length_but_its_own(tmp_path: Path) -> None:
    whole, path = tensors(40), tmp_path / "w.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert weights.torn(path), length
    path.write_bytes(whole)
    assert not weights.torn(path)
    path.write_bytes(whole + b"x")
    assert weights.torn(path)


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167536\n",
        struct.pack("<Q", 2**63) + b"{}",
        header(b"[]") + b"1",
        header(b"[1]"),
        header(b'{"w": 3}'),
        header(b'{"w": {"data_offsets": ["a", "b"]}}'),
        header(b"not json"),
        header(b"[" * 100_000),
    ],
)
def test_what_is_no_safetensors_file_is_torn(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    assert weights.torn(path)


def test_real_safetensors_and_torch_files_are_whole_until_they_are_cut(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = {"a": torch.ones(3, 4), "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.float16)}
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        path = tmp_path / name
        assert not weights.torn(path)
        path.write_bytes(path.read_bytes()[:-30])
        assert weights.torn(path)


def test_damage_is_found_before_a_run_and_says_how_to_mend_it(cache: Path) -> None:
    lay(cache, "MVDream/MVDream", {"sd-v2.1-base-4view.pt": b"PK\3\4 and then the line broke"})
    lay(cache, "openai/clip-vit-large-patch14", published_files("mvdream")["openai/clip-vit-large-patch14"])
    with pytest.raises(
        WeightsError, match=r"4view\.pt is cut short or no weights: `splatgen fetch mvdream` rep"
    ):
        weights.find("mvdream")


# --- the cache ---------------------------------------------------------------------------------------


def test_the_caches_own_library_agrees_on_where_a_repository_is(cache: Path) -> None:
    from huggingface_hub import snapshot_download

    lay(cache, "a-b/c.d_e", {"config.json": b"{}"}, OTHER)
    assert str(weights.cached("a-b/c.d_e")) == snapshot_download("a-b/c.d_e", local_files_only=True)
    assert str(weights.cached("a-b/c.d_e", OTHER)) == str(weights.cached("a-b/c.d_e", "main"))


def test_a_part_of_a_repository_is_found_too(cache: Path) -> None:
    """The library keeps a listing of the whole repository, and calls a snapshot without the rest missing."""
    snapshot = lay(cache, "madebyollin/taesd", published_files("taesd")["madebyollin/taesd"])
    trees = snapshot.parent.parent / "trees"
    trees.mkdir()
    listing = {"README.md": {"size": 3, "blob_id": OTHER}, "config.json": {"size": 22, "blob_id": OTHER}}
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": listing}))
    assert weights.find("taesd").main == snapshot


@pytest.mark.parametrize("ref", ["", "main", "../../../etc", "0123", "f" * 41, "F" * 40, "\0"])
def test_a_reference_that_is_no_commit_leads_nowhere(cache: Path, ref: str) -> None:
    snapshot = lay(cache, "a/b", {"config.json": b"{}"})
    (snapshot.parent.parent / "refs" / "main").write_text(ref)
    assert weights.cached("a/b") is None


@pytest.mark.parametrize("revision", ["../../../x", "..", "/etc", "a\0b", "x" * 500, "refs/../main", ""])
def test_a_strange_revision_is_no_path(cache: Path, revision: str) -> None:
    snapshot = lay(cache, "a/b", {"config.json": b"{}"})
    outside = cache.parent / "x"
    outside.write_text(COMMIT)
    assert weights.cached("a/b", revision) == (None if revision else snapshot)


def test_a_branch_or_tag_is_found_by_its_name(cache: Path) -> None:
    snapshot = lay(cache, "a/b", {"config.json": b"{}"})
    refs = snapshot.parent.parent / "refs"
    (refs / "pr").mkdir()
    (refs / "pr" / "7").write_text(f"{COMMIT}\n")
    assert weights.cached("a/b", "pr/7") == snapshot
    assert weights.cached("a/b", "fp16") is None


# --- what a user names --------------------------------------------------------------------------------


def test_a_folder_a_file_and_an_id_are_found(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(tensors())
    assert weights.given(str(tmp_path)).main == tmp_path
    assert weights.given(str(file)).main == file
    assert weights.given(str(file)).source == str(file)
    snapshot = lay(cache, "a/b", {"config.json": b"{}"})
    assert weights.given("a/b").main == weights.given("a/b", COMMIT).main == snapshot
    assert weights.given("a/b").source == f"a/b@{COMMIT}"


def test_a_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.ckpt").write_bytes(b"numbers")
    assert weights.given("~/model.ckpt").main == tmp_path / "model.ckpt"


@pytest.mark.parametrize(
    "model",
    [
        "", " ", "../../x", "/nowhere/at/all", "a\0b", "x" * 10_000, "x/" * 5_000, "~nobody_of_that_name/x",
        "https://huggingface.co/a/b", "hf://a/b", "a/b/c", "a/../b", "a/..", "-/-", "model.pkl", "a b",
        "nowhere.safetensors", "/dev/null", "\u202e", "a/b\nc", "--help", "NUL:",
    ],
)  # fmt: skip
def test_what_is_no_weights_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as error:
        weights.given(model)
    code, text = errors.describe(error.value) or (0, "")
    assert code == errors.MISSING
    assert len(text) < 700
    assert errors.one_line(text) == text


@pytest.mark.parametrize("name", ["model.pkl", "model.py", "model", "model.zip", "model.SAFETENSORS.exe"])
def test_a_file_that_can_t_be_weights_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"import os")
    with pytest.raises(WeightsError, match=r"is no file of weights: give a folder, or \.safetensors"):
        weights.given(str(tmp_path / name))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(tensors()[:-1])
    with pytest.raises(WeightsError, match="is cut short or no weights: fetch it again"):
        weights.given(str(path))


def test_an_id_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(WeightsError, match="`hf download some/model --revision fp16` gets it"):
        weights.given("some/model", "fp16")
    with pytest.raises(WeightsError) as error:
        weights.given("some/model", "; rm -rf ~")
    assert "rm" not in str(error.value)


@forall(st.text(max_size=60))
def test_no_text_makes_given_fall(text: str) -> None:
    try:
        found = weights.given(text)
    except WeightsError:
        return
    assert found.main.exists()


# --- what an entry asks for ---------------------------------------------------------------------------

ENTRY = "unet/d.fp16*.safetensors|unet/d.safetensors|unet/d-*.safetensors"


@pytest.mark.parametrize(
    ("names", "half", "full"),
    [
        ("unet/d.fp16.safetensors unet/d.safetensors", "unet/d.fp16.safetensors", "unet/d.safetensors"),
        ("unet/d.fp16.safetensors", "unet/d.fp16.safetensors", "unet/d.fp16.safetensors"),
        ("unet/d.safetensors unet/d.non_ema.safetensors", "unet/d.safetensors", "unet/d.safetensors"),
        ("unet/x/d.safetensors d.safetensors unet/d-old/x.safetensors", "", ""),
        (
            "unet/d.fp16-00001-of-00002.safetensors unet/d-00001-of-00001.safetensors",
            "unet/d-00001-of-00001.safetensors",
            "unet/d-00001-of-00001.safetensors",
        ),
    ],
)
def test_the_first_whole_alternative_is_chosen(names: str, half: str, full: str) -> None:
    assert weights.choose(ENTRY, names.split()) == half.split()
    assert weights.choose(ENTRY, names.split(), full=True) == full.split()


def test_small_leaves_out_weights_and_nothing_else() -> None:
    part = Part(repo="a/b", files=("a.json", "b.pt", "c.safetensors|c.bin", "spiece.model", "vocab.txt"))
    assert weights.needed(part, small=True) == ("a.json", "spiece.model", "vocab.txt")
    assert weights.needed(part) == part.files
    assert weights.needed(part, without=("a", "spiece")) == ("b.pt", "c.safetensors|c.bin", "vocab.txt")


def test_zip_files_are_told_from_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", content("x"))
    assert not weights.torn(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert weights.torn(path)
