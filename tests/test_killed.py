"""Kill -9 at fifty random moments, inside saves too: a run can be resumed and ends the same to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killing.py")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize(("score", "preference", "moments"), [("sds", "none", 26), ("vsd", "psd", 24)])
def test_a_killed_run_resumes_and_ends_bit_equal(tmp_path, score, preference, moments):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, str(moments), "7", score, preference],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *found = map(json.loads, done.stdout.splitlines())
    assert len(found) == moments
    assert first["calls"] > 100
    assert all(moment["killed"] == -9 for moment in found), found
    assert all(moment["again"] == 0 and moment["same"] for moment in found), (found, done.stderr)
    print(f"{score}+{preference}: {moments} of {first['calls']} moments, all bit-equal")
