"""The .splat layout to the byte, what it rounds, and what the reader refuses."""

import logging
import math
import struct

import numpy as np
import pytest
import torch
from clouds import COUNTS, angles, cloud
from hypothesis import given
from hypothesis import strategies as st

from splatgen import formats
from splatgen.scene.splats import SH_C0, Splats

IDENTITY = (1.0, 0.0, 0.0, 0.0)


def one(
    mean=(0.0, 0.0, 0.0), quat=IDENTITY, scale=(1.0, 1.0, 1.0), opacity=0.5, color=(0.5, 0.5, 0.5)
) -> Splats:
    """A splat by linear scales, opacity in 0..1 and colour."""
    return Splats(
        means=torch.tensor([mean]),
        quats=torch.tensor([quat]),
        scales=torch.tensor([scale]).log(),
        opacities=torch.logit(torch.tensor([opacity])),
        sh=(torch.tensor([[color]]) - 0.5) / SH_C0,
    )


def test_layout_to_the_byte(tmp_path):
    """Frame rub leaves positions and rotation as they are; -q is the same rotation as q."""
    splats = one((1.0, -2.0, 3.5), (0.0, 0.6, 0.0, -0.8), (0.5, 0.25, 2.0), 0.2, (1.0, 0.0, 0.6))
    formats.save(splats, tmp_path / "a.splat", frame="rub")
    quat = [128, round(0.6 * 128 + 128), 128, round(-0.8 * 128 + 128)]
    expected = struct.pack("<3f3f4B4B", 1.0, -2.0, 3.5, 0.5, 0.25, 2.0, 255, 0, 153, 51, *quat)
    assert (tmp_path / "a.splat").read_bytes() == expected


def test_no_rotation_is_kept_exactly(tmp_path):
    """+1 would be 256, so the quaternion is written as -1: 0."""
    formats.save(one(), tmp_path / "a.splat", frame="rub")
    assert (tmp_path / "a.splat").read_bytes()[28:] == bytes([0, 128, 128, 128])
    assert formats.load(tmp_path / "a.splat", frame="rub").quats.abs().tolist() == [list(IDENTITY)]


@given(
    count=st.sampled_from(COUNTS),
    degree=st.integers(0, 3),
    frame=st.sampled_from(["ply", "rub", "rdf"]),
    seed=st.integers(0, 2**31),
)
def test_round_trip_within_the_steps(tmp_path_factory, count, degree, frame, seed):
    path = tmp_path_factory.mktemp("splat") / "a.splat"
    splats = cloud(count, degree, seed)
    splats = splats.select(splats.opacities > math.log(1 / 254))
    assert formats.save(splats, path, frame=frame) == 0
    assert path.stat().st_size == 32 * len(splats)
    found = formats.load(path, frame=frame)
    weight = splats.scales.double().sum(-1) + splats.opacities.double().sigmoid().log()
    splats = splats.select(weight.argsort(descending=True, stable=True))
    assert torch.equal(found.means, splats.means)
    torch.testing.assert_close(found.scales, splats.scales, rtol=0, atol=2e-6)
    step = 0.5 / 255 + 1e-6
    assert (found.opacities.sigmoid() - splats.opacities.sigmoid()).abs().le(step).all()
    color = (0.5 + SH_C0 * splats.sh[:, 0]).clamp(0, 1)
    assert (0.5 + SH_C0 * found.sh[:, 0] - color).abs().le(step).all()
    assert found.sh_degree == 0
    # every component is within 1/256, so the quaternions are within 2/256 of each other
    assert np.all(angles(found.quats, splats.quats) <= math.degrees(2 * 2 * math.asin(2 / 256 / 2)) + 1e-4)


def test_saving_what_was_loaded_changes_nothing(tmp_path):
    formats.save(cloud(300), tmp_path / "a.splat")
    formats.save(formats.load(tmp_path / "a.splat"), tmp_path / "b.splat")
    formats.save(formats.load(tmp_path / "b.splat"), tmp_path / "c.splat")
    a, b, c = ((tmp_path / f"{name}.splat").read_bytes() for name in "abc")
    rows = [np.frombuffer(data, "u1").reshape(-1, 32) for data in (a, b, c)]
    by_place = [r[np.lexsort(r[:, :12].T)] for r in rows]  # rounding may change the order of equals
    assert np.array_equal(by_place[0][:, 24:28], by_place[1][:, 24:28])  # colours
    assert np.array_equal(by_place[1], by_place[2])


def test_the_largest_come_first(tmp_path):
    parts = [(0.1, 0.9), (3.0, 0.1), (1.0, 0.5), (1.0, 0.9)]  # edge, opacity
    splats = [one((float(i), 0, 0), scale=(s, s, s), opacity=o) for i, (s, o) in enumerate(parts)]
    formats.save(
        Splats(**{k: torch.cat([s.tensors()[k] for s in splats]) for k in splats[0].tensors()}),
        tmp_path / "a.splat",
        frame="rub",
    )
    assert formats.load(tmp_path / "a.splat", frame="rub").means[:, 0].tolist() == [1, 3, 2, 0]


def test_what_is_lost_is_said():
    splats = cloud(4, 1)
    assert formats.losses(splats, "a.splat") == [
        "spherical harmonics beyond degree 0",
        "colours and opacities beyond 1/255",
        "rotations beyond 0.9 degrees",
    ]
    splats.sh[:, 1:], splats.sh[0, 0] = 0, torch.tensor([9.0, -9.0, 0.0])
    assert formats.losses(splats, "a.splat")[0] == "colours and opacities beyond 1/255"
    assert formats.losses(splats, "a.splat")[-1] == "2 colour values beyond 0..1"
    assert formats.losses(splats, "a.ply", sh_degree=0) == []
    assert formats.losses(cloud(4, 2), "a.ply", sh_degree=1) == ["spherical harmonics beyond degree 1"]


def test_no_harmonics_can_be_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no SH degree 1 in .*\.splat': this format has 0$"):
        formats.save(cloud(1), tmp_path / "a.splat", sh_degree=1)


def test_the_ends_of_a_byte_become_finite(tmp_path):
    rows = struct.pack("<6f8B", 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 128, 128, 128, 128)
    rows += struct.pack("<6f8B", 0, 0, 0, 1, 1, 1, 255, 255, 255, 255, 255, 128, 128, 128)
    (tmp_path / "a.splat").write_bytes(rows)
    splats = formats.load(tmp_path / "a.splat", frame="rub")
    assert splats.opacities.sigmoid().tolist() == pytest.approx([0.25 / 255, 1 - 0.25 / 255])
    assert float(splats.scales[0, 2].exp()) == pytest.approx(2.0**-126, rel=1e-5)
    assert splats.quats.tolist() == [list(IDENTITY), list(IDENTITY)]  # all at 128 is no rotation


def test_zero_quaternions_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        (tmp_path / "a.splat").write_bytes(struct.pack("<6f8B", *[1] * 6, 9, 9, 9, 9, 128, 128, 128, 128))
        formats.load(tmp_path / "a.splat")
    assert "1 zero quaternions" in caplog.text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0" * 31, "31 bytes are no multiple of 32"),
        (b"\0" * 33, "no multiple"),
        (b"ply\nformat ascii 1.0\n" + b"\0" * 43, r"begins like a \.ply"),
        (b"glTF" + b"\0" * 28, r"begins like a \.glb"),
        (b"NGSP" + b"\0" * 28, r"begins like a \.spz"),
        (
            struct.pack("<6f8B", math.nan, 0, 0, 1, 1, 1, *[9] * 8),
            "1 numbers in its means that are not finite",
        ),
        (struct.pack("<6f8B", 0, 0, 0, 1, math.inf, 1, *[9] * 8), "1 numbers in its scales"),
        (struct.pack("<6f8B", 0, 0, 0, 1, -1, -2, *[9] * 8), "2 negative scales"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(tmp_path, data, words):
    (tmp_path / "a.splat").write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        formats.load(tmp_path / "a.splat")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(repr(str(tmp_path / "a.splat")))


def test_broken_ones_pass_for_those_who_drop_them(tmp_path):
    rows = b"".join(struct.pack("<6f8B", 0, 0, 0, 1, s, 1, *[200] * 8) for s in (1, -1, math.nan))
    (tmp_path / "a.splat").write_bytes(rows)
    splats = formats.load(tmp_path / "a.splat", broken=True)
    assert splats.scales[:, 1].isnan().tolist() == [False, True, True]


def test_clean_is_the_same_as_for_a_ply(tmp_path):
    splats = cloud(4)
    splats.means[0, 0], splats.opacities[1], splats.scales[2, 0] = math.nan, -9.0, 100.0  # exp overflows
    assert formats.save(splats, tmp_path / "a.splat") == 3
    assert len(formats.load(tmp_path / "a.splat")) == 1
    with pytest.raises(ValueError, match="2 of 4 splats are not finite"):
        formats.save(splats, tmp_path / "b.splat", clean=False)
    assert not (tmp_path / "b.splat").exists()


def test_gsplats_own_files_are_read(tmp_path):
    """It rounds bytes down and sorts by place; all is within a step of what it was given."""
    exporter = pytest.importorskip("gsplat.exporter")
    splats = cloud(30)
    data = exporter.splat2splat_bytes(
        splats.means, splats.scales, splats.quats, splats.opacities, splats.sh[:, 0]
    )
    (tmp_path / "a.splat").write_bytes(data)
    found = formats.load(tmp_path / "a.splat", frame="rub")
    ours, theirs = splats.means[:, 0].argsort(), found.means[:, 0].argsort()
    splats, found = splats.select(ours), found.select(theirs)
    assert torch.equal(found.means, splats.means)
    torch.testing.assert_close(found.scales, splats.scales, rtol=0, atol=2e-6)
    assert (found.opacities.sigmoid() - splats.opacities.sigmoid()).abs().le(1 / 255 + 1e-6).all()
    color = (0.5 + SH_C0 * splats.sh[:, 0]).clamp(0, 1)
    assert (0.5 + SH_C0 * found.sh[:, 0] - color).abs().le(1 / 255 + 1e-6).all()
    assert angles(found.quats, splats.quats).max() < 2.0
