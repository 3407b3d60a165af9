"""The shelf: everyday things with ground truth, a latent prior and rewards, trained here.

Not here: the prior and the rewards as a run meets them (priors/shelf, rewards/shelf), and the models
themselves, which are packed from public collections (`python -m splatgen.worlds.shelf.build`).
"""

import os
from pathlib import Path

VARIABLE = "SPLATGEN_SHELF"  # of the environment: the folder of models
PACKED = "shelf.npz"  # in that folder


def weights_folder() -> Path:
    """Where the packaged weights lie."""
    return Path(__file__).parent / "weights"


def shelf_folder() -> Path | None:
    """The folder of models: SPLATGEN_SHELF, or `shelf` beside the repository; None where there is none."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    beside = Path(__file__).resolve().parents[4] / "shelf"
    return beside if (beside / PACKED).is_file() else None
