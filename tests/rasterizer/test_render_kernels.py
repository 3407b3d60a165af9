"""Properties of the compiled kernels: same bits every time, vectorised, cached."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from brute_force import Scene, random_scene
from test_rasterization import MODES, compare, cotangents, error, rasterize

import splatgen
from splatgen.rasterizer import _bin, _composite, _functions, _jit, _pool


def everything(scene: Scene, **options: object) -> list[torch.Tensor]:
    """Picture and all gradients."""
    ours = scene.leaves(torch.float32)
    image, alpha, meta = rasterize(ours, absgrad=True, **options)
    v = [t.float() for t in cotangents(image, alpha)]
    torch.autograd.backward([image, alpha], v)
    gradients = [getattr(ours, name).grad for name in Scene.NAMES]
    return [image.detach(), alpha.detach(), meta["means2d"].absgrad, *gradients]


@pytest.mark.parametrize("views", [1, 3])
def test_bit_equal_for_every_thread_count(views):
    scene = random_scene(40, 5000, size=(70, 61), views=views, sh_degree=1, scale=(0.01, 0.05))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 5):
            torch.set_num_threads(threads)
            results.append(everything(scene, mode="RGB+ED"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("mode", "antialiased", "packed"), MODES)
def test_torch_version_agrees(mode, antialiased, packed):
    scene = random_scene(41, 150, sh_degree=3, size=(37, 18))
    ours = everything(scene, mode=mode, antialiased=antialiased, packed=packed)
    theirs = everything(scene, mode=mode, antialiased=antialiased, packed=packed, backend="torch")
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b.double()) < 1e-4


def test_torch_version_matches_brute_force():
    compare(random_scene(42, 80, sh_degree=2), mode="RGB+ED", antialiased=True, backend="torch")


def signature(kernel: str) -> str:
    forward = "void(float32[::1], int64, int64, float32[:, ::1], float32[:, ::1], int32, int64"
    return forward + (")" if kernel == "splat_forward" else ", float32[:, ::1], int64)")


@pytest.mark.parametrize("kernel", ["splat_forward", "splat_backward"])
def test_inner_loops_are_vectorised(kernel):
    """A branch or a negative-index check in the loop costs a factor of six and no test would notice."""
    packed = r"v?(?:mul|fn?m(?:add|sub)\d{3})ps\s.*%[xyz]mm"  # some processors fuse more of them than others
    patterns = {"x86_64": packed, "AMD64": packed}
    patterns |= dict.fromkeys(("aarch64", "arm64"), r"fmul\S*\s+v\d+\.4s|fmul\.4s")
    pattern = patterns.get(platform.machine())
    if pattern is None:
        pytest.skip(f"do not know vector instructions of {platform.machine()}")
    options = {"nogil": True, "fastmath": _jit.FASTMATH, "error_model": "numpy"}
    fresh = numba.njit(signature(kernel), **options)(getattr(_composite, kernel).py_func)
    assembly = "\n".join(fresh.inspect_asm().values())
    assert len(re.findall(pattern, assembly)) >= 10
    assert not re.search(r"call\S*\s+\S*expf?\b", assembly)


def test_exp2_polynomial():
    t = -np.linspace(0, 400, 40001).astype(np.float32)  # far below float32's range: it must not wrap
    ours = np.array([_composite.exp2(value) for value in t], np.float64)
    exact = np.exp2(np.maximum(t, -40).astype(np.float64))
    assert np.abs(ours / exact - 1).max() < 4e-7


def test_radix_sort_is_a_stable_sort():
    g = np.random.default_rng(0)
    for high in (2, 1000, 2**32 - 1):
        keys = g.integers(0, high, 3000, dtype=np.uint32)
        rows = np.arange(3000, dtype=np.int32)
        expected = np.argsort(keys, kind="stable")
        assert np.array_equal(_bin.radix_sort(keys, rows), expected)


def test_depth_order_with_negative_depths():
    depths = np.array([3.0, -1.0, 0.5, -2.0, 0.5], np.float32)
    tiles = np.array([0, 1, 1, 1, 1, 1], np.int32)
    assert _bin.depth_order(0, 5, depths.view(np.uint32), tiles).tolist() == [3, 1, 2, 4, 0]


def test_parallel_covers_every_item_once_and_reports_errors():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        hits = np.zeros(1000, np.int64)

        def count(lo: int, hi: int) -> None:
            hits[lo:hi] += 1

        _pool.parallel(count, 1000, 7)
        assert (hits == 1).all()

        def fail(lo: int, hi: int) -> None:
            raise OSError("disk")

        with pytest.raises(OSError, match="disk"):
            _pool.parallel(fail, 1000, 7)
    finally:
        torch.set_num_threads(before)


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_the_package_imports_no_numba_and_no_gsplat():
    code = "import sys, splatgen.rasterizer; print(sorted({'numba', 'gsplat'} & set(sys.modules)))"
    result = run(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_cache_survives_a_package_that_cannot_be_written(tmp_path: Path):
    """numba falls back to the user's cache folder. A file named __pycache__ stops even root."""
    source = Path(splatgen.__file__).parent
    package = tmp_path / "site" / "splatgen"
    ignore = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(source, package, ignore=ignore)
    (package / "rasterizer" / "__pycache__").touch()
    code = (
        "import sys; sys.path.insert(0, r'%s')\n"
        "from splatgen.rasterizer import _composite, _jit\n"
        "import numpy as np\n"
        "print(_composite.__file__)\n"
        "print(_jit.is_cached(_composite.lanes))\n"
        "_composite.lanes(np.zeros((1, 4), np.int32), 0, 0)\n"
        "print(_jit.is_cached(_composite.lanes), _composite.lanes.stats.cache_path)\n"
    ) % (tmp_path / "site")
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LOCALAPPDATA": str(tmp_path)}
    result = run(code, NUMBA_CACHE_DIR="", **home)
    lines = result.stdout.splitlines()
    assert len(lines) == 3, result.stderr
    assert lines[0].startswith(str(tmp_path))
    assert lines[1] == "False"
    assert lines[2].startswith("True")
    assert "site" not in Path(lines[2].split()[1]).relative_to(tmp_path).parts[:1]


def test_first_compilation_is_announced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "splatgen.rasterizer")
    for cached, messages in ((True, []), (False, ["compiling CPU kernels, about 10 s, once"])):
        caplog.clear()
        monkeypatch.setattr(_functions, "is_cached", lambda kernel, cached=cached: cached)
        _functions.prepare.cache_clear()
        rasterize(random_scene(45, 5))
        rasterize(random_scene(45, 5))
        assert [record.message for record in caplog.records] == messages


def test_missing_numba_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in list(sys.modules):
        if name.startswith("splatgen.rasterizer._") and not name.endswith("_torch"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match="pip install numba"):
        rasterize(random_scene(43, 10))
    image, _, _ = rasterize(random_scene(43, 10), backend="torch")
    assert torch.isfinite(image).all()


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything(random_scene(44, 30), mode="RGB+ED", packed=True)
