"""How Triton's kernels are found and launched.

Triton is imported here, not earlier.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

Module = Literal["triton_kernels", "triton_lists", "triton_projection"]


def kernels(module: Module) -> Any:
    """A module of kernels; ImportError says how to get Triton."""
    try:
        from splatgen.rasterizer import triton_kernels, triton_lists, triton_projection
    except ImportError as error:
        raise ImportError(
            f"rendering with Triton needs the package, which cannot be imported ({error}): "
            "install a torch for CUDA, which brings it"
        ) from error
    found = {
        "triton_kernels": triton_kernels,
        "triton_lists": triton_lists,
        "triton_projection": triton_projection,
    }
    return found[module]


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """A kernel on the device of its first argument, a tensor; nothing for no programs."""
    if programs:
        with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*args, **constants, enable_fp_fusion=True)
