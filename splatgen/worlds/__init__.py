"""Embedded worlds, each a folder: objects with ground truth, their captions, models and evaluation.

Not here: what guides a run; priors and rewards make use of the models trained here.
"""
