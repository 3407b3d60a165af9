"""The benchmarks of full-size models, at tiny size: what they count, what they compare, what they write."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
import tiny_clip
import tiny_diffusion
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import costs
import measuring
import models
import naive_step
import random_models
import tiny_decoder

from splatgen.models.budget import LoadOptions

PREDICTIONS = {"sds": 2, "weighted-4": 8, "weighted-8x15": 2 * 8 * 8, "psd": 4, "psd-every": 4}  # of a view


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def bench(device=None):
    return costs.Bench(device=device or measuring.Processor(), tiny=True, rounds=1)


def job(method, setting="sd15x1", **more):
    return costs.Job(**{"section": "steps", "setting": setting, "method": method, **more})


@pytest.mark.parametrize(
    ("prior", "unet", "text"),
    [("sd15", 859_520_964, 123_060_480), ("mvdream", 865_910_724 + 1_660_160 + 1_280, 340_387_840)],
)
def test_full_size_is_the_published_size(prior, unet, text):
    """MVDream is Stable Diffusion 2.1 with two layers for the camera, 16 numbers to 1280 to 1280."""
    sizes = random_models.FULL[prior]
    with torch.device("meta"):
        config = random_models.CLIPTextConfig(**sizes.text)
        found = [
            random_models.UNet2DConditionModel(**sizes.unet),
            random_models.AutoencoderKL(**sizes.vae),
            random_models.CLIPTextModel(config),
        ]
    assert [sum(p.numel() for p in n.parameters()) for n in found] == [unet, 83_653_863, text]


def test_random_weights_are_the_same_at_every_call_and_neither_fade_nor_overflow():
    load_options = LoadOptions(precision="bfloat16")
    first, second = (
        random_models.networks("sd15", random_models.TINY["sd15"], load_options).unet for _ in range(2)
    )
    assert first.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    parts = random_models.networks("sd15", random_models.TINY["sd15"], LoadOptions())
    prior = random_models.prior(parts, LoadOptions())
    x = torch.randn(2, 4, 8, 8)
    eps = prior.predict(x, torch.tensor([0.5, 0.5]), prior.embed(["a", "b"]), None)
    assert 0.1 < float(eps.std()) < 10
    assert 0.01 < float(prior.decode(x).std()) < 1


@pytest.mark.parametrize("method", PREDICTIONS)
def test_images_of_a_view_are_those_of_the_formulas(method):
    config = bench().config(job(method))
    learned = [method.startswith("psd"), method == "psd-every"]
    assert [costs.images(config, n) for n in (0, 1)] == [PREDICTIONS[method] + extra for extra in learned]


@pytest.mark.parametrize("setting", ["sd15x1", "mvdreamx4"])
@pytest.mark.parametrize("method", ["sds", "weighted-4", "psd-every"])
def test_a_row_of_steps_counts_what_went_through_each_network(method, setting):
    views = costs.SETTINGS[setting][1]
    row = costs.measure_steps(bench(), job(method, setting, budget="8gb"))
    judged = {"sds": 0, "weighted-4": 4, "psd-every": 2 + 1}[method] * views
    learned = views * (method == "psd-every")
    unet = PREDICTIONS[method] * views + learned
    decoded = judged + learned  # the budget has encoder and decoder make their graphs in a second pass
    assert row["images"] == {"unet": unet, "encode": 2 * views, "decode": decoded, "reward": judged}
    assert max(row["batches"]) <= 4  # the budget's
    assert sum(row["batches"]) == unet
    assert set(row["stages_ms"]) == {"render", "model", "backward", "update"}
    assert row["step_ms"] > 0
    assert row["ratio"] < row["ratio_without_encoder"]
    assert row["peak_gb"].startswith("not measured")


def test_a_wrong_count_is_an_error(monkeypatch):
    monkeypatch.setattr(costs, "images", lambda config, step: 3)
    row = models.measure(bench(), job("sds"))
    assert "2 images went through the UNet, 2 were reported, the formulas say 3" in row["failed"]


@pytest.mark.parametrize("method", ["weighted-4", "psd-every"])
def test_calls_taken_down_have_the_gradients_of_the_step(method):
    run = bench().start(bench().config(job(method)))
    with measuring.recorded(run.networks()) as calls:
        run.window()
    asked = [call.what for call in calls if call.leaves()]
    assert asked == ["encode", *(["unet", "decode", "reward"] if method == "psd-every" else [])]
    count = len(calls)
    for what in run.networks():
        measuring.again(calls, what)()
    assert len(calls) == count  # nothing listens any more


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("sds", "mvdreamx4"),
        ("weighted-4", "sd15x4"),
        ("weighted-4", "mvdreamx4"),
        ("weighted-8x15", "sd15x1"),
        ("psd-every", "sd15x4"),
        ("psd-every", "mvdreamx4"),
    ],
)
def test_the_naive_step_finds_the_same_gradient(method, setting):
    mine = bench()
    config = mine.config(job(method, setting))
    ours, theirs = mine.start(config), mine.start(config)
    naive = naive_step.NaiveStep(config, theirs.models)
    value = ours.step().found.value
    with naive_step.written_naively(theirs.models.prior):
        row = costs.agreement(value, naive(theirs.scene), ours, naive)
    assert row["difference"] < 1e-4
    assert row.get("negatives_cosine", 1.0) > 0.99
    kept = 2 * 4 if "weighted" in method else method == "psd-every"  # predicted again; learned from
    assert naive.images == config.views.count * (PREDICTIONS[method] + kept)
    moved = [run.scene.params["means"].detach() for run in (ours, theirs)]
    assert float((moved[0] - moved[1]).abs().mean()) < 0.02 * config.lr.means


def test_a_row_of_the_naive_step_and_a_difference_that_is_an_error(monkeypatch):
    row = costs.measure_naive(bench(), job("sds"))
    assert row["ratio"] == row["naive_ms"] / row["step_ms"]
    monkeypatch.setattr(costs, "SAME", 0.0)
    assert "one of them is wrong" in models.measure(bench(), job("sds", section="naive"))["failed"]


@pytest.mark.parametrize("name", ["sd15", "mvdream"])
def test_naive_networks_are_as_before_when_it_ends(name):
    prior = random_models.prior(
        random_models.networks(name, random_models.TINY[name], LoadOptions()), LoadOptions()
    )
    prior.unet.to(memory_format=torch.channels_last)
    before = {k: type(p) for k, p in prior.unet.attn_processors.items()}
    with naive_step.written_naively(prior):
        assert not {type(p) for p in prior.unet.attn_processors.values()} & set(before.values())
        assert all(p.is_contiguous() for p in prior.unet.parameters())
    assert {k: type(p) for k, p in prior.unet.attn_processors.items()} == before
    assert naive_step.layout(prior.unet) == torch.channels_last
    assert naive_step.layout(prior.vae) == torch.contiguous_format


# Memory, which is counted and bounded on CUDA only: here a card on paper


class PaperCard(measuring.Processor):
    """On it 2 GB are taken, and a GB more for each image of the UNet's largest batch."""

    def __init__(self):
        self.taken, self.limit = 2.0, float("inf")

    def hook(self, network, args):
        if isinstance(network, UNet2DConditionModel):
            if 2.0 + len(args[0]) > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.taken = max(self.taken, 2.0 + len(args[0]))

    def reset(self):
        self.taken = 2.0

    def peaks(self):
        return self.taken, self.taken

    @contextlib.contextmanager
    def limited(self, gigabytes):
        self.limit = gigabytes
        yield
        self.limit = float("inf")


@pytest.fixture
def card():
    found = PaperCard()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(found.hook)
    yield found
    handle.remove()


def test_a_limit_says_whether_steps_fit(card):
    bounded = bench(card)
    fits = job("psd-every", "sd15x4", section="limits", budget="12gb", gigabytes=12.0, target=models.PSD)
    rows = [models.measure(bounded, fits)]
    assert rows[0]["fits"]
    assert rows[0]["reserved_gb"] == 2 + 8  # the budget's batch
    assert models.targets(rows)[models.PSD] == "met"
    rows += [models.measure(bounded, costs.dataclasses.replace(fits, budget="none"))]
    assert rows[1]["fits"] is False
    assert models.targets(rows)[models.PSD] == "not met: sd15 psd-every none"
    assert models.targets(rows)[models.REWARD_SDS] == "not measured"


def test_a_step_that_runs_out_of_memory_halves_and_goes_on(card):
    row = models.measure(bench(card), job("weighted-4", "sd15x4", section="halving", target=models.HALVES))
    assert (row["full_gb"], row["half_gb"], row["limit_gb"]) == (2 + 32, 2 + 16, 26)
    assert row["halved"]
    assert row["fits"]
    assert models.targets([row])[models.HALVES] == "met"


def test_a_row_that_runs_out_of_memory_says_so(card):
    card.limit = 5.0
    assert models.measure(bench(card), job("weighted-4"))["not measured"] == "out of memory"


# The whole command


def report(tmp_path, *words):
    code = models.main([*words, "--out", str(tmp_path / "out.json")])
    return code, json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))


def test_the_report_is_complete(tmp_path, capsys):
    names = ["--settings", "sd15x4", "--methods", "sds", "psd-every", "--budgets", "none", "12gb"]
    code, found = report(tmp_path, "--tiny", "--rounds", "1", *names)
    assert code == 0
    assert {"date", "machine", "gpu", "driver", "cuda", "packages", "commit", "rows", "time"} <= set(found)
    assert found["targets"] == {}  # tiny models decide nothing
    planned = models.plan(["sd15x4"], ["sds", "psd-every"], ["none", "12gb"])
    sections = [row["section"] for row in found["rows"]]
    assert sections == [each.section for each in planned]
    assert [sections.count(name) for name in ("steps", "limits", "naive")] == [4, 2, 2]
    for row in found["rows"]:
        assert ("not measured" in row) == (row["section"] == "limits"), row
        assert "failed" not in row
    assert len(capsys.readouterr().out.splitlines()) == len(planned)


def test_without_cuda_one_line_says_what_is_needed(tmp_path, capsys):
    code, found = report(tmp_path)
    assert code == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert {row["not measured"] for row in found["rows"]} == {models.NO_CUDA}
    assert set(found["targets"].values()) == {"not measured"}
    assert len(found["rows"]) == len(models.plan())


def test_the_plan_has_every_method_at_every_budget_and_all_targets():
    jobs = models.plan(compiled=True)
    cells = {(j.setting, j.method, j.budget) for j in jobs if j.section == "steps"}
    assert len(cells) == 4 * 5 * 5
    assert {j.target for j in jobs} == {None, models.PSD, models.REWARD_SDS, models.HOLDS, models.HALVES}
    assert {j.section for j in jobs} == set(costs.MEASURES)


def test_rows_that_came_too_late_say_so(tmp_path):
    _, found = report(tmp_path, "--tiny", "--minutes", "0", "--methods", "sds")
    assert {row["not measured"] for row in found["rows"]} == {"the time was up"}


def test_the_worst_ratio_decides():
    rows = [{**job("sds").named(), "ratio": ratio} for ratio in (1.05, 1.2)]
    name = f"a step over its network calls, at most {models.RATIO}"
    assert models.targets(rows[:1])[name].startswith("met: 1.05")
    assert models.targets(rows)[name].startswith("not met: 1.2")


# The tiny autoencoder's rankings


@settings(max_examples=30)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_tau_counts_pairs_in_the_same_order(a, b):
    pairs = [(i, j) for i in range(6) for j in range(i)]
    same = sum((a[i] > a[j]) == (b[i] > b[j]) for i, j in pairs)
    found = tiny_decoder.tau(torch.tensor(a).double(), torch.tensor(b).double())
    assert found == pytest.approx(2 * same / len(pairs) - 1)


def test_tau_of_ties():
    assert tiny_decoder.tau(torch.zeros(3), torch.arange(3.0)) == 0
    a, b = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    assert tiny_decoder.tau(a, b) == pytest.approx(2 / (2 * 3) ** 0.5)  # tau-b


def test_what_the_other_winner_costs():
    full, tiny = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([2.0, 1.0, 3.0, 0.0])
    found = tiny_decoder.compared(full, tiny)
    assert found["same_winner"] == 0
    assert found["same_ends"] == 1  # 0 and 2 are the best two of both
    assert found["lost"] == pytest.approx(1.0 / float(full.std()))
    same = tiny_decoder.compared(full, full)
    assert (same["tau"], same["same_winner"], same["lost"]) == (1, 1, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Published layouts with few random weights."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_diffusion.write_folder(folder / "sd15", "sd15")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_diffusion.tiny_vae().save_pretrained(folder / "taesd")
    tiny_clip.write_hpsv2(folder)
    return folder


def test_rankings_of_both_decoders_end_to_end(weights, tmp_path):
    out = tmp_path / "out.json"
    words = ["--weights", str(weights), "--pictures", "2", "--candidates", "4", "--steps", "2"]
    assert tiny_decoder.main([*words, "--times", "0.3", "0.8", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["t"] for row in found["rows"]] == [0.3, 0.8]
    assert all(row["pictures"] == 2 and row["lost"] >= 0 for row in found["rows"])
    assert all(-1 <= row["tau"] < 1 for row in found["rows"])  # random decoders disagree
    assert str(weights) in found["prior_source"]


def test_what_is_missing_is_named_with_the_command_that_gets_it(weights, tmp_path, capsys):
    (tmp_path / "sd15").symlink_to(weights / "sd15")
    assert tiny_decoder.main(["--weights", str(tmp_path)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["taesd", "hpsv2"]
    assert all("splatgen fetch" in line for line in lines)
