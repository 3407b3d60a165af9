"""Splats in Niantic's .spz, a compressed stream of bytes: writes versions 3 and 4, reads 1 to 4.

After a header of 16 bytes each property follows for all splats: positions (3 x 24-bit fixed point),
opacities, colours, log scales, rotations and the spherical harmonics beyond degree 0, coefficient by
coefficient. A rotation is the three smallest components of xyzw in 10 bits each and the number of the
fourth; in versions 1 and 2 it is x, y and z in a byte each, and in version 1 positions are float16. Version 4
compresses each property for itself.

Axes are right, up, back: the internal frame, unless an extension says others. PlayCanvas' tools, SuperSplat
among them, take those of a .ply instead, so a file for them is written with frame="ply".

Source: github.com/nianticlabs/spz, README.md and src/cc/load-spz.cc. Shapes: N splats,
K = (degree + 1)^2 spherical-harmonic coefficients.
"""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.formats import frames, reading, spz_stream, writing
from splatgen.formats.splat_file import Array, SplatFile, coarse, sigmoid
from splatgen.formats.spz_stream import ANTIALIASED, AXES, Header, Stream
from splatgen.runs import atomic

MOST_DEGREE = 3
KEEPS = frozenset({"antialiased"})
FRACTIONAL_BITS = 12  # positions in steps of 1/4096
LARGEST = 2**23 - 1  # in 24 bits with a sign
SCALE_STEP, LEAST_SCALE = 1 / 16, -10.0
COLOR_STEP = 1 / (255 * 0.15)  # of f_dc; colours reach beyond 0..1, and higher degrees bring them back
SH_STEPS = (8, 16, 16)  # of 1/128, for degrees 1 to 3: coarser than a byte, so that gzip finds repetitions
QUAT_STEP = 0.5**0.5 / 511  # no component but the largest exceeds the root of 1/2
_STORED = np.array([(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)])  # components, by the one that is left out
_Bytes = NDArray[np.uint8]
_log = logging.getLogger(__name__)


def save(
    file: SplatFile,
    path: str | os.PathLike[str],
    *,
    comments: Sequence[str] = (),
    sh_degree: int | None = None,
    frame: str = "rub",
    clean: bool = True,
    version: int = 3,
) -> int:
    """Write splats atomically; return how many were dropped.

    version is 3, which every reader knows, or 4, which is smaller and quicker to read. The format has no room
    for comments. clean is as in ply.save; frame is "rub" by the standard. Positions
    lose fractional bits when a cloud reaches beyond 2048 units; ValueError beyond 8 million.
    """
    written, dropped = writing.prepared(file, path, frame=frame, sh_degree=sh_degree, clean=clean)
    header, parts = payload(written, version)
    if version == 4:
        atomic.write_bytes(path, spz_stream.of_parts(header, parts))
    else:
        atomic.write_bytes(path, gzip.compress(b"".join([header.pack(), *parts]), 6, mtime=0))
    return dropped


def losses(file: SplatFile) -> list[str]:
    """What a .spz does not keep of splats, a phrase each."""
    step = 2.0 ** -fractional_bits(file.means)
    wide = coarse(file, step)
    told = [f"positions beyond 1/{round(1 / step)}"]
    told[0] += f", which is {wide}: --recentre helps" if wide else ""
    told += ["sizes beyond 6 %", "rotations beyond 0.3 degrees", "colours and opacities beyond a byte"]
    if file.sh_degree:
        told.append("spherical harmonics beyond 1/16 (degree 1) and 1/8")
    clamped = sum(int(((value < -0.5) | (value > 256)).sum()) for value in _levels(file))
    return [*told, f"{clamped:,} values beyond its range"] if clamped else told


def read(path: str | os.PathLike[str], *, frame: str | None = None, broken: bool = False) -> SplatFile:
    """Read splats into the internal frame; None is what the file says, else "rub".

    Raises ValueError in one line for other versions and for everything that is damaged, OSError passes
    through. Takes as much memory as the header asks for, after a check (see spz_stream).
    """
    with reading.opened(path, ".spz") as (file, size):
        stream = spz_stream.read(file, size)
        if stream.header.degree > MOST_DEGREE:
            _log.warning("%s: spherical harmonics of degree %d cut to 3", path, stream.header.degree)
        chosen = frame or _said(stream)
        return frames.from_frame(reading.checked(_splats(stream), path, broken=broken), chosen)


def _said(stream: Stream) -> str:
    if stream.axes >= len(AXES):
        raise ValueError(f"its axes have the number {stream.axes}, expected 0 to 16: give --input-frame")
    return AXES[stream.axes]


def payload(file: SplatFile, version: int = 3) -> tuple[Header, list[bytes]]:
    """Header and properties before compression. Raises ValueError for splats too far away."""
    n, bits = len(file), fractional_bits(file.means)
    flags = ANTIALIASED if file.antialiased else 0
    header = Header(version=version, count=n, degree=file.sh_degree, fractional_bits=bits, flags=flags)
    fixed = np.ascontiguousarray(np.rint(file.means * 2**bits).astype("<i4"))
    positions = fixed.view(np.uint8).reshape(n, 3, 4)[:, :, :3]  # the fourth byte repeats the sign
    opacities, colors, scales, sh = (np.rint(v).clip(0, 255).astype(np.uint8) for v in _levels(file))
    parts: list[NDArray[Any]] = [positions, opacities, colors, scales, _packed(writing.unit(file.quats)), sh]
    return header, [part.tobytes() for part in parts]


def fractional_bits(means: Array) -> int:
    """As many of 12 bits as let all positions [N, 3] fit into 24."""
    reach = float(np.abs(means).max()) if len(means) else 0.0
    for bits in range(FRACTIONAL_BITS, -1, -1):
        if round(reach * 2**bits) <= LARGEST:
            return bits
    raise ValueError(
        f"a splat is {reach:g} units away, a .spz holds up to {LARGEST}: scale the cloud down, or --recentre"
    )


def _levels(file: SplatFile) -> tuple[Array, Array, Array, Array]:
    """What becomes bytes, before it is rounded and clamped: opacities, colours, scales and harmonics."""
    opacities = 255 * sigmoid(file.opacities)
    colors = file.sh[:, 0].astype(np.float64) / COLOR_STEP + 127.5
    scales = (file.scales.astype(np.float64) - LEAST_SCALE) / SCALE_STEP
    steps = np.array([SH_STEPS[0]] * 3 + [SH_STEPS[1]] * 5 + [SH_STEPS[2]] * 7)[: file.sh.shape[1] - 1, None]
    sh = np.rint(file.sh[:, 1:].astype(np.float64) * 128 / steps) * steps + 128  # [N, K - 1, 3]
    return opacities, colors, scales, sh


def _packed(quats: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Unit quaternions wxyz [N, 4] in 32 bits: which of xyzw is left out, and three signs and sizes."""
    quats = quats[:, [1, 2, 3, 0]]
    left_out = np.abs(quats).argmax(1)  # [N]
    signs = np.where(np.take_along_axis(quats, left_out[:, None], 1) < 0, -1, 1)  # q and -q are one rotation
    stored = np.take_along_axis(quats * signs, _STORED[left_out], 1)  # [N, 3]
    fields = np.rint(np.abs(stored) / QUAT_STEP).astype("<u4") | ((stored < 0).astype("<u4") << 9)
    first, second, third = fields.T
    packed: NDArray[np.uint32] = (left_out.astype("<u4") << 30) | (first << 20) | (second << 10) | third
    return packed


def _splats(stream: Stream) -> SplatFile:
    header, raw = stream.header, np.frombuffer(stream.data, np.uint8)
    n, k = header.count, (header.degree + 1) ** 2 - 1
    ends = np.cumsum([0, *(n * width for width in header.widths)])
    parts = [raw[a:b].reshape(n, w) for a, b, w in zip(ends[:-1], ends[1:], header.widths, strict=True)]
    positions, opacities, colors, scales, quats, sh = (np.ascontiguousarray(part) for part in parts)

    def levels(values: _Bytes) -> Array:
        return values.astype(np.float32)

    f_dc = (levels(colors) - np.float32(127.5)) * np.float32(COLOR_STEP)
    kept = min(k, (MOST_DEGREE + 1) ** 2 - 1)
    f_rest = (levels(sh).reshape(n, k, 3)[:, :kept] - 128) / 128
    return SplatFile(
        means=_positions(positions, header),
        quats=_unpacked(quats),
        scales=levels(scales) * np.float32(SCALE_STEP) + np.float32(LEAST_SCALE),
        opacities=reading.logits(levels(opacities)[:, 0] / 255, 1 / 255),
        sh=np.concatenate([f_dc[:, None], f_rest], 1),
        antialiased=bool(header.flags & ANTIALIASED),
    )


def _positions(raw: _Bytes, header: Header) -> NDArray[np.float64]:
    """[N, 3] out of [N, 6 or 9] bytes."""
    if header.version == 1:
        return raw.view("<f2").astype(np.float64)
    fixed = np.zeros((len(raw), 3, 4), np.uint8)
    fixed[:, :, 1:] = raw.reshape(len(raw), 3, 3)  # as the upper three bytes, so that the sign is in place
    found: NDArray[np.float64] = (fixed.view("<i4")[..., 0] >> 8) / 2.0**header.fractional_bits
    return found


def _unpacked(data: _Bytes) -> Array:
    """Unit quaternions wxyz of all versions, [N, 4] out of [N, 3 or 4] bytes."""
    n = len(data)
    quats = np.zeros((n, 4))  # xyzw
    if data.shape[1] == 3:
        left_out: NDArray[Any] = np.full(n, 3)
        stored: NDArray[Any] = data / 127.5 - 1
    else:
        packed = np.ascontiguousarray(data).view("<u4")  # [N, 1]
        left_out = packed[:, 0] >> 30
        fields = packed >> np.array([20, 10, 0], np.uint32) & 1023  # [N, 3]
        stored = (fields & 511) * QUAT_STEP * np.where(fields >> 9, -1, 1)
    largest = np.sqrt(np.clip(1 - (stored**2).sum(1), 0, None))
    np.put_along_axis(quats, _STORED[left_out], stored, 1)
    np.put_along_axis(quats, left_out[:, None].astype(np.intp), largest[:, None], 1)
    quats = quats[:, [3, 0, 1, 2]]
    lengths = np.maximum(np.linalg.norm(quats, axis=-1, keepdims=True), 1e-12)
    found: Array = (quats / lengths).astype(np.float32)
    return found
