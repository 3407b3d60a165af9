"""The kernels as the rasterizer launches them, compiled for a GPU that is not here."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton: make triton")
if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
    pytest.skip("compiles for another GPU, and so without the interpreter", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from splatgen.rasterizer import triton_kernels, triton_rasterizer


class Absent:
    """The driver of a device that cannot run anything."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 86, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(autouse=True)
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Absent())


def test_one_binary_serves_every_size():
    """Compiling takes a second: a new picture size or number of channels must not be a new kernel."""
    floats, integers = torch.zeros(64), torch.zeros(64, dtype=torch.int32)
    options = {"ROWS": triton_rasterizer.ROWS, "num_warps": triton_rasterizer.WARPS, "enable_fp_fusion": True}
    lists = (floats, integers, integers, floats)
    hashes = set()
    for sizes in ((512, 512, 32, 32, 4, 0), (1, 100, 1, 7, 1, 0), (33, 16, 3, 1, 7, 4)):
        forward = triton_kernels.composite_forward.warmup(
            *lists, floats, floats, integers, *sizes, **options, grid=(4,)
        )
        backward = triton_kernels.composite_backward.warmup(
            *lists, floats, floats, floats, integers, floats, *sizes, **options, ABSGRAD=False, grid=(4,)
        )
        hashes |= {forward.hash, backward.hash}
    assert len(hashes) == 2
