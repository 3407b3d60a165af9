"""The embedded world: procedural objects with ground truth, a small prior and a reward, trained here."""

from pathlib import Path


def weights_folder() -> Path:
    """Where the packaged weights lie."""
    return Path(__file__).parent / "weights"
