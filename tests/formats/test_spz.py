"""The .spz stream to the byte, its steps, and what the reader refuses."""

import gzip
import logging
import math
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from clouds import COUNTS, angles, cloud
from hypothesis import given
from hypothesis import strategies as st

from splatgen import formats
from splatgen.formats import spz, spz_stream
from splatgen.scene.splats import Splats

MAGIC = b"NGSP"


def one(
    mean=(0.0, 0.0, 0.0), quat=(1.0, 0.0, 0.0, 0.0), scale=0.0, opacity=0.5, sh=((0.0, 0.0, 0.0),)
) -> Splats:
    """A splat by log scale and opacity in 0..1."""
    return Splats(
        means=torch.tensor([mean]),
        quats=torch.tensor([quat]),
        scales=torch.full((1, 3), scale),
        opacities=torch.logit(torch.tensor([opacity])),
        sh=torch.tensor([sh]),
    )


def stream(splats: Splats, path, **options) -> bytes:
    formats.save(splats, path, **options)
    return gzip.decompress(path.read_bytes())


def header(version=3, count=1, degree=0, bits=12, flags=0) -> bytes:
    return MAGIC + struct.pack("<IIBBBB", version, count, degree, bits, flags, 0)


def squeezed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


BODY = bytes([0] * 9) + bytes([128]) + bytes([128] * 3) + bytes([160] * 3) + struct.pack("<I", 3 << 30)


@pytest.mark.parametrize(("degree", "bytes_each"), [(0, 20), (1, 29), (2, 44), (3, 65)])
def test_header_to_the_byte(tmp_path, degree, bytes_each):
    data = stream(cloud(7, degree), tmp_path / "a.spz")
    assert data[:16] == b"NGSP" + bytes([3, 0, 0, 0, 7, 0, 0, 0, degree, 12, 0, 0])
    assert len(data) == 16 + 7 * bytes_each


def test_one_splat_to_the_byte(tmp_path):
    """Worked out by hand. Of xyzw = (0, -0.6, 0, 0.8) w is left out: x and z are 0, y is 0.6 sqrt 2 511."""
    sh = [(-4.0, 0.0, 1.0), (0.25, -0.25, 0.03), (0.0, 0.0, 0.04), (1.0, -1.0, -7.0)]
    splats = one((1.0, -1.0, 0.125), (0.8, 0.0, -0.6, 0.0), -2.5, 0.2, tuple(sh))
    data = stream(splats, tmp_path / "a.spz")[16:]
    assert data[:9] == bytes([0, 0x10, 0, 0, 0xF0, 0xFF, 0, 2, 0])  # 4096, -4096, 512
    assert data[9] == 51
    assert list(data[10:13]) == [0, 128, 166]  # -4 is beyond the range; 0.15 255 + 127.5 = 165.75
    assert list(data[13:16]) == [120] * 3  # (-2.5 + 10) 16
    size = round(0.6 * math.sqrt(2) * 511)
    assert struct.unpack("<I", data[16:20])[0] == 3 << 30 | 1 << 19 | size << 10
    assert list(data[20:29]) == [160, 96, 128, 128, 128, 136, 255, 0, 0]  # steps of 8 around 128


def fixed24(raw: bytes) -> np.ndarray:
    three = np.frombuffer(raw, "u1").reshape(-1, 3).astype(int)
    value = three[:, 0] + 256 * three[:, 1] + 65536 * three[:, 2]
    return np.where(value >= 2**23, value - 2**24, value)


@given(
    count=st.sampled_from(COUNTS),
    degree=st.integers(0, 3),
    frame=st.sampled_from(["ply", "rub", "rdf"]),
    seed=st.integers(0, 2**31),
)
def test_round_trip_within_the_steps(tmp_path_factory, count, degree, frame, seed):
    path = tmp_path_factory.mktemp("spz") / "a.spz"
    splats = cloud(count, degree, seed)
    splats = splats.select(splats.opacities > math.log(1 / 254))
    assert formats.save(splats, path, frame=frame) == 0
    found = formats.load(path, frame=frame)
    assert found.sh_degree == degree
    tiny = 1e-6
    assert (found.means - splats.means).abs().le(0.5 / 4096 + tiny).all()
    assert (found.scales - splats.scales).abs().le(0.5 / 16 + tiny).all()
    assert (found.opacities.sigmoid() - splats.opacities.sigmoid()).abs().le(0.5 / 255 + tiny).all()
    assert (found.sh[:, 0] - splats.sh[:, 0]).abs().le(0.5 / (0.15 * 255) + tiny).all()
    assert (found.sh[:, 1:4] - splats.sh[:, 1:4].clamp(-1, 127 / 128)).abs().le(4 / 128 + tiny).all()
    assert (found.sh[:, 4:] - splats.sh[:, 4:].clamp(-1, 127 / 128)).abs().le(8 / 128 + tiny).all()
    # three components within half a step, and the fourth, which none exceeds, within the sum of those
    off = math.sqrt(3 + 3**2) * 0.5 * math.sqrt(0.5) / 511
    assert np.all(angles(found.quats, splats.quats) <= math.degrees(4 * math.asin(off / 2)) + 1e-4)


def test_what_was_loaded_is_saved_as_it_was(tmp_path):
    first = stream(cloud(400, 3), tmp_path / "a.spz")
    assert stream(formats.load(tmp_path / "a.spz"), tmp_path / "b.spz") == first


def test_files_are_the_same_at_any_time(tmp_path):
    for name in "ab":
        formats.save(cloud(10), tmp_path / f"{name}.spz")
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()
    assert (tmp_path / "a.spz").read_bytes()[4:8] == bytes(4)  # no clock


def test_version_2_has_three_bytes_of_rotation(tmp_path):
    """x, y and z in steps of 1/127.5 from -1, w by the length."""
    body = BODY[:16] + bytes([255, 128, 128])
    (tmp_path / "a.spz").write_bytes(squeezed(header(version=2) + body))
    assert formats.load(tmp_path / "a.spz").quats[0].tolist() == pytest.approx(
        [0, 1, 1 / 255, 1 / 255], abs=1e-4
    )
    body = BODY[:16] + bytes([128 - 51, 128, 128])  # x = -0.4 + 1/255
    (tmp_path / "a.spz").write_bytes(squeezed(header(version=2) + body))
    x = -51 / 127.5 + 1 / 255
    expected = [math.sqrt(1 - x * x - 2 / 255**2), x, 1 / 255, 1 / 255]
    assert formats.load(tmp_path / "a.spz").quats[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bits", [0, 12, 23])
def test_fractional_bits_of_others_are_obeyed(tmp_path, bits):
    body = struct.pack("<3i", -(2**30), 2**29, 256)
    positions = b"".join(body[i + 1 : i + 4] for i in (0, 4, 8))  # -2**22, 2**21, 1
    (tmp_path / "a.spz").write_bytes(squeezed(header(bits=bits) + positions + BODY[9:]))
    expected = [-(2**22) / 2**bits, 2**21 / 2**bits, 1 / 2**bits]
    assert formats.load(tmp_path / "a.spz").means[0].tolist() == expected


@pytest.mark.parametrize(("reach", "bits"), [(2047.9, 12), (2048.5, 11), (5000.0, 10), (8e6, 0)])
def test_far_splats_take_bits_from_the_fraction(tmp_path, reach, bits):
    """The reference writer wraps around beyond 2048."""
    data = stream(one((reach, -reach, 0.0)), tmp_path / "a.spz")
    assert data[13] == bits
    assert fixed24(data[16:25]).tolist() == [round(reach * 2**bits), -round(reach * 2**bits), 0]
    assert formats.load(tmp_path / "a.spz").means[0, 0] == pytest.approx(reach, abs=0.5 / 2**bits)
    assert f"positions beyond 1/{2**bits}" in formats.losses(one((reach, 0.0, 0.0)), "a.spz")


def test_too_far_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"9e\+06 units away, a \.spz holds up to 8388607"):
        formats.save(one((9e6, 0.0, 0.0)), tmp_path / "a.spz")
    assert os.listdir(tmp_path) == []


def test_what_is_lost_is_said():
    assert formats.losses(cloud(1, 0), "a.spz") == [
        "positions beyond 1/4096", "sizes beyond 6 %", "rotations beyond 0.3 degrees",
        "colours and opacities beyond a byte",
    ]  # fmt: skip
    splats = one(scale=-12.0, sh=((4.0, 0.0, 0.0), (-2.0, 0.5, 0.0), (0.0,) * 3, (0.0,) * 3))
    assert formats.losses(splats, "a.spz")[-2:] == [
        "spherical harmonics beyond 1/16 (degree 1) and 1/8", "5 values beyond its range"
    ]  # fmt: skip


def test_degree_4_is_cut_and_told(tmp_path, caplog):
    harmonics = bytes(range(24 * 3))
    (tmp_path / "a.spz").write_bytes(squeezed(header(degree=4) + BODY + harmonics))
    with caplog.at_level(logging.WARNING):
        splats = formats.load(tmp_path / "a.spz")
    assert "degree 4 cut to 3" in caplog.text
    assert (splats.sh[0, 1:].flatten() * 128 + 128).tolist() == list(range(45))


def test_the_axes_are_those_that_an_extension_says(tmp_path):
    camera = struct.pack("<II3f", 0xADBE0002, 12, 0, 1, 2)
    body = bytes([0, 0x10, 0, 0, 0x20, 0, 0, 0x30, 0]) + BODY[9:]  # 1, 2, 3

    def write(axes: int) -> None:
        rest = camera + struct.pack("<III", 0xADBE0003, 4, axes)
        (tmp_path / "a.spz").write_bytes(squeezed(header(flags=2) + body + rest))

    for axes, mean in ((4, (1, 2, 3)), (0, (1, 2, 3)), (1, (-1, -2, 3)), (6, (1, -2, -3)), (12, (1, 3, -2))):
        write(axes)
        assert formats.load(tmp_path / "a.spz").means[0].tolist() == list(mean)
        assert formats.load(tmp_path / "a.spz", frame="rdf").means[0].tolist() == [1, -2, -3]
    write(17)
    with pytest.raises(ValueError, match="its axes have the number 17, expected 0 to 16: give --input-frame"):
        formats.load(tmp_path / "a.spz")
    assert len(formats.load(tmp_path / "a.spz", frame="rub")) == 1


FINE = header() + BODY


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begins with b''"),
        (b"\x1f\x8b", "ends within its header"),
        (b"NGSP", "ends within its header"),
        (header(version=5) + BODY, "version 5 here, this reads 1 to 3, and 4 in ZSTD"),
        (FINE[:-1], "ends within its 1 splats"),
        (FINE + b"\0", "goes on after its last splat"),
        (header(count=2**32 - 1) + BODY, "ends within its 4,294,967,295 splats"),
        (zlib.compress(FINE), "not as gzip or 'NGSP' does"),
        (squeezed(b""), "ends within its header"),
        (squeezed(FINE[:15]), "ends within its header"),
        (squeezed(b"X" + FINE[1:]), "where 'NGSP' is expected"),
        (squeezed(header(version=0) + BODY), "version 0 here, this reads 1 to 3"),
        (squeezed(header(version=4) + BODY), "version 4 here, this reads 1 to 3"),
        (squeezed(header(degree=5) + BODY), "degree 5, expected 0 to 4"),
        (squeezed(header(bits=25) + BODY), "25 fractional bits, expected 0 to 24"),
        (squeezed(header(count=2) + BODY), "ends within its 2 splats"),
        (squeezed(header(degree=1) + BODY), "ends within its 1 splats"),
        (squeezed(header(count=2**32 - 1) + BODY), "hardly holds"),
        (squeezed(header(count=0) + BODY), "goes on after its last splat"),
        (squeezed(FINE + b"\0"), "goes on after its last splat"),
        (squeezed(header(flags=2) + BODY + b"\0" * 65537), "goes on after its last splat"),
        (squeezed(FINE)[:-9], "ends within its 1 splats"),
        (squeezed(FINE)[:-8], "ends within its 1 splats"),
        (squeezed(FINE)[:-8] + b"\0" * 8, "gzip stream is damaged"),
        (squeezed(FINE)[:20] + b"\xff" + squeezed(FINE)[21:], "gzip stream is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(tmp_path, data, words):
    (tmp_path / "a.spz").write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        formats.load(tmp_path / "a.spz")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(repr(str(tmp_path / "a.spz")))


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """A thousandfold stream whose header says what it holds; nothing but the header is unpacked."""
    count = 2_000_000
    bomb = squeezed(header(count=count) + bytes(20 * count))
    assert len(bomb) < 50_000
    (tmp_path / "a.spz").write_bytes(bomb)
    asked = []
    inflated = spz_stream._inflated
    monkeypatch.setattr(spz_stream, "_inflated", lambda *a: asked.append(a[2]) or inflated(*a))
    with pytest.raises(ValueError, match="2,000,000 splats take 40,000,000 bytes"):
        formats.load(tmp_path / "a.spz")
    assert asked == [16]


def test_small_files_may_be_as_even_as_they_like(tmp_path):
    count = 100_000
    (tmp_path / "a.spz").write_bytes(squeezed(header(count=count) + bytes(20 * count)))
    assert len(formats.load(tmp_path / "a.spz")) == count


def test_the_largest_component_may_be_any(tmp_path):
    quats = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1], [0.5, 0.5, -0.5, 0.5]])
    splats = cloud(5)
    formats.save(Splats(**{**splats.tensors(), "quats": quats}), tmp_path / "a.spz", clean=False)
    found = formats.load(tmp_path / "a.spz").quats
    assert np.all(angles(found, quats)[:4] == 0)
    assert angles(found, quats)[4] < 0.28
    assert pytest.approx(math.sqrt(0.5)) == spz.QUAT_STEP * 511


# Version 4, and streams that are not compressed


def version_4(degree=0, flags=0, extensions=b"", streams=None, version=4, count=1, toc=None) -> bytes:
    """One splat of BODY in six streams of ZSTD, after the header and a table of their sizes."""
    import zstandard

    parts = streams or [BODY[:9], BODY[9:10], BODY[10:13], BODY[13:16], BODY[16:20], bytes(range(degree * 9))]
    packed = [zstandard.ZstdCompressor().compress(part) for part in parts]
    start = 32 + len(extensions)
    table = b"".join(struct.pack("<QQ", len(p), len(s)) for p, s in zip(packed, parts, strict=True))
    head = MAGIC + struct.pack("<IIBBBBI12x", version, count, degree, 12, flags, len(parts), start)
    return head + extensions + (table if toc is None else toc) + b"".join(packed)


@pytest.mark.parametrize("degree", [0, 1])
def test_version_4_is_the_same_numbers_in_streams(tmp_path, degree):
    (tmp_path / "a.spz").write_bytes(version_4(degree))
    (tmp_path / "b.spz").write_bytes(squeezed(header(degree=degree) + BODY + bytes(range(degree * 9))))
    four, three = formats.load(tmp_path / "a.spz"), formats.load(tmp_path / "b.spz")
    for name, value in three.tensors().items():
        assert torch.equal(four.tensors()[name], value)
    # the reference leaves out empty ones
    short = [BODY[:9], BODY[9:10], BODY[10:13], BODY[13:16], BODY[16:20]]
    (tmp_path / "a.spz").write_bytes(version_4(streams=short))
    assert len(formats.load(tmp_path / "a.spz")) == 1


@pytest.mark.parametrize(("count", "degree"), [(0, 0), (1, 0), (300, 3)])
def test_what_is_written_as_version_4_is_what_version_3_holds(tmp_path, count, degree):
    for name, version in (("a", 3), ("b", 4)):
        formats.save(cloud(count, degree), tmp_path / f"{name}.spz", clean=False, spz_version=version)
    data = (tmp_path / "b.spz").read_bytes()
    assert data[:8] == b"NGSP" + bytes([4, 0, 0, 0])
    three, four = (formats.load(tmp_path / f"{name}.spz") for name in "ab")
    for name, value in three.tensors().items():
        assert torch.equal(four.tensors()[name], value)


def test_version_4_may_say_its_axes_before_its_streams(tmp_path):
    moved = [bytes([0, 0x10, 0, 0, 0x20, 0, 0, 0x30, 0]), BODY[9:10], BODY[10:13], BODY[13:16], BODY[16:20]]
    rest = struct.pack("<IIIIII", 0xADBE0009, 4, 0, 0xADBE0003, 4, 6)
    (tmp_path / "a.spz").write_bytes(version_4(flags=3, extensions=rest, streams=moved))
    file = formats.read(tmp_path / "a.spz")
    assert file.means.tolist() == [[1, -2, -3]]
    assert file.antialiased
    (tmp_path / "a.spz").write_bytes(version_4(flags=0, extensions=rest, streams=moved))
    assert formats.read(tmp_path / "a.spz").means.tolist() == [[1, 2, 3]]


def bad_frame() -> bytes:
    return version_4().replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfe", 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (version_4()[:31], "ends within its header"),
        (version_4()[:40], "table of 6 streams is not within 40 bytes"),
        (version_4()[:-1], "its streams end at byte"),
        (version_4() + b"\0", "its streams end at byte"),
        (version_4(count=2), r"its streams have \[9, 1, 3, 3, 4, 0\] bytes, expected \[18, 2, 6, 6, 8\]"),
        (version_4(count=2**31), "hardly holds"),
        (version_4(degree=0, streams=[BODY[:9]]), "its streams have"),
        (version_4(degree=1)[:12] + b"\5" + version_4(degree=1)[13:], "degree 5, expected 0 to 4"),
        (bad_frame(), "ZSTD stream"),
        (version_4(toc=struct.pack("<QQ", 2**63, 9) * 6), "its streams"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_of_version_4(tmp_path, data, words):
    (tmp_path / "a.spz").write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        formats.load(tmp_path / "a.spz")
    assert "\n" not in str(caught.value)


def test_a_frame_of_zstd_that_grows_is_not_unpacked(tmp_path):
    """Whatever its own header says: the table asks for 9 bytes, so 9 are made."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(64 * 1024**2))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * 1024**2))
    small = (BODY[9:10], BODY[10:13], BODY[13:16], BODY[16:])
    rest = [zstandard.ZstdCompressor().compress(part) for part in small]
    for first in (bomb, unsized):
        sizes = zip([first, *rest], (9, 1, 3, 3, 4), strict=True)
        table = b"".join(struct.pack("<QQ", len(part), size) for part, size in sizes)
        head = MAGIC + struct.pack("<IIBBBBI12x", 4, 1, 0, 12, 0, 5, 32)
        (tmp_path / "a.spz").write_bytes(head + table + b"".join([first, *rest]))
        with pytest.raises(ValueError, match="ZSTD stream"):
            formats.load(tmp_path / "a.spz")


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_older_versions_are_read_with_and_without_gzip(tmp_path, version, compressed):
    positions = np.array([1.5, -2.0, 0.25])
    start = positions.astype("<f2").tobytes() if version == 1 else bytes([0, 24, 0, 0, 0xE0, 0xFF, 0, 4, 0])
    body = start + BODY[9:16] + (BODY[16:20] if version == 3 else bytes([128, 128, 128]))
    data = header(version=version) + body
    (tmp_path / "a.spz").write_bytes(squeezed(data) if compressed else data)
    splats = formats.load(tmp_path / "a.spz")
    assert splats.means[0].tolist() == positions.tolist()
    assert splats.quats[0].tolist() == pytest.approx([1, 0, 0, 0], abs=0.01)


def test_the_flag_of_antialiased_splats(tmp_path):
    from dataclasses import replace

    from splatgen.formats import splat_file

    plain = splat_file.of(cloud(3))
    for antialiased in (False, True):
        formats.save(replace(plain, antialiased=antialiased), tmp_path / "a.spz")
        assert gzip.decompress((tmp_path / "a.spz").read_bytes())[14] == int(antialiased)
        assert formats.read(tmp_path / "a.spz").antialiased is antialiased
