"""Where the studio's objects stand in the scene."""

from __future__ import annotations

import numpy as np
import pytest
from splatgen_viewer.studio_grid import APART, places


@pytest.mark.parametrize("count", range(10))
def test_objects_stand_apart_around_the_middle_and_none_is_no_failure(count: int) -> None:
    """None is asked for whenever the last past object or opened file is left."""
    found = np.array(places(count)).reshape(-1, 3)
    assert len(found) == count
    between = np.linalg.norm(found[:, None] - found[None], axis=-1)[~np.eye(count, dtype=bool)]
    assert (between > APART - 1e-9).all()
    assert not found[:, 2].any()
    if count == 1:
        assert not found.any()
