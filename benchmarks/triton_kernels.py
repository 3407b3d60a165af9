"""What Triton's compiler makes of the rasterizer's kernels, for GPUs that need not be here.

    python benchmarks/triton_kernels.py [--out FILE.json] [--check]

Compiles each kernel as the rasterizer launches it, for each architecture, and writes down registers, shared
memory and spills. NVIDIA's numbers are those of cuobjdump, which comes with Triton, on the finished machine
code (`-res-usage`); a spilled register lies in the stack or in local memory, so that 0 bytes there mean none.
AMD's are those that LLVM writes into the code object's notes. --check exits with 1 when anything spills, when
a program needs shared memory or a barrier, or when registers leave room for fewer than 16 programs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from splatgen.rasterizer import triton_rasterizer
from splatgen.rasterizer.triton_launch import Module, kernels

# Programs (blocks) that a multiprocessor holds at most, by capability, and its registers: CUDA's table.
NVIDIA = {75: 16, 80: 32, 86: 16, 89: 24, 90: 32, 120: 24}
REGISTERS = 65536
ENOUGH = 16  # programs of one warp: what the smallest of these GPUs can hold
AMD = ("gfx1100",)
WIDE, SHORT = "*i64", "*i16"
POINTERS = dict.fromkeys(("entries", "starts", "last", "radii", "boxes", "counts", "rows"), "*i32")
POINTERS |= {"nearest": WIDE, "ends": WIDE, "images": WIDE, "tiles": SHORT}
INTEGERS = {
    "width",
    "height",
    "tiles_x",
    "tiles_y",
    "channels",
    "first",
    "count",
    "cameras",
    "across",
    "down",
}
NUMBERS = {"near", "far", "eps2d", "clip"}
_ROWS, _BLOCK = {"ROWS": triton_rasterizer.ROWS}, {"BLOCK": triton_rasterizer.BLOCK}
_CLASSIC = {**_BLOCK, "ANTIALIASED": False}
KERNELS: tuple[tuple[str, Module, str, dict[str, Any]], ...] = (
    ("forward", "triton_kernels", "composite_forward", _ROWS),
    ("backward", "triton_kernels", "composite_backward", {**_ROWS, "ABSGRAD": False}),
    ("backward, absgrad", "triton_kernels", "composite_backward", {**_ROWS, "ABSGRAD": True}),
    ("projection", "triton_projection", "project_forward", _CLASSIC),
    ("projection, back", "triton_projection", "project_backward", {**_CLASSIC, "VIEWS": False}),
    ("projection, back, cameras", "triton_projection", "project_backward", {**_CLASSIC, "VIEWS": True}),
    ("spans", "triton_lists", "spans", _BLOCK),
    ("spread", "triton_lists", "spread", _BLOCK),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel on one architecture."""

    kernel: str
    target: str
    registers: int  # of a thread; on AMD its vector registers
    shared: int  # bytes a program
    spills: int  # bytes a thread
    barriers: int
    programs: int | None  # a multiprocessor holds at once; None where it is not known


def compiled(module: Module, name: str, constants: dict[str, Any], target: GPUTarget) -> Any:
    """A kernel as `triton_rasterizer` launches it: pointers to 16-byte boundaries, sizes of any value."""
    function = getattr(kernels(module), name)
    names = [parameter.name for parameter in function.params]
    signature = {
        **dict.fromkeys(names, "*fp32"), **POINTERS, **dict.fromkeys(INTEGERS, "i32"),
        **dict.fromkeys(NUMBERS, "fp32"),
        **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    signature = {name: signature[name] for name in names}
    source = ASTSource(
        function,
        signature,
        constexprs={(names.index(key),): value for key, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")},
    )
    options = {"num_warps": triton_rasterizer.WARPS, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def output(*command: str | Path) -> str:
    """What a program says, on either stream."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout


def nvidia(kernel: str, capability: int, code: Any) -> Row:
    """From cuobjdump's line REG:64 STACK:0 SHARED:0 LOCAL:0 and the disassembled code."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(code.asm["cubin"])
        usage = output(tools / "cuobjdump", "-res-usage", cubin)
        listing = output(tools / "nvdisasm", "-c", cubin)
    found = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    threads = 32 * triton_rasterizer.WARPS
    held = REGISTERS // (-(-found["REG"] // 8) * 8 * threads)  # registers are given out by eights
    return Row(
        kernel=kernel,
        target=f"sm_{capability}",
        registers=found["REG"],
        shared=code.metadata.shared,
        spills=found["STACK"] + found["LOCAL"],
        barriers=len(re.findall(r"\bBAR\.", listing)),
        programs=min(NVIDIA[capability], held),
    )


def amd(kernel: str, arch: str, code: Any) -> Row:
    """From the notes and the instructions of LLVM's assembly."""
    text = code.asm["amdgcn"]
    note = {key: int(n) for key, n in re.findall(r"\.(\w+):\s*(\d+)", text)}
    return Row(
        kernel=kernel,
        target=arch,
        registers=note["vgpr_count"],
        shared=note["group_segment_fixed_size"],
        spills=4 * (note["vgpr_spill_count"] + note["sgpr_spill_count"]) + note["private_segment_fixed_size"],
        barriers=len(re.findall(r"^\s*s_barrier", text, re.MULTILINE)),
        programs=None,
    )


def rows() -> list[Row]:
    found = []
    for kernel, module, name, constants in KERNELS:
        for capability in NVIDIA:
            code = compiled(module, name, constants, GPUTarget("cuda", capability, 32))
            found.append(nvidia(kernel, capability, code))
        for arch in AMD:
            found.append(amd(kernel, arch, compiled(module, name, constants, GPUTarget("hip", arch, 32))))
    return found


def faults(found: Sequence[Row]) -> list[str]:
    """What a row breaks of what the kernels promise."""
    broken = []
    for row in found:
        where = f"{row.kernel} on {row.target}"
        if row.spills or row.shared or row.barriers:
            broken.append(f"{where}: {row.spills} B spilled, {row.shared} B shared, {row.barriers} barriers")
        if row.programs is not None and row.programs < ENOUGH:
            broken.append(f"{where}: {row.registers} registers leave room for {row.programs} programs")
    return broken


def table(found: Sequence[Row]) -> str:
    """Registers, with shared memory and spills where there are any, as Markdown."""
    targets = list(dict.fromkeys(row.target for row in found))
    lines = [f"| kernel | {' | '.join(targets)} |", f"|---|{'---|' * len(targets)}"]
    for kernel in dict.fromkeys(row.kernel for row in found):
        cells = []
        for target in targets:
            row = next(r for r in found if (r.kernel, r.target) == (kernel, target))
            held = "" if row.programs is None else f" x {row.programs}"
            cells.append(f"{row.registers}{held}, {row.shared} B, {row.spills} B")
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a kernel breaks a promise")
    options = parser.parse_args(argv)
    found = rows()
    print(f"Triton {version('triton')}: registers x programs a multiprocessor, shared memory, spills\n")
    print(table(found))
    if options.out is not None:
        report = {
            "date": datetime.date.today().isoformat(),
            "triton": version("triton"),
            "torch": version("torch"),
            "rows_of_pixels": triton_rasterizer.ROWS,
            "warps": triton_rasterizer.WARPS,
            "rows": [asdict(row) for row in found],
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    broken = faults(found)
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if options.check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
