"""Budgets, want of memory at every place, and a GPU that goes away: nothing is lost."""

import dataclasses

import pytest
import steps
import torch
from pretend import STATE, limited
from pretend.device import NAME

from splatgen.commands.common.errors import describe
from splatgen.loop import object_run
from splatgen.models.budget import BUDGETS
from splatgen.models.paging import pages_of
from splatgen.runs import checkpoint
from splatgen.runs import run_folder as runs

pytestmark = pytest.mark.skipif(torch.cuda.get_device_name() != NAME, reason="of the pretended device")

NETWORKS = {  # of a prior and its reward
    "denoiser": lambda models: models.prior.unet,
    "encoder": lambda models: models.prior.vae.encoder,
    "decoder": lambda models: models.prior.vae.decoder,
    "reward": lambda models: models.ensemble.rewards[0].image_tower,
}
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def start(preference="psd", **more):
    return steps.config("sd15", "sds", preference, **{"steps": 1, **more})


def generate(folder, given, models):
    return object_run.generate(given, out=folder, command=["test"], models=models)


def the_run(folder):
    (found,) = folder.iterdir()
    return runs.open_run(found)


def broken(monkeypatch, network, act, *, after=0):
    """A network at whose call number `after` something happens."""
    calls, forward = [], network.forward

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == after + 1:
            act()
        return forward(*args, **kwargs)

    monkeypatch.setattr(network, "forward", failing)


def run_out():
    raise FULL


def test_a_step_in_parts_and_in_turns_is_the_step_without_a_budget():
    """To rounding: G, and the embedding that was learned through denoiser, decoder and reward."""
    found = {}
    for budget in ("none", "16gb"):
        given = steps.config("sdxl", "sds", "psd", budget=budget, prior_options={"dtype": "float32"})
        models, scene = steps.start(given)
        pages = pages_of(models.prior, *models.rewards)
        assert len(pages) == (3 if BUDGETS[budget].room else 0)
        if pages:
            pages[0].desk.room = 0  # one at a time
            models.denoiser.learning = 1
            models = dataclasses.replace(models, encode=1)
        seen = steps.step(given, models, scene)
        assert sum(page.loaded for page in pages) <= 1
        learned = models.preference.state_dict()["negative"]["states"]
        found[budget] = seen.found.value.cpu(), learned.cpu(), scene.params["means"].detach().cpu()
    for a, b in zip(found["none"], found["16gb"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_networks_that_take_turns_leave_the_device():
    given = steps.config("sdxl", budget="8gb")
    models, scene = steps.start(given)
    assert models.prior.vae.dtype == torch.bfloat16
    (unet, vae) = pages_of(models.prior)
    assert not unet.loaded
    assert not vae.loaded
    before = STATE.now
    unet.begin()
    assert STATE.now - before >= unet.bytes
    unet.leave()
    assert STATE.now == before
    assert not float(steps.step(given, models, scene).failed)


@pytest.mark.parametrize("place", NETWORKS)
def test_want_of_memory_at_any_place_is_met_with_smaller_parts(tmp_path, monkeypatch, place):
    given = start("none" if place in ("denoiser", "encoder") else "psd")
    models, _ = steps.start(given)
    broken(monkeypatch, NETWORKS[place](models), run_out)
    result = generate(tmp_path, given, models)
    assert result.status == "done"
    assert runs.read(result.run)["halved_at_step"] == 0


def test_want_of_memory_that_nothing_helps_ends_with_a_checkpoint_and_5(tmp_path, monkeypatch):
    given = start()
    models, _ = steps.start(given)
    monkeypatch.setattr(models.prior.vae.encoder, "forward", lambda *_, **__: run_out())
    with pytest.raises(torch.OutOfMemoryError) as caught:
        generate(tmp_path, given, models)
    code, message = describe(caught.value)
    assert (code, message.count("\n")) == (5, 0)
    assert runs.read(the_run(tmp_path))["status"] == "oom"
    assert checkpoint.load_latest(the_run(tmp_path).checkpoints).step == 0


def test_a_full_gpu_is_5_before_there_is_a_folder(tmp_path, cli):
    with limited(STATE.now):
        done = cli("generate", "a red cube", "--prior", "toybox-mini", "--device", "cuda", "--out", tmp_path)
    assert done.code == 5
    assert done.err.splitlines()[-1].startswith("splatgen: error: out of memory: take --budget 8gb")
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_goes_away_costs_what_came_after_the_last_checkpoint(tmp_path, monkeypatch):
    """And a resumed run ends where one that nothing happened to does."""
    often = {"checkpoint_seconds": 1e-9, "frames": 0, "size": 16}
    given = steps.config("toybox-mini", "sds", "psd", steps=3, output=often)
    models, _ = steps.start(given)
    straight = generate(tmp_path / "straight", given, models).run
    models, _ = steps.start(given)
    with monkeypatch.context() as patch:
        broken(patch, models.prior.net.unet, lambda: setattr(STATE, "lost", True), after=4)
        with pytest.raises(torch.AcceleratorError) as caught:
            generate(tmp_path / "lost", given, models)
    STATE.lost = False
    code, message = describe(caught.value)
    assert code == 3
    assert message.startswith("the GPU failed (CUDA error: unspecified launch failure")
    assert "resume" in message
    run = the_run(tmp_path / "lost")
    assert runs.read(run)["status"] == "failed"
    assert 0 < checkpoint.load_latest(run.checkpoints).step < 3
    models, _ = steps.start(given)
    again = object_run.resume(run.folder, command=["test"], models=models)
    assert again.status == "done"
    a, b = (checkpoint.load_latest(r.checkpoints).parts["splats"] for r in (straight, run))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
