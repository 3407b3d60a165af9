"""The real Triton kernels, interpreted, in a run on the pretended device (`make triton`)."""

import os

import pytest
import steps
import torch
from pretend import counted
from pretend.device import NAME
from pretend.tensors import held

pytest.importorskip("triton", reason="needs Triton: make triton")
if torch.cuda.get_device_name() != NAME or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs the pretended device and TRITON_INTERPRET=1: make triton", allow_module_level=True)

from splatgen.rasterizer import backends, triton_launch

WAITS = 1  # how long the lists of the tiles are


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """The interpreter is given the numbers that a tensor of the pretended device holds."""
    launch = triton_launch.launch

    def given(kernel, programs, *args, **constants):
        with torch._C.DisableTorchFunction():
            numbers = [held(z) if isinstance(z, torch.Tensor) else z for z in args]
        launch(kernel, programs, *numbers, **constants)

    monkeypatch.setattr(triton_launch, "launch", given)
    monkeypatch.setitem(backends.PROBLEMS, "triton", lambda: None)


def test_a_step_is_that_of_gsplat_and_waits_no_more():
    found = {}
    for backend in ("gsplat", "triton"):
        given = steps.config(render={"backend": backend})
        models, scene = steps.start(given)
        with counted() as waits:
            seen = steps.step(given, models, scene)
        assert not float(seen.failed)
        # the first splats are round: their turns have no gradient, and Adam makes steps of its rounding
        moved = [p.detach().cpu() for name, p in scene.params.items() if name != "quats"]
        found[backend] = seen.found.value.cpu(), *moved
    assert waits.total() <= WAITS, waits
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
