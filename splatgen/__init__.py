"""splatgen: text to 3D Gaussian splats under a 2D diffusion prior, aligned by reward models."""

__version__ = "0.1.0"
