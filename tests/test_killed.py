"""Kill -9 and Ctrl-C at random moments, inside writes too: what goes on ends the same to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killing.py")
# scenarios of one process share its imports
OBJECTS = {"vsd+psd": 6, "int": 4, "int-int": 4, "term": 3}
OTHERS = {"sds": 6, "stages": 4, "steered": 3, "edit": 4, "image": 4, "compare": 4}
INTERRUPTS = ("int", "int-int", "term")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("scenarios", [OBJECTS, OTHERS], ids=" ".join)
def test_what_is_killed_or_interrupted_goes_on_and_ends_bit_equal(tmp_path, scenarios):
    words = [f"{name}:{moments}" for name, moments in scenarios.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, *words], capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for name, moments in scenarios.items():
        mine = [moment for moment in found if moment["scenario"] == name]
        assert len(mine) == moments + (name in INTERRUPTS)
        assert mine[0]["calls"] > 100
        assert all(moment["expected"] and moment["same"] for moment in mine), mine
        # nothing that a kill left half-written stays
        assert not any(moment["left"] for moment in mine), mine
        # what cannot go on had nothing to lose
        assert all(moment["goes_on"] or moment["had"] == 0 for moment in mine), mine
        assert sum(moment["goes_on"] for moment in mine) >= 0.7 * moments, mine
    for moment in found:
        if moment["scenario"] in INTERRUPTS:
            check_interrupt(**moment)


def check_interrupt(*, scenario, at, code, status, had, goes_on, err, **_):
    """At 0, the networks are being loaded."""
    assert "Traceback" not in err
    if scenario == "int-int":
        assert "splatgen: error: interrupted\n" in err
        assert goes_on == (at > 0 and status is not None)
        assert ("splatgen: the run is in" in err) == (status == "stopped")
    elif code == 0:  # asked after the last step: the results are made
        assert status == "done"
        assert at > 0
    else:
        assert (status, "continue with: splatgen resume" in err) == ("stopped", True)
        assert had > 0
