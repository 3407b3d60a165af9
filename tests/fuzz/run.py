"""Coverage-guided fuzzing of the readers of splat files, by atheris (libFuzzer for Python).

    python tests/fuzz/run.py ply|splat|spz|glb [SECONDS] [libFuzzer's options]

Needs `pip install atheris` (Linux) beside splatgen's own packages; it is no dependency of splatgen. What it
learns and what it breaks stays in tests/fuzz/found/FORMAT, which git ignores: a broken input is repeated by
giving its path as an option. An input fails by any error but a ValueError in one line, by splats that are
unsound, by a second of time or by 200 MB in one piece.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
with atheris.instrument_imports(include=["splatgen.formats"]):
    import targets

    import splatgen.formats.glb
    import splatgen.formats.ply
    import splatgen.formats.splat
    import splatgen.formats.spz  # noqa: F401

PIECE, BESIDE_TORCH = 200, 1200  # MB, of one allocation and of the whole process


def changed(suffix: str, data: bytes, most: int, seed: int) -> bytes:
    """Another input out of one: half of the time within checksums and lengths."""
    dice = random.Random(seed)
    if dice.random() < 0.5:
        return atheris.Mutate(data, most)
    parts = targets.taken_apart(suffix, data)
    at = dice.randrange(len(parts))
    if suffix == ".glb" and at == 0 and dice.random() < 0.7:
        parts[0] = targets.odd_json(parts[0], dice)
    else:
        parts[at] = atheris.Mutate(parts[at], most)
    return targets.put_together(suffix, parts)[:most]


def main(argv: list[str]) -> None:
    if len(argv) < 2 or argv[1] not in ("ply", "splat", "spz", "glb"):
        sys.exit(__doc__)
    logging.disable()  # of the readers' warnings: thousands a second
    suffix, rest = f".{argv[1]}", argv[2:]
    seconds = int(rest.pop(0)) if rest and rest[0].isdigit() else 60
    corpus = HERE / "found" / argv[1]
    corpus.mkdir(parents=True, exist_ok=True)
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        for i, seed in enumerate(targets.seeds(suffix, Path(folder))):
            (corpus / f"seed-{i}").write_bytes(seed)
        path = Path(folder) / f"input{suffix}"
        options = [
            f"-max_total_time={seconds}", f"-malloc_limit_mb={PIECE}", f"-rss_limit_mb={BESIDE_TORCH}",
            "-timeout=20", "-max_len=8192", f"-artifact_prefix={corpus}/broken-", "-print_final_stats=1",
        ]  # fmt: skip
        files = [word for word in rest if not word.startswith("-")]
        words = [argv[0], *options, *(word for word in rest if word not in files), *(files or [str(corpus)])]
        atheris.Setup(
            words,
            lambda data: targets.attempt(path, data),
            custom_mutator=lambda data, most, seed: changed(suffix, data, most, seed),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
