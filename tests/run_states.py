"""What runs of tests are compared by: the tensors of their newest checkpoints."""

import torch

from splatgen.runs import checkpoint


def stop_at(step):
    """A should_stop that lets `step` steps of this process pass."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


def tensors(run):
    """What the latest checkpoint holds: splats, moments and the densifier's statistics."""
    found = checkpoint.load_latest(run.checkpoints)
    return {f"{part}/{name}": v for part, values in found.parts.items() for name, v in values.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
