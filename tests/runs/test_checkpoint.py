"""A checkpoint loads after a kill at any moment, and damage is noticed."""

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.runs import atomic, checkpoint, packing


def content(step):
    g = torch.Generator().manual_seed(step)
    parts = {"splats": {"means": torch.randn(4, 3, generator=g)}, "score": {"lora/a.b": torch.ones(2) * step}}
    return parts, {"loss": 0.1 * step, "name": "é", "list": [1, None, True]}


def save(folder, step):
    return checkpoint.save(folder, step, *content(step))


def assert_is(loaded, step):
    parts, state = content(step)
    assert loaded.step == step
    assert loaded.state == state
    assert loaded.parts.keys() == parts.keys()
    for name, tensors in parts.items():
        assert loaded.parts[name].keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(loaded.parts[name][key], value)


def names(folder):
    return sorted(os.listdir(folder))


def test_layout_and_round_trip(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    assert save(folder, 123) == folder / "step-000123"
    assert names(folder) == ["latest", "step-000123"]
    assert names(folder / "step-000123") == ["score.safetensors", "splats.safetensors", "state.json"]
    assert (folder / "latest").read_text() == "step-000123\n"
    assert_is(checkpoint.load_latest(folder), 123)


def test_the_last_two_are_kept(tmp_path):
    for step in (0, 10, 20, 1_000_000):
        save(tmp_path, step)
    assert names(tmp_path) == ["latest", "step-000020", "step-1000000"]
    assert_is(checkpoint.load_latest(tmp_path), 1_000_000)


def test_later_steps_go_after_a_resume_from_an_earlier_one(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "step-000020" / "splats.safetensors").write_bytes(b"damaged")
    assert_is(checkpoint.load_latest(tmp_path), 10)
    save(tmp_path, 15)
    assert names(tmp_path) == ["latest", "step-000010", "step-000015"]


def test_a_damaged_checkpoint_does_not_count_as_the_one_before(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "step-000020" / "splats.safetensors").write_bytes(b"damaged")
    save(tmp_path, 30)
    assert names(tmp_path) == ["latest", "step-000010", "step-000030"]


def test_tensors_of_all_kinds(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "strided": base[::2, 1::2],
        "shared": base,
        "expanded": torch.ones(1, 3).expand(5, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "bf16": torch.randn(5).bfloat16(),
        "half": torch.tensor([math.nan, math.inf, -0.0]).half(),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "int64": torch.tensor([2**62]),
        "uint8": torch.tensor([255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    checkpoint.save(tmp_path, 1, {"all": tensors, "none": {}}, {})
    loaded = checkpoint.load_latest(tmp_path).parts
    assert loaded["none"] == {}
    for name, value in tensors.items():
        assert loaded["all"][name].dtype == value.dtype, name
        assert loaded["all"][name].shape == value.shape, name
        assert torch.equal(loaded["all"][name].nan_to_num(7), value.detach().nan_to_num(7)), name


@pytest.mark.parametrize(
    ("step", "parts", "state", "words"),
    [
        (-1, {}, {}, "step -1"),
        (1, {"../x": {}}, {}, "'../x'"),
        (1, {"Splats": {}}, {}, "'Splats'"),
        (1, {"": {}}, {}, "called ''"),
        (1, {}, {"x": math.nan}, "not JSON"),
        (1, {}, {"x": torch.ones(1)}, "not JSON"),
    ],
)
def test_what_cannot_be_saved_leaves_nothing(tmp_path, step, parts, state, words):
    with pytest.raises(ValueError, match=words):
        checkpoint.save(tmp_path, step, parts, state)
    assert names(tmp_path) == []


# --- damage ---------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(**changes):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def resign(**changes):
    """A state.json whose own hash is right: hostile, not damaged."""

    def change(path):
        data = {**json.loads(path.read_text()), **changes}
        del data["sha256"]
        path.write_text(json.dumps({**data, "sha256": checkpoint._digest(data)}))

    return change


def part(file="splats.safetensors", size=1, digest="0"):
    return {"splats": {"file": file, "bytes": size, "sha256": digest}}


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("splats.safetensors", cut, "bytes instead of"),
        ("splats.safetensors", flip, "splats.safetensors does not match its hash"),
        ("splats.safetensors", os.remove, "No such file"),
        ("state.json", cut, "checkpoint .* is skipped"),
        ("state.json", os.remove, "No such file"),
        ("state.json", lambda p: p.write_text("[]"), "lacks step"),
        ("state.json", lambda p: p.write_bytes(b"\xff\x00"), "checkpoint .* is skipped"),
        ("state.json", lambda p: p.write_text("[" * 100_000), "nested too deeply"),
        ("state.json", edit(state={"loss": 0.3}), "its own hash"),
        ("state.json", edit(sha256="0"), "its own hash"),
        ("state.json", resign(step=21), "is of step 21"),
        ("state.json", resign(parts=part("../../secret.safetensors")), "malformed part"),
        ("state.json", resign(parts=part("/etc/passwd")), "malformed part"),
        ("state.json", resign(parts=part("latest")), "malformed part"),
        ("state.json", resign(parts=part(size="1")), "malformed part"),
        ("state.json", resign(parts={"splats": 3}), "malformed part"),
    ],
)
def test_damage_falls_back_to_the_one_before(tmp_path, caplog, file, change, words):
    save(tmp_path, 10)
    save(tmp_path, 20)
    change(tmp_path / "step-000020" / file)
    assert_is(checkpoint.load_latest(tmp_path), 10)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert re.search(words, caplog.text), caplog.text


def test_a_part_that_is_not_safetensors(tmp_path):
    save(tmp_path, 20)
    data = b"\xff" * 30
    path = tmp_path / "step-000020"
    (path / "splats.safetensors").write_bytes(data)
    digest = checkpoint.hashlib.sha256(data).hexdigest()
    resign(parts=part(size=30, digest=digest))(path / "state.json")
    with pytest.raises(ValueError, match="is not safetensors"):
        checkpoint.load_latest(tmp_path)


@pytest.mark.parametrize(
    "latest",
    [
        None,
        b"",
        b"\x00\xff",
        b"../step-000010",
        b"step-10",
        b"step-000099",
        b"/etc",
        b"step-000020/x",
        b"s" * 10**6,
    ],
)
def test_a_useless_latest(tmp_path, caplog, latest):
    save(tmp_path, 10)
    save(tmp_path, 20)
    os.remove(tmp_path / "latest")
    if latest is not None:
        (tmp_path / "latest").write_bytes(latest)
    assert_is(checkpoint.load_latest(tmp_path), 20)
    assert "the newest" in caplog.text
    save(tmp_path, 30)
    assert (tmp_path / "latest").read_text() == "step-000030\n"


def test_none_and_none_usable(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            checkpoint.load_latest(folder)
    for step in (10, 20):
        save(tmp_path, step)
        flip(tmp_path / f"step-{step:06d}" / "score.safetensors")
    with pytest.raises(ValueError, match=r"is usable \(step-000020: .*; step-000010: .*\)") as caught:
        checkpoint.load_latest(tmp_path)
    assert "\n" not in str(caught.value)


def test_leftovers_are_swept(tmp_path, caplog):
    save(tmp_path, 10)
    (tmp_path / ".tmp-step-000020-abcd").mkdir()
    (tmp_path / ".tmp-step-000020-abcd" / "splats.safetensors").write_bytes(b"half")
    (tmp_path / "notes").mkdir()  # not ours
    assert_is(checkpoint.load_latest(tmp_path), 10)
    save(tmp_path, 20)
    assert names(tmp_path) == ["latest", "notes", "step-000010", "step-000020"]


def test_what_cannot_be_deleted_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    for step in (10, 20):
        save(tmp_path, step)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "in use")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(tmp_path, 30)
    assert "could not delete" in caplog.text
    assert_is(checkpoint.load_latest(tmp_path), 30)


# --- kill at any moment ---------------------------------------------------------------------------

CALLS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir", "close")


class Half:
    """A file whose every write can be cut in the middle."""

    def __init__(self, file, tick):
        self.file, self.tick = file, tick

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.tick()
        self.file.write(data[len(data) // 2 :])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def arm(monkeypatch, at, die):
    """Call die() before the at-th step at which the operating system is asked for anything."""
    count = [0]

    def tick():
        count[0] += 1
        if count[0] == at:
            die()

    def counted(real):
        def call(*args, **kwargs):
            tick()
            return real(*args, **kwargs)

        return call

    def half_open(path, mode="r"):
        tick()
        file = open(path, mode)  # noqa: SIM115
        return Half(file, tick) if "x" in mode else file

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    for module in (atomic, checkpoint):
        monkeypatch.setattr(module, "open", half_open, raising=False)
    return count


def killed(folder, step, at):
    """Save in a process that is gone, without any cleaning up, at the at-th step; False if it lived."""
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                arm(patch, at, lambda: os._exit(9))
                save(folder, step)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def failed(folder, step, at):
    """Save on a disk that is full from the at-th step on; False if it was not reached."""

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        count = arm(patch, at, full)
        with contextlib.suppress(OSError):
            save(folder, step)
        return count[0] >= at


@pytest.mark.parametrize("interrupt", [killed, failed])
@pytest.mark.parametrize(
    ("before", "step"),
    [([], 10), ([10, 20], 30), ([10, 20], 20), ([20], 20), ([10, 20], 15)],
    ids=["first", "third", "again", "only-again", "earlier"],
)
def test_latest_always_loads(tmp_path, caplog, interrupt, before, step):
    caplog.set_level(logging.CRITICAL)
    at, outcomes = 0, set()
    while True:
        at += 1
        folder = tmp_path / str(at)
        for earlier in before:
            save(folder, earlier)
        if not interrupt(folder, step, at):
            break
        if before:
            loaded = checkpoint.load_latest(folder)
            assert loaded.step in (before[-1], step)
            assert_is(loaded, loaded.step)
            outcomes.add(loaded.step)
        elif (folder / "step-000010").exists():
            assert_is(checkpoint.load_latest(folder), step)
            outcomes.add(step)
        else:
            with pytest.raises(FileNotFoundError):
                checkpoint.load_latest(folder)
        save(folder, 40)
        assert_is(checkpoint.load_latest(folder), 40)
        assert len(names(folder)) <= 3
        assert not [n for n in names(folder) if n.startswith(".")]
    assert at > 20
    assert step in outcomes
    assert set(before[-1:]) <= outcomes


# --- optimisers -----------------------------------------------------------------------------------


def train(optimizer, parameters, steps):
    for i in range(steps):
        optimizer.zero_grad()
        sum(((p - i) ** 2).sum() for p in parameters).backward()
        optimizer.step()


def groups(parameters):
    return [
        {"params": parameters[:1], "lr": 1e-2, "name": "means"},
        {"params": parameters[1:], "lr": torch.tensor(1e-3), "betas": (0.8, 0.99), "name": "colors"},
    ]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_resumes_to_the_bit(tmp_path, amsgrad):
    torch.manual_seed(0)
    straight = [
        torch.nn.Parameter(torch.randn(3, 2)),
        torch.nn.Parameter(torch.randn(4)),
        torch.nn.Parameter(torch.randn(1)),
    ]
    optimizer = torch.optim.Adam(groups(straight), eps=1e-15, amsgrad=amsgrad)
    train(optimizer, straight, 5)
    tensors, rest = packing.pack({"splats": optimizer.state_dict(), "step": 5})
    values = {str(i): p for i, p in enumerate(straight)}
    checkpoint.save(tmp_path, 5, {"optimisers": tensors, "splats": values}, {"optimisers": rest})
    train(optimizer, straight, 5)

    loaded = checkpoint.load_latest(tmp_path)
    resumed = [torch.nn.Parameter(loaded.parts["splats"][str(i)]) for i in range(3)]
    again = torch.optim.Adam(groups(resumed), amsgrad=amsgrad)
    again.load_state_dict(packing.unpack(loaded.parts["optimisers"], loaded.state["optimisers"])["splats"])
    assert again.param_groups[1]["betas"] == (0.8, 0.99)
    assert again.param_groups[0]["eps"] == 1e-15
    train(again, resumed, 5)
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for x, y in zip(a.items(), b.items(), strict=True):
            assert_equal(x, y)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, float):
        assert a.hex() == b.hex()
    else:
        assert a == b


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.builds(torch.arange, st.integers(0, 3)),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=3), st.integers(-2, 2), st.sampled_from(["$tensor", "$dict", "a/b", "key"]))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_pack_is_exact_through_json(tree):
    tensors, rest = packing.pack(tree)
    assert_equal(packing.unpack(tensors, json.loads(json.dumps(rest, allow_nan=False))), tree)


def test_pack_errors_say_where():
    with pytest.raises(ValueError, match="state/0/x is a set"):
        packing.pack({"state": {0: {"x": {1}}}})
    with pytest.raises(ValueError, match="the tree is a object"):
        packing.pack(object())
    with pytest.raises(ValueError, match="no tensor is called 'a'"):
        packing.unpack({}, {"$tensor": "a"})
