"""The constant of spherical harmonics that colours are stored by. Imports nothing: formats need no torch."""

from __future__ import annotations

SH_C0 = 0.28209479177387814  # the degree-0 basis function; colour = 0.5 + SH_C0 * f_dc
