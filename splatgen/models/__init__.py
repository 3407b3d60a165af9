"""Networks on disk and in memory: the catalogue of published ones, finding, fetching, loading them.

Not here: what a network is for, which priors and rewards know.
"""
