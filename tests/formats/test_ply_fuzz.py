"""Files that are damaged or hostile: one line of ValueError, at once, in little memory."""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch

from splatgen import formats
from splatgen.scene.splats import Splats, check


@pytest.fixture(params=["binary", "ascii"])
def good(request, tmp_path):
    """The bytes of a good file, and the size of its header."""
    g = torch.Generator().manual_seed(1)
    splats = Splats(
        means=torch.randn(4, 3, generator=g),
        quats=torch.randn(4, 4, generator=g),
        scales=torch.randn(4, 3, generator=g),
        opacities=torch.randn(4, generator=g),
        sh=torch.randn(4, 4, 3, generator=g),
    )
    path = tmp_path / "good.ply"
    formats.save(splats, path)
    if request.param == "ascii":
        import plyfile

        data = plyfile.PlyData.read(str(path), mmap=False)
        data.text = True
        data.write(str(path))
    data = path.read_bytes()
    return data, data.index(b"end_header\n") + len(b"end_header\n")


def attempt(path, data: bytes) -> str | None:
    """Load these bytes; the error's text, or None when they make valid splats."""
    path.write_bytes(data)
    start = time.process_time()  # of this process: other load does not count
    try:
        splats = formats.load(path)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 1000
        return text
    finally:
        assert time.process_time() - start < 1.0
    check(splats)
    assert all(v.isfinite().all() for v in splats.tensors().values())
    return None


def test_truncation_at_every_byte_of_the_header(good, tmp_path):
    data, header = good
    for size in [*range(header), *range(header, len(data) - 1, 7)]:
        text = attempt(tmp_path / "a.ply", data[:size])
        # a cut ascii number may still be a number, but only in the very last row
        assert text is not None or (size > header and data.count(b"format ascii")), size


def test_random_byte_flips(good, tmp_path):
    data, header = good
    rng = np.random.default_rng(0)
    refused = 0
    for case in range(400):
        damaged = bytearray(data)
        end = header if case % 2 else len(data)
        for at in rng.integers(0, end, rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        refused += attempt(tmp_path / "a.ply", bytes(damaged)) is not None
    assert refused > 100


def test_random_bytes_and_lines(good, tmp_path):
    data, header = good
    rng = np.random.default_rng(1)
    lines = data[:header].split(b"\n")
    for _ in range(100):
        shuffled = [lines[i] for i in rng.integers(0, len(lines), len(lines))]
        attempt(tmp_path / "a.ply", b"\n".join([b"ply", *shuffled, b"end_header\n"]) + data[header:])
        attempt(tmp_path / "a.ply", b"ply\n" + rng.bytes(500))


COUNTS = ["-1", "+4", "4.0", "1e3", "0x4", "", "5", "99999999", "9" * 18, "9" * 19, "9" * 5000, "٤", "4 4"]


@pytest.mark.parametrize("count", COUNTS)
def test_wild_counts_are_refused_before_allocating(good, tmp_path, count):
    data = good[0].replace(b"element vertex 4", f"element vertex {count}".encode())
    tracemalloc.start()
    assert attempt(tmp_path / "a.ply", data) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("count", ["0", "3"])
def test_smaller_counts_are_read(good, tmp_path, count):
    data = good[0].replace(b"element vertex 4", f"element vertex {count}".encode())
    assert attempt(tmp_path / "a.ply", data) is None


def head(*lines: str) -> bytes:
    return "\n".join(["ply", *lines, "end_header", ""]).encode()


BINARY = "format binary_little_endian 1.0"
ASCII = "format ascii 1.0"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"ply", "begins with"),
        (b"\x89PNG\r\n", "another format"),
        (b"solid cube\n", "another format"),
        (b"ply\n" + b"comment x\n" * 10_000, "exceeds 65536 bytes"),
        (b"ply\n" + b"x" * 100_000, "exceeds 65536 bytes"),
        (head("element vertex 0", "property float x"), "no 'format' line"),
        (head("format pickle 1.0"), "'format pickle 1.0'"),
        (head(BINARY, BINARY), "the line"),
        (head(BINARY), "0 elements 'vertex'"),
        (head(BINARY, "element vertex 0", "element vertex 0"), "2 elements 'vertex'"),
        (head(BINARY, "element vertex 1000"), "no properties"),
        (head(BINARY, "property float x"), "the line"),
        (head(BINARY, "element vertex 0", "property list uchar int x"), "list properties"),
        (head(BINARY, "element vertex 0", "property list float"), "'list float'"),
        (head(BINARY, "element vertex 0", "property object x"), "'object x'"),
        (head(BINARY, "element vertex 0", "property float x y"), "'float x y'"),
        (head(BINARY, "element vertex 0", "property float x", "property float x"), "'x' twice"),
        (head(BINARY, "element face 9", "property list uchar int i", "element vertex 0", "property int x"),
         "vertices first"),
        (head(BINARY, f"element a {'9' * 18}", "property int i", "element vertex 1", "property int x"),
         "truncated"),
        (head(ASCII, f"element a {'9' * 18}", "element vertex 1", "property int x"), "truncated"),
        (head(ASCII, "element vertex 1", "property int x") + b"abc\n", "not numbers"),
        (head(ASCII, "element vertex 2", "property int x") + b"\n\n\n\n", "holds 0 rows"),
        (head(ASCII, "element vertex 2", "property int x") + b"1 2\n3\n", "not numbers"),
        (head(BINARY, "element chunk 0", "element vertex 0", "property uint packed_position"),
         "splat-transform"),
    ],
)  # fmt: skip
def test_refusals_say_what_is_wrong(tmp_path, data, words):
    text = attempt(tmp_path / "a.ply", data)
    assert text is not None
    assert words in text
    assert "'" in text.split(" ")[0]  # begins with the path


def test_thousands_of_properties_and_elements(tmp_path):
    many = [f"property char p{i}" for i in range(3600)]
    assert attempt(tmp_path / "a.ply", head(BINARY, "element vertex 0", *many)) is not None
    assert attempt(tmp_path / "a.ply", head(BINARY, *["element a 1"] * 5000)) is not None


def test_memory_stays_near_the_files_size(tmp_path):
    """20 MB of splats of degree 3 are read within 80 MB beyond what Python and torch take."""
    g = torch.Generator().manual_seed(0)
    n = 80_000
    splats = Splats(
        means=torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        scales=torch.randn(n, 3, generator=g),
        opacities=torch.zeros(n),
        sh=torch.randn(n, 16, 3, generator=g),
    )
    formats.save(splats, tmp_path / "a.ply")
    assert (tmp_path / "a.ply").stat().st_size > 19e6
    code = (
        "import resource, sys, splatgen.formats as f, splatgen.formats.ply\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); f.load(sys.argv[1]); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.ply")]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)  # KiB
    assert grown < 80_000
