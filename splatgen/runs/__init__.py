"""What a run leaves on disk, whole files only: folder, checkpoints, metrics, films; and its randomness.

Not here: what a run computes; nothing here knows splats, networks or settings.
"""
