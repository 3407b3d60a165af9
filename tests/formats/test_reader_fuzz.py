"""Files that are damaged or hostile, by the thousand: one line of ValueError, at once, in little memory."""

import gzip
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import targets

SUFFIXES = [".ply", ".splat", ".spz", ".glb"]
HEADERS = {".ply": 300, ".splat": 32, ".spz": 60, ".glb": 700}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> dict[str, list[bytes]]:
    folder = tmp_path_factory.mktemp("seeds")
    return {suffix: targets.seeds(suffix, folder) for suffix in SUFFIXES}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_seeds_are_sound(seeds, tmp_path, suffix):
    """Guards the tests below: what is refused from the start is not fuzzed."""
    for data in seeds[suffix]:
        assert targets.attempt(tmp_path / f"a{suffix}", data) is None
        parts = targets.taken_apart(suffix, data)
        assert targets.attempt(tmp_path / f"a{suffix}", targets.put_together(suffix, parts)) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncation_at_every_byte_of_the_header(seeds, tmp_path, suffix):
    for i, data in enumerate(seeds[suffix]):
        header = min(len(data), HEADERS[suffix] if i == 0 else 64)
        for size in [*range(header), *range(header, len(data) - 1, 17)]:
            text = targets.attempt(tmp_path / f"a{suffix}", data[:size])
            # a .splat has no header; a cut ascii number is a number, but only in the very last row
            whole = suffix == ".splat" and size % 32 == 0
            assert text is not None or whole or b"format ascii" in data


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_bytes(seeds, tmp_path, suffix):
    dice = random.Random(0)
    for case in range(1000):
        data = bytearray(dice.choice(seeds[suffix]))
        end = min(len(data), HEADERS[suffix]) if case % 2 else len(data)
        for _ in range(dice.randrange(1, 5)):
            data[dice.randrange(end)] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        targets.attempt(tmp_path / f"a{suffix}", bytes(data))


@pytest.mark.parametrize("suffix", [".spz", ".glb"])
def test_random_bytes_within_checksums_and_lengths(seeds, tmp_path, suffix):
    dice = random.Random(1)
    passed = 0
    for _ in range(1000):
        parts = [bytearray(part) for part in targets.taken_apart(suffix, dice.choice(seeds[suffix]))]
        for _ in range(dice.randrange(1, 4)):
            part = dice.choice(parts)
            part[dice.randrange(len(part) if dice.random() < 0.5 else min(len(part), 40))] = dice.randrange(
                256
            )
        data = targets.put_together(suffix, [bytes(part) for part in parts])
        passed += targets.attempt(tmp_path / f"a{suffix}", data) is None
    assert 50 < passed < 950


def test_odd_values_in_the_json_of_a_glb(seeds, tmp_path):
    dice = random.Random(2)
    refused = 0
    for _ in range(1000):
        text, binary = targets.taken_apart(".glb", dice.choice(seeds[".glb"]))
        for _ in range(dice.randrange(1, 3)):
            text = targets.odd_json(text, dice)
        refused += (
            targets.attempt(tmp_path / "a.glb", targets.put_together(".glb", [text, binary])) is not None
        )
    assert 250 < refused < 990


WILD = [0, 2, 255, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def test_wild_counts_of_a_spz(seeds, tmp_path):
    for data in seeds[".spz"][:3]:  # without extensions, which may follow no splats as well
        (stream,) = targets.taken_apart(".spz", data)
        for at in (4, 8):  # version and count
            for count in WILD:
                wild = stream[:at] + struct.pack("<I", count) + stream[at + 4 :]
                if wild != stream:
                    assert (
                        targets.attempt(tmp_path / "a.spz", targets.put_together(".spz", [wild])) is not None
                    )


def test_wild_lengths_of_a_glb(seeds, tmp_path):
    for data in seeds[".glb"]:
        size = struct.unpack_from("<I", data, 12)[0]
        for at in (4, 8, 12, 16, 20 + size, 24 + size):
            for count in WILD:
                wild = data[:at] + struct.pack("<I", count) + data[at + 4 :]
                assert targets.attempt(tmp_path / "a.glb", wild) is not None or wild == data


def bombs() -> dict[str, bytes]:
    """Small files that ask for much."""
    spz = struct.Struct("<4sIIBBBB")
    zeros = bytes(64 * 1024**2)
    tree = {
        "scene": 0,
        "scenes": [{"nodes": [0, 0]}],
        "nodes": [{"children": [i + 1, i + 1]} for i in range(5000)] + [{}],
    }
    deep = b'{"a":' * 200_000
    wide = [
        b'{"a":[' + b",".join([item] * (1024**2 // (len(item) + 1) - 8)) + b"]}"
        for item in (b"{}", b"[[]]", b"1.5")
    ]
    ply = "ply\nformat {}\nelement vertex {}\n" + "property double x\n" * 1 + "end_header\n"
    return {
        "true.spz": gzip.compress(spz.pack(b"NGSP", 3, 64 * 1024**2 // 20, 0, 12, 0, 0) + zeros, 1),
        "false.spz": gzip.compress(spz.pack(b"NGSP", 3, 2**32 - 1, 3, 12, 0, 0) + zeros, 1),
        "tail.spz": gzip.compress(spz.pack(b"NGSP", 3, 0, 0, 12, 2, 0) + zeros, 1),
        "start.spz": gzip.compress(zeros, 1),
        "deep.glb": targets.put_together(".glb", [deep, b""]),
        "tree.glb": targets.put_together(".glb", [json.dumps(tree).encode(), b""]),
        **{f"wide-{i}.glb": targets.put_together(".glb", [text, b""]) for i, text in enumerate(wide)},
        "binary.ply": ply.format("binary_little_endian 1.0", 10**15).encode() + bytes(1000),
        "ascii.ply": ply.format("ascii 1.0", 10**15).encode() + b"1 " * 1000,
        "long.ply": b"ply\nformat ascii 1.0\n" + b"x" * 10**6,
        "odd.splat": bytes(10**6 + 1),
    }


def test_bombs_take_neither_memory_nor_time(tmp_path):
    """All of them in one process, which grows by less than 200 MB over what Python and torch take."""
    for name, data in bombs().items():
        assert len(data) < 2 * 1024**2, name
        (tmp_path / name).write_bytes(data)
    code = (
        "import importlib, resource, sys, time; from pathlib import Path; import splatgen.formats as f\n"
        "for name in f.FORMATS.values(): importlib.import_module(name)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    start, refused = time.process_time(), False\n"
        "    try: f.load(path)\n"
        "    except ValueError: refused = True\n"
        "    print(path.name, refused, time.process_time() - start < 1, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {row[0] for row in rows} == set(bombs())
    for name, refused, quick, grown in rows:
        assert (refused, quick) == ("True", "True"), name
        assert int(grown) < 200, name


def test_the_largest_that_is_read_out_of_a_small_file_stays_small(tmp_path):
    """A stream of 16 MB of zeros is the most that 20 kB may hold."""
    count = 16 * 1024**2 // 20
    header = struct.pack("<4sIIBBBB", b"NGSP", 3, count, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + bytes(20 * count), 9))
    assert (tmp_path / "a.spz").stat().st_size < 20_000
    code = (
        "import resource, sys; import splatgen.formats as f, splatgen.formats.spz\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); n = len(f.load(sys.argv[1])); print(n, peak() - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.spz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, grown = map(int, done.stdout.split())
    assert found == count
    assert grown < 200


def test_folders_and_pipes_are_refused(tmp_path):
    import os

    from splatgen import formats

    for suffix in SUFFIXES:
        folder, pipe = Path(tmp_path / f"folder{suffix}"), tmp_path / f"pipe{suffix}"
        folder.mkdir()
        os.mkfifo(pipe)
        for path in (folder, pipe):
            with pytest.raises(ValueError, match=f"is not a file: give a {suffix} file"):
                formats.load(path)
        with pytest.raises(FileNotFoundError):
            formats.load(tmp_path / f"none{suffix}")
