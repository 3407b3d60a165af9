"""Every command of benchmarks/ that README, docs or the Makefile name, in a form that takes seconds.

models.py and tiny_decoder.py run in test_benchmarks_models.py, gpu_rasterizers.py and gpu_truth.py in
test_gpu_script.py, memory_estimate.py in test_footprint.py, shelf_quality.py and shelf_prior.py in one below;
triton_kernels.py runs in `make triton`. reward_parity.py needs packages of an environment that it makes
itself from an index: here it says what it takes, `make reward-parity` runs it.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import shelf_nets
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", ROOT / "Makefile", FOLDER / "README.md", *(ROOT / "docs").glob("*.md")]
NAMED = {name for page in PAGES for name in re.findall(r"benchmarks/(\w+)\.py", page.read_text("utf-8"))}
ELSEWHERE = {"models", "tiny_decoder", "shelf_quality", "shelf_prior", "triton_kernels"}
ELSEWHERE |= {"gpu_rasterizers", "gpu_truth", "memory_estimate"}
ELSEWHERE |= {"sweep_faults"}  # in tests/sweeps/test_fleet.py, as it needs Ray
LESS = ["--captions", "1", "--seeds", "1", "--workers", "0"]
TINY = {
    "alignment": [
        "--prior",
        "toybox-mini",
        *LESS,
        "--arms",
        "sds",
        "dpo",
        "--steps",
        "2",
        "--rows",
        "OUT/rows",
    ],
    "gallery": ["OUT/gallery.png", "--prompts", "2", "--steps", "2", "--size", "24"],
    "live_viewer": ["--tiny", "--out", "OUT/result.json"],
    "mesh": ["--tiny", "--out", "OUT/result.json"],
    "overhead": ["--steps", "7", "--out", "OUT/result.json"],
    "rasterizer": ["--tiny", "--out", "OUT"],
    "reward_step": ["--rounds", "1", "--views", "1", "--times", "0.5", "--threads", "1", "--latents", "8"],
    "suite": ["--out", "OUT", "--prior", "toybox-mini", "--prompts", "1", "--steps", "1", "--workers", "1"],
    "toybox_quality": ["--ceiling", *LESS, "--set", "steps=2", "--set", 'prior="toybox-mini"'],
}
TINY["suite"] += ["--methods", "sds", "csd", "--result", "OUT/result.json"]
TINY["refine"] = ["--prior", "toybox-mini", *LESS, "--steps", "2", "--out", "OUT/result.json"]
TINY["refine"] += [f"--set={change}" for change in ("steps=4", "refine.steps=1", "refine.views=4")]
TINY["alignment"] += ["--out", "OUT/result.json"]
TINY["reward_step"] += ["--out", "OUT/result.json"]
TINY["toybox_quality"] += ["--out", "OUT/result.json"]


def run(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


def test_every_named_command_is_run() -> None:
    assert {"toybox_quality", "rasterizer"} <= NAMED
    assert {*TINY, *ELSEWHERE, "reward_parity"} >= NAMED


@pytest.mark.parametrize("name", TINY)
def test_a_command_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, [word.replace("OUT", str(tmp_path)) for word in TINY[name]], monkeypatch)
    made = [p for p in tmp_path.iterdir() if p.suffix in (".json", ".png")]
    assert made
    for path in made:
        if path.suffix == ".json":
            assert json.loads(path.read_text(encoding="utf-8"))["machine"]


def test_every_arm_of_the_alignment_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that no table has been measured for make a step; the settings of all are usable."""
    from splatgen.config import from_dict, merge
    from splatgen.config.validation import validate
    from splatgen.loop.initial_splats import starting_splats
    from splatgen.loop.step import advance, load_models
    from splatgen.scene.parameters import new_scene

    monkeypatch.syspath_prepend(str(FOLDER))
    found = runpy.run_path(str(FOLDER / "alignment_arms.py"))
    settings = runpy.run_path(str(FOLDER / "alignment_worlds.py"))["TOYBOX"].base()
    base = merge(from_dict(settings), {"prompt": "a red cube", "prior": "toybox-mini"})
    small = {
        "steps": 2,
        "reward": ["toybox-mini"],
        "views": {"size": [16], "count": 2},
        "splats": {"count": 60},
    }
    for name, settings in found["arms"]().items():
        config = validate(merge(base, settings))
        if name in found["further"]():
            config = merge(config, small)
            models, scene = load_models(config, "cpu"), new_scene(config, starting_splats(config), "cpu")
            scene.step = 1
            seen = advance(config, models, scene)
            assert not seen.failed, name
            assert torch.isfinite(seen.loss), name


@pytest.mark.parametrize("path", sorted(FOLDER.glob("results/alignment-*.json")), ids=lambda path: path.stem)
def test_a_table_of_alignment_is_made_again_from_its_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    study = runpy.run_path(str(FOLDER / "alignment.py"), run_name="tables")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert study["tables"](data["rows"], study["WORLDS"][data["prior"]]) == data["table"]


def test_alignment_on_the_shelf(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shelf_of_boxes: object,
) -> None:
    """Against boxes, by tiny networks: the settings of every arm are usable, some are run; other weights
    make rows and a table of their own; no run is started when the time is over."""
    from splatgen.config import from_dict, merge
    from splatgen.config.validation import validate
    from splatgen.rewards import shelf as rewards

    weights = shelf_nets.write(tmp_path / "weaker")
    monkeypatch.setattr(rewards, "weights_folder", lambda: weights)
    words = ["--prior", "shelf", *LESS, "--steps", "2", "--rows", str(tmp_path / "rows")]
    words += ["--weights", str(weights), "--out", str(tmp_path / "found.json")]
    words += ["--arms", "sds", "sds, 2x steps", "best, N=4, S=1"]
    run("alignment", [*words, "--seconds", "0"], monkeypatch)
    assert "No run is finished yet." in capsys.readouterr().out
    run("alignment", words, monkeypatch)
    run("alignment", words, monkeypatch)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [(row["arm"], row["calls"], row["view_calls"]) for row in found["rows"]] == [
        ("sds", 2.0, 4),
        ("sds, 2x steps", 2.0, 8),
        ("best, N=4, S=1", 8.0, 16),
    ]
    assert {row["weights"] for row in found["rows"]} == {"weaker"}
    assert {row["nearest_right"] for row in found["rows"]} <= {0.0, 1.0}
    assert found["table"].startswith("Prior weights: weaker")
    base = merge(from_dict(found["base"]), {"prompt": "a taxi", "prior": "shelf"})
    for settings in found["arms"].values():
        validate(merge(base, settings))


def test_a_run_that_fails_ends_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shelf_of_boxes: object,
) -> None:
    """A reward without weights: every run says so, none has a row, and the command does not succeed."""
    from splatgen.rewards import shelf as rewards

    weights = shelf_nets.write(tmp_path / "weights")
    monkeypatch.setattr(rewards, "weights_folder", lambda: tmp_path)
    words = ["--prior", "shelf", *LESS, "--steps", "1", "--rows", str(tmp_path / "rows")]
    words += ["--weights", str(weights), "--arms", "sds", "ascent"]
    with pytest.raises(SystemExit, match="2 runs failed and have no row"):
        run("alignment", words, monkeypatch)
    said = capsys.readouterr().err
    assert "failed: sds | " in said
    assert "failed: ascent | " in said
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prior", "shelf", "--arms", "vsd"], "shelf has no arm 'vsd': it has sds, "),
        (["--prior", "shelf", "--weights", "nowhere"], "nowhere is no folder: give the one that"),
        (["--prior", "toybox", "--weights", "."], "give --prior shelf too"),
        (["--prior", "shelf"], "shelf.npz is missing: `python -m"),
    ],
)
def test_alignment_says_what_it_cannot_do(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before a run is made."""
    monkeypatch.setenv("SPLATGEN_SHELF", str(tmp_path))
    with pytest.raises(SystemExit):
        run("alignment", words, monkeypatch)
    assert said in capsys.readouterr().err


def test_the_shelf_is_asked_for_pairs_and_colours_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from splatgen.worlds.shelf.grammar import parse
    from splatgen.worlds.shelf.sampling import held_out

    monkeypatch.syspath_prepend(str(FOLDER))
    captions = runpy.run_path(str(FOLDER / "alignment.py"), run_name="captions")["WORLDS"]["shelf"].captions
    found = captions(60, "")
    assert found[:8] == captions(8, "")
    assert [kind for kind, _ in found[:8]] == ["pair", "colour"] * 4
    texts = [text for _, text in found]
    assert len(set(texts)) == 60
    assert all(held_out(parse(text)) for text in texts)
    pairs = [text for kind, text in found if kind == "pair"]
    assert ["on top of" in text for text in pairs[:6]] == [True, False] * 3


def test_quality_on_the_shelf(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shelf_of_boxes: object,
) -> None:
    """Against boxes, by tiny networks: every kind has its row, and a second call has nothing left to do."""
    from splatgen.rewards import shelf as rewards

    weights = shelf_nets.write(tmp_path / "weights")
    monkeypatch.setattr(rewards, "weights_folder", lambda: weights)
    words = [
        "--singles",
        "1",
        "--pairs",
        "1",
        "--colours",
        "1",
        "--seeds",
        "1",
        "--ceiling",
        "--workers",
        "0",
    ]
    words += ["--set", "steps=2", "--set", f'prior_options.model="{weights}"', "--set", "reward=[]"]
    words += ["--set", "stages=[]", "--keep", str(tmp_path / "splats")]
    words += ["--rows", str(tmp_path / "rows"), "--out", str(tmp_path / "found.json")]
    run("shelf_quality", words, monkeypatch)
    run("shelf_quality", words, monkeypatch)
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 6
    assert {(row["kind"], row["ceiling"]) for row in rows} == {
        (kind, ceiling) for kind in ("single", "pair", "colour") for ceiling in (False, True)
    }
    assert "ceiling: all" in capsys.readouterr().out
    assert len([*(tmp_path / "splats").glob("*.ply")]) == 6

    words = ["--singles", "1", "--pairs", "1", "--colours", "1", "--reverse", "2"]
    words += ["--weights", str(weights), "--out", str(tmp_path / "drawn.json")]
    monkeypatch.syspath_prepend(str(FOLDER))
    import shelf_prior

    shelf_prior.main(words)
    rows = json.loads((tmp_path / "drawn.json").read_text(encoding="utf-8"))["rows"]
    assert [row["kind"] for row in rows] == ["single", "colour", "pair"]
    assert all(0 <= row["iou"] <= 1 for row in rows)


def test_the_ceiling_is_a_row_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Splats fitted to exact pictures; two more steps bring them nearer."""
    errors = []
    for steps in (1, 12):
        words = [*LESS, "--seeds", "0", "--ceiling", "--set", f"steps={steps}"]
        run("toybox_quality", [*words, "--out", str(tmp_path / "found.json")], monkeypatch)
        (row,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
        assert row["ceiling"]
        errors.append(row["psnr"])
    assert errors[1] > errors[0] + 1.0
    assert "ceiling: all" in capsys.readouterr().out


def test_what_needs_an_environment_says_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("reward_parity", ["--help"], monkeypatch)
    assert stopped.value.code == 0
    assert "--environment" in capsys.readouterr().out
