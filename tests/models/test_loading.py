"""Networks out of files: what is whole is loaded as it is, and everything else is an error of one line."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import socket
import struct
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import (
    Lazy,
    compiled,
    component,
    explained,
    fill,
    placed,
    quiet,
    read_json,
    read_tensors,
    torch_dtype,
)
from splatgen.models.weights import WeightsError

KINDS = {"vae": AutoencoderTiny, "text": CLIPTextModel}
FILES = {"vae": "diffusion_pytorch_model.safetensors", "text": "model.safetensors"}


def make(part):
    if part == "vae":
        sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        return AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=20, **sizes, projection_dim=8, max_position_embeddings=9))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Loading asks nobody, also not when something is wrong."""

    def refuse(*args):
        raise AssertionError(f"something called {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a network of diffusers and one of transformers, and the networks."""
    folder = tmp_path_factory.mktemp("saved")
    networks = {part: make(part) for part in KINDS}
    for part, network in networks.items():
        network.save_pretrained(folder / part)
    return folder, networks


@pytest.fixture(params=KINDS)
def part(request):
    return request.param


@pytest.fixture
def copy(saved, tmp_path):
    """A folder to break."""
    shutil.copytree(saved[0], tmp_path / "model")
    return tmp_path / "model"


def load(folder, part, dtype=torch.float32):
    return component(KINDS[part], folder, part, dtype=dtype)


def refused(words, work):
    with pytest.raises(WeightsError, match=words) as found:
        work()
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600
    return str(found.value)


def rewrite(folder, part, change):
    path = folder / part / FILES[part]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def same(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_whole_network_is_loaded_as_it_is_and_frozen(saved, part):
    folder, networks = saved
    found = load(folder, part)
    assert same(found, networks[part])
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_has_the_precision_that_was_asked_for(saved, part, dtype):
    found = load(saved[0], part, dtype)
    assert {p.dtype for p in found.parameters()} == {dtype}
    pairs = zip(saved[1][part].parameters(), found.parameters(), strict=True)
    assert all(torch.equal(a.to(dtype), b) for a, b in pairs)


def test_a_missing_weight_is_an_error(copy, part):
    gone = []
    rewrite(copy, part, lambda t: gone.append(min(t)) or t.pop(min(t)))
    assert gone[0] in refused("lacks .* and 0 others", lambda: load(copy, part))


def test_a_weight_too_many_is_an_error(copy, part):
    rewrite(copy, part, lambda t: t.update(extra=torch.zeros(2), more=torch.zeros(2)))
    refused("has, and the architecture has not, extra and 1 others", lambda: load(copy, part))


def test_a_weight_of_another_shape_is_an_error(copy, part):
    rewrite(copy, part, lambda t: t.update({min(t): torch.zeros(3, 3)}))
    refused(f"{KINDS[part].__name__}", lambda: load(copy, part))


def test_another_architecture_is_an_error(copy):
    shutil.copy(copy / "text" / "model.safetensors", copy / "vae" / FILES["vae"])
    refused("AutoencoderTiny", lambda: load(copy, "vae"))


def test_a_file_of_git_lfs_is_an_error(copy, part):
    (copy / part / FILES[part]).write_text("version https://git-lfs.github.com/spec/v1\nsize 10\n")
    refused("can't be loaded from", lambda: load(copy, part))


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_a_file_that_was_cut_short_is_an_error(copy, part, size):
    path = copy / part / FILES[part]
    path.write_bytes(path.read_bytes()[:size])
    refused("can't be loaded from .*fetch it again", lambda: load(copy, part))


@pytest.mark.parametrize("header", [2**40, 5])
def test_a_header_that_lies_about_its_length_is_an_error(copy, part, header):
    path = copy / part / FILES[part]
    path.write_bytes(struct.pack("<Q", header) + path.read_bytes()[8:])
    refused("can't be loaded from", lambda: load(copy, part))


def test_no_file_of_weights_is_an_error(copy, part):
    (copy / part / FILES[part]).unlink()
    refused("can't be loaded from", lambda: load(copy, part))


def test_a_pickle_in_the_place_of_a_file_is_not_taken(copy, part):
    network = load(copy, part)
    (copy / part / FILES[part]).unlink()
    torch.save(network.state_dict(), copy / part / FILES[part].replace(".safetensors", ".bin"))
    refused("can't be loaded from", lambda: load(copy, part))


def test_no_configuration_is_an_error(copy, part):
    (copy / part / "config.json").unlink()
    refused("has no config.json: give a folder in diffusers' layout", lambda: load(copy, part))
    refused("has no config.json", lambda: load(copy / "nowhere", part))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "\0", '{"a": ', "\ufeff{}"])
def test_a_damaged_configuration_is_an_error(copy, part, text):
    (copy / part / "config.json").write_text(text)
    refused(f"{KINDS[part].__name__}", lambda: load(copy, part))


def test_a_configuration_of_nonsense_is_an_error(copy):
    path = copy / "text" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 7}))
    refused("CLIPTextModel", lambda: load(copy, "text"))
    path = copy / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "act_fn": "no such"}))
    refused("AutoencoderTiny", lambda: load(copy, "vae"))


def test_half_precision_files_are_taken_where_there_are_no_others(copy, part):
    path = copy / part / FILES[part]
    tensors = {name: value.half() for name, value in load_file(path).items()}
    half = path.with_name(path.name.replace(".safetensors", ".fp16.safetensors"))
    save_file(tensors, half, metadata={"format": "pt"})
    full = load(copy, part)
    path.unlink()
    found = load(copy, part)
    pairs = list(zip(full.state_dict().values(), found.state_dict().values(), strict=True))
    assert all(torch.equal(a.half().float(), b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)
    spare = path.with_name(path.name.replace(".safetensors", ".non_ema.safetensors"))
    shutil.copy(half, spare)  # another variant beside it, as Stable Diffusion 1.5 has
    assert same(load(copy, part), found)


@pytest.mark.parametrize("half", [False, True])
def test_a_network_in_several_files_is_one(saved, tmp_path, part, half):
    network = make(part)
    network.load_state_dict(saved[1][part].state_dict())
    variant = "fp16" if half else None
    (network.half() if half else network).save_pretrained(
        tmp_path / part, max_shard_size="2KB", variant=variant
    )
    assert len(list((tmp_path / part).glob("*-of-*.safetensors"))) > 1
    assert same(load(tmp_path, part), network.float())
    min((tmp_path / part).glob("*-of-*.safetensors")).unlink()
    refused("can't be loaded", lambda: load(tmp_path, part))


@pytest.fixture
def said():
    """What the libraries log; where it would be printed depends on when they were imported."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_what_libraries_say_is_not_heard(saved, copy, part, capfd, said):
    levels = transformers_logging.get_verbosity(), diffusers_logging.get_verbosity()
    load(saved[0], part)
    rewrite(copy, part, lambda t: t.pop(min(t)))
    refused("lacks", lambda: load(copy, part))
    assert capfd.readouterr() == ("", "")
    assert said == []
    assert (transformers_logging.get_verbosity(), diffusers_logging.get_verbosity()) == levels


def test_without_quiet_they_would_be_heard(copy, part, capfd, said):
    """Guards the test above."""
    rewrite(copy, part, lambda t: t.pop(min(t)))
    KINDS[part].from_pretrained(copy / part)
    assert said
    if part == "text":
        assert "Loading weights" in capfd.readouterr().err


@pytest.mark.parametrize("library", [diffusers_logging, transformers_logging])
def test_progress_bars_that_were_off_stay_off(library):
    library.disable_progress_bar()
    try:
        with quiet(), quiet():
            pass
        assert not library.is_progress_bar_enabled()
    finally:
        library.enable_progress_bar()
    with quiet():
        with quiet():
            pass
        assert not library.is_progress_bar_enabled()
    assert library.is_progress_bar_enabled()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_pickles_of_tensors_are_read(tmp_path, suffix, legacy):
    tensors = {"a": torch.arange(3), "state_dict": {"b": torch.ones(2, 2)}, "epoch": 3}
    torch.save(tensors, tmp_path / f"x{suffix}", _use_new_zipfile_serialization=not legacy)
    found = read_tensors(tmp_path / f"x{suffix}")
    assert torch.equal(found["a"], tensors["a"])
    assert torch.equal(found["state_dict"]["b"], torch.ones(2, 2))
    assert found["epoch"] == 3


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "x.safetensors")
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], torch.arange(3.0))


class Touch:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("form", ["plain pickle", "torch", "old torch"])
def test_code_in_a_pickle_is_never_run(tmp_path, form):
    mark, path = tmp_path / "mark", tmp_path / "x.pt"
    content = {"a": torch.zeros(1), "b": Touch(mark)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Touch(mark)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    refused("holds more than tensors, which is never run", lambda: read_tensors(path))
    assert not mark.exists()
    if form == "plain pickle":
        pickle.loads(path.read_bytes())  # noqa: S301
        assert mark.exists()  # it would have been


@pytest.mark.parametrize("size", [0, 3, 200, -100, -1])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_was_cut_short_is_an_error(tmp_path, size, legacy):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(400)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:size])
    assert "x.pt" in refused("can't be loaded|damaged", lambda: read_tensors(path))


@pytest.mark.parametrize("content", [torch.zeros(2), [torch.zeros(2)], 3])
def test_a_pickle_of_something_else_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    refused(f"holds a {type(content).__name__}", lambda: read_tensors(tmp_path / "x.pt"))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    for name in ("x.pt", "x.safetensors"):
        refused("does not exist", lambda name=name: read_tensors(tmp_path / name))
    refused("is missing or damaged", lambda: read_json(tmp_path / "x.json"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null"])
def test_a_file_that_is_no_settings_is_an_error(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    refused("x.json", lambda: read_json(tmp_path / "x.json"))


def linear(device="cpu"):
    return nn.Linear(2, 3, device=device)


FULL = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_fill_a_network_that_wants_exactly_them(tmp_path, device):
    found = fill(linear(device), FULL, tmp_path / "x.pt")
    assert torch.equal(found.weight, FULL["weight"])
    assert not found.training
    assert not any(p.requires_grad or p.is_meta for p in found.parameters())


def test_filling_keeps_the_networks_precision(tmp_path):
    found = fill(linear(), {name: value.half() for name, value in FULL.items()}, tmp_path / "x.pt")
    assert found.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bias": None}, "x.pt does not fit Linear: it lacks bias and 0 others"),
        ({"extra": torch.zeros(1)}, "has, and the architecture has not, extra"),
        ({"bias": torch.zeros(4)}, "has another shape of bias"),
        ({"bias": "words"}, "has another shape of bias"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_that_do_not_fit_are_an_error(tmp_path, change, words, device):
    tensors = {name: value for name, value in {**FULL, **change}.items() if value is not None}
    refused(words, lambda: fill(linear(device), tensors, tmp_path / "x.pt"))


def test_running_out_of_memory_is_not_blamed_on_the_file():
    with pytest.raises(RuntimeError, match="out of memory") as found, explained("x", Path("place")):
        raise RuntimeError("CUDA out of memory")
    assert not isinstance(found.value, WeightsError)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, AssertionError])
def test_mistakes_of_a_program_are_not_blamed_on_the_file(error):
    with pytest.raises(error), explained("x", Path("place")):
        raise error


def test_a_long_reason_becomes_one_short_line():
    def work():
        with explained("x", Path("place")):
            raise ValueError("a\n\n  b" + "c" * 999)

    assert refused("x can't be loaded from place: a bc", work).endswith(
        "; fetch it again, or give another model"
    )


def test_what_is_loaded_lazily_is_loaded_once_and_again_after_its_release():
    loads = []
    lazy = Lazy(lambda: loads.append(0) or linear())
    assert loads == []
    first = lazy.get()
    assert lazy.get() is first
    lazy.release()
    lazy.release()
    assert lazy.get() is not first
    assert len(loads) == 2


def test_what_was_released_is_freed():
    lazy = Lazy(linear)
    seen = weakref.ref(lazy.get())
    lazy.release()
    assert seen() is None


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_precision_is_torchs_type_of_that_name(precision):
    assert torch_dtype(LoadOptions(precision=precision)) == getattr(torch, precision)


def test_a_network_is_placed_as_asked(saved):
    network = load(saved[0], "vae")
    assert placed(network, LoadOptions()) is network
    assert not network.decoder.gradient_checkpointing
    placed(network, LoadOptions(checkpointing=True))
    assert network.decoder.gradient_checkpointing
    assert placed(load(saved[0], "text"), LoadOptions(checkpointing=True)).device.type == "cpu"
    assert placed(network, LoadOptions(), device="meta").device.type == "meta"


def test_a_network_is_compiled_only_if_asked():
    assert compiled(linear(), LoadOptions())._compiled_call_impl is None
