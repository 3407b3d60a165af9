"""Many runs as one: what is run, who runs it, what came out, and how that is shown.

Not here: how one run is made (loop), what measures a world (worlds), words on the command line (commands).
"""
