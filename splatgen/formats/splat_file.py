"""Splats as a file holds them, in NumPy, with what the file says beside them.

Positions are float64: a survey's are millions of units from the origin, where float32 has steps of a quarter.
Whoever moves splats moves them here, before they are rounded. No torch, so that `splatgen export` needs none.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from splatgen.scene.extent import box

if TYPE_CHECKING:
    from splatgen.scene.splats import Splats

Array = NDArray[Any]
COARSE = 1e-3  # of an object's width: steps of its positions that can be seen
NORMALS = ("nx", "ny", "nz")


@dataclass(frozen=True, kw_only=True)
class SplatFile:
    """Raw parameters in the internal frame: scales are logs, opacities are logits, quats need not be unit."""

    means: Array  # [N, 3] float64, within what float32 reaches
    quats: Array  # [N, 4] wxyz
    scales: Array  # [N, 3] log
    opacities: Array  # [N] logit
    sh: Array  # [N, K, 3]
    antialiased: bool = False  # made for a renderer that makes small splats fainter (Mip-Splatting)
    upright: bool = True  # whether the file, its format or the caller says which axes it has
    comments: tuple[str, ...] = ()
    extras: Mapping[str, Array] = field(default_factory=dict)  # further numbers of each splat by name, [N]

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return math.isqrt(self.sh.shape[1]) - 1

    def arrays(self) -> dict[str, Any]:
        """Name to numbers, as the fields of Splats."""
        return {name: getattr(self, name) for name in ("means", "quats", "scales", "opacities", "sh")}

    def select(self, index: Array) -> SplatFile:
        """The splats at an index or mask, with all that belongs to each."""
        extras = {name: value[index] for name, value in self.extras.items()}
        return replace(self, extras=extras, **{name: value[index] for name, value in self.arrays().items()})

    def splats(self, *, exact: bool = False) -> Splats:
        """As tensors on the CPU, float32; exact leaves the positions in float64, for who moves them first."""
        import torch

        from splatgen.scene.splats import Splats

        arrays = {name: np.array(value, np.float32) for name, value in self.arrays().items()}
        if exact:
            arrays["means"] = np.array(self.means)
        return Splats(**{name: torch.from_numpy(value) for name, value in arrays.items()})


def of(splats: Splats) -> SplatFile:
    """Splats of any device and precision as a file would hold them; ValueError where shapes disagree."""
    import torch

    from splatgen.scene.splats import check

    check(splats)
    numbers = {name: value.detach().to("cpu", torch.float32) for name, value in splats.tensors().items()}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in numbers.items()}
    return SplatFile(**{**arrays, "means": arrays["means"].astype(np.float64)})


def sigmoid(values: Array) -> NDArray[np.float64]:
    """Of numbers of any size, float64, without overflow."""
    small = np.exp(-np.abs(values.astype(np.float64)))
    found: NDArray[np.float64] = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return found


def recentred(file: SplatFile) -> SplatFile:
    """Splats with their middle at the origin: of the box with 95 % of the opacity along each axis."""
    return replace(file, means=file.means - middle(file)) if len(file) else file


def middle(file: SplatFile) -> Array:
    """Where the middle of what is seen is, [3] float64; broken splats do not count."""
    sound = np.isfinite(file.means).all(-1) & np.isfinite(file.opacities)
    if not sound.any():
        raise ValueError("there are no splats with a place: nothing has a middle")
    found: Array = box(file.means[sound], sigmoid(file.opacities[sound])).mean(0)
    return found


def width(file: SplatFile) -> float:
    """The longest side of the box that holds what can be seen; 0 for nothing and for a point."""
    sound = np.isfinite(file.means).all(-1) & np.isfinite(file.opacities)
    if not sound.any():
        return 0.0
    low, high = box(file.means[sound], sigmoid(file.opacities[sound]))
    return float((high - low).max())


def coarse(file: SplatFile, step: float | None = None) -> str:
    """Words about positions in steps that can be seen in the object, "" where there are none.

    step is that of a format; None is float32's where the splats are farthest away, for a file that has finer.
    """
    means = file.means[np.isfinite(file.means).all(-1)]
    if step is None:
        rounded = means.astype(np.float32)
        if (rounded == means).all():
            return ""
        step = float(np.spacing(np.abs(rounded).max()))
    wide = width(file)
    if not step > COARSE * wide > 0.0:
        return ""
    return f"{100 * step / wide:.2g} % of the object's width"
