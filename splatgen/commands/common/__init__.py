"""What the verbs share: arguments, checks, errors, signals, progress, and what doctor finds.

Not here: a verb of its own.
"""
