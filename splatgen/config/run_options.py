"""Settings of a kind of run: what it writes, what an edit keeps, what is optimised in 2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written at the end."""

    frames: int = 120
    """Turntable frames; 0 writes none."""
    size: int = 256
    """Side of the turntable and preview pictures in pixels."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; 0 writes none but the last."""
    log_every: int = 1
    """Steps between rows of metrics.jsonl."""
    reward_every: int = 10
    """Steps between reward scores of the current render."""
    log: Annotated[Literal["none", "tensorboard", "wandb"], arg(prefix_name=False)] = "none"
    """Where the rows of metrics.jsonl go as well: TensorBoard, in RUN/tensorboard, or Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """What an edit keeps of its source, and how it is put before the cameras."""

    keep: float = 0.02
    """Pull of every pixel back to the source, against the pull of the words; 0 is none. Both are in units of
    predicted noise: what the words ask for by less than this does not happen."""
    fit: Literal["auto", "always", "never"] = "auto"
    """Move and scale the source into view while it is edited: if it is not there already, in any case, or
    not at all."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What is optimised in 2D."""

    space: Literal["latents", "pixels"] = "latents"
    """The prior's own space (its pixels, for a pixel prior), or an image that is encoded at every step."""
    lr: float = 0.03
    """AdamW's, with betas (0.9, 0.99); the papers take 0.01 and 1000 steps."""
    start: Literal["noise", "grey"] = "noise"
    """Unit Gaussian noise in the space, or a grey image."""
    count: Annotated[int, arg(metavar="N")] = 1
    """Images at once, each with noises of its own; vsd shares its copy between them."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; 0 writes none but the last."""
    log_every: Annotated[int, arg(metavar="N")] = 1
    """Steps between rows of metrics.jsonl."""
    reward_every: Annotated[int, arg(metavar="N")] = 10
    """Steps between reward scores of the images."""
    log: Annotated[Literal["none", "tensorboard", "wandb"], arg(prefix_name=False)] = "none"
    """Where the rows of metrics.jsonl go as well: TensorBoard, in RUN/tensorboard, or Weights & Biases."""
