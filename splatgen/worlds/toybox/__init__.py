"""The toybox: procedural objects with ground truth, a small prior and a reward, trained here.

Not here: the prior and the reward as a run meets them (priors/toybox, rewards/toybox).
"""

from pathlib import Path


def weights_folder() -> Path:
    """Where the packaged weights lie."""
    return Path(__file__).parent / "weights"
