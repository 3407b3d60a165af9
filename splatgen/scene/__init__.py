"""Splats and cameras: what is optimised, how it is parametrised, grown, pruned and kept in bounds.

Not here: networks, pictures (rasterizer) and files of other programs (formats).
"""
