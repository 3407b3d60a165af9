"""The verbs of the command line, one module each with `main(argv) -> exit code`.

Not here: what a run computes or writes; a verb reads words, checks them and calls a room below.
"""
