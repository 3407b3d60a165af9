"""splatgen: text to 3D Gaussian splats under a 2D diffusion prior, aligned by reward models.

Not here: anything but the door; every idea has its room, see docs/architecture.md.
"""

__version__ = "0.1.0"
