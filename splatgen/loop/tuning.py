"""torch's switches while a run lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tuned() -> Iterator[None]:
    """Faster convolutions and float32 products on CUDA; afterwards as whoever uses this process had it.

    Every step asks for convolutions of the same shapes, so a search for the fastest kernel pays. TF32 is for
    what stays in float32 beside networks in half precision: an autoencoder, VSD's copy. Cameras and splats
    do not pass through products of matrices on the device, where it would move them. Both switches are of
    CUDA alone, and nothing is touched in a process that uses no GPU.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, matmul.allow_tf32
    cudnn.benchmark = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.benchmark, matmul.allow_tf32 = before
