"""Runs: the step, the loop around it, its subjects (objects and images), and what they leave.

Not here: the command line, the browser, and formulas, which stand in guidance and scene.
"""
