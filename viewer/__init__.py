"""The live browser viewer of splatgen: threads of its own, which meet a run only in its channel.

    channel -> pump -> page (panels) -> viser's server -> browsers
    browsers -> panels -> commands in the channel

Nothing here imports torch, and nothing that fails here reaches the run.
"""
