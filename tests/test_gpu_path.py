"""The tests of the GPU path on the pretended device, in a process of their own: it changes torch."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")


def test_the_gpu_path_runs_on_the_pretended_device():
    done = subprocess.run(
        [sys.executable, "-m", "pretend", "pytest", *OPTIONS, str(TESTS / "gpu")],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
