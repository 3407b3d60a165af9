"""Splats and cameras: what is optimised, how it is parametrised, grown, pruned and kept in bounds.

Not here: networks, pictures (render) and files of other programs (formats).
"""
