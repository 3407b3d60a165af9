"""Settings of what is optimised: views, splats, rates, densification, penalties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

Fall = Annotated[tuple[float, float, float] | None, arg(metavar="FROM TO SHARE", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Cameras and backgrounds of the optimisation."""

    count: int = 4
    """Views a step; their azimuths are stratified."""
    size: tuple[int, ...] = (64,)
    """Render sizes in pixels; the run is divided evenly among them."""
    elevation: tuple[float, float] = (-15.0, 60.0)
    """Degrees."""
    elevation_law: Literal["degrees", "mixed"] = "degrees"
    """Uniform in degrees; or in half of the steps on the sphere, which has fewer views from overhead."""
    distance: tuple[float, float] = (2.5, 2.5)
    """World units."""
    fov: tuple[float, float] = (50.0, 50.0)
    """Vertical field of view, degrees."""
    relative: bool = False
    """Distances are multiples of 1 / tan(fov / 2): what is 1 high fills half of the picture at distance 1,
    at any field of view."""
    background: Literal["random", "white-or-black", "white", "black", "grey"] = "random"
    """What is behind the splats while they are optimised; views of a group share it."""


@dataclass(frozen=True, kw_only=True)
class SplatOptions:
    """The cloud at the start."""

    count: int = 1500
    """Splats at the start."""
    radius: float = 0.6
    """Radius of the ball they fill, world units."""
    scale: float = 0.07
    """Standard deviation of each, world units."""
    opacity: float = 0.25
    """Of each, 0 to 1."""
    sh_degree: int = 0
    """Degree of the spherical harmonics, 0 to 3."""


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """Adam's learning rates by parameter group."""

    means: float = 0.006
    scales: float = 0.02
    quats: float = 0.01
    opacities: float = 0.05
    sh: float = 0.06
    """Of the degree-0 colour; higher degrees get a twentieth."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's; published hosts have torch's (0.9, 0.999)."""
    decay_from: float = 0.5
    """Fraction of the run from which the rates fall."""
    final: float = 0.1
    """Share of the rates left at the end."""
    means_fall: Fall = None
    """Of the rate of means, in place of these two: fractions of the run between which it falls, and the share
    left."""
    scales_fall: Fall = None
    """Of the rate of scales."""
    quats_fall: Fall = None
    """Of the rate of quats."""
    opacities_fall: Fall = None
    """Of the rate of opacities."""
    sh_fall: Fall = None
    """Of the rate of sh."""


@dataclass(frozen=True, kw_only=True)
class DensifyOptions:
    """Splitting, cloning and pruning (gsplat's DefaultStrategy)."""

    start: float = 0.2
    stop: float = 0.7
    """Fractions of the run between which the cloud is refined; start = stop turns it off."""
    rounds: int = 5
    """How many times."""
    grow: float = 0.1
    """Share of the visible splats, those with the largest screen-space gradients, that grow in a round. A
    share, not a threshold: it does not depend on the scale of the guidance gradient."""
    split_scale: float = 0.04
    """Splats larger than this (world units) are split, smaller ones cloned."""
    prune_opacity: float = 0.02
    prune_scale: float = 0.5
    """Splats larger than this (world units) are removed."""
    max_splats: int = 20_000
    """Hard cap."""
    reset: tuple[float, ...] = ()
    """Fractions of the run at which opacities are reset to twice prune_opacity."""


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """What renders the steps of a run."""

    backend: Literal["auto", "gsplat", "triton"] = "auto"
    """On CUDA: gsplat, or our own kernels in Triton, which need no nvcc; auto takes gsplat where its kernels
    are built, else Triton."""


@dataclass(frozen=True, kw_only=True)
class RegulariseOptions:
    """Penalties on the splats, added to the guidance gradient."""

    radius: float = 10.0
    """On centres beyond `max_radius`."""
    max_radius: float = 1.0
    scale: float = 0.0
    """On the mean scale."""
    aspect: float = 0.1
    """On axes longer than `max_aspect` times the shortest but one."""
    max_aspect: float = 4.0
    opacity: float = 0.0
    """On the mean opacity: thins floaters."""
    position: float = 0.0
    """On the mean distance of centres from the origin."""
    mass: float = 0.0
    """On the sum of opacities, each times its splat's size."""
    axes: float = 0.0
    """On the sum of all axes."""
    tv: float = 0.0
    """On the total variation of the picture; this and the next two go through the render, and never drive
    densification."""
    depth_tv: float = 0.0
    """Of the depth."""
    normal_tv: float = 0.0
    """Of the normals of the depth."""
