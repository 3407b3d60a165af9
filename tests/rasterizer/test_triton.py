"""The Triton rasterizer against the brute-force float64 renderer: on a GPU, or in Triton's interpreter.

    make triton    # installs Triton and runs this with TRITON_INTERPRET=1

The interpreter takes a millisecond or more for a splat on a tile: scenes are small.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from brute_force import brute_force, random_scene
from gsplat import DefaultStrategy
from test_rasterization import MODES, Scene, compare, cotangents, error, rasterize
from test_render_edges import POISON, assert_background, single
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="needs Triton: make triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1: make triton", allow_module_level=True)

from splatgen.rasterizer import triton_kernels, triton_launch, triton_rasterizer  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def patched_once():
    """The interpreter patches Triton's language anew at each call of a function in a kernel, two thirds of
    its time; here it is patched once."""
    if not INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    before, scopes = interpreter._patch_lang, []
    for function in (triton_kernels.composite_forward, tl.sum):
        scopes.append(before(function.fn))

    class Patched:
        def restore(self) -> None:
            pass

    interpreter._patch_lang = lambda _: Patched()
    yield
    interpreter._patch_lang = before
    for scope in reversed(scopes):
        scope.restore()


def check(scene: Scene, **options: object) -> dict[str, float]:
    return compare(scene, backend="triton", **options)


def test_matches_brute_force():
    check(random_scene(1), mode="RGB+ED")


@pytest.mark.parametrize(("mode", "antialiased", "packed"), MODES)
def test_modes(mode, antialiased, packed):
    check(random_scene(1, 40), mode=mode, antialiased=antialiased, packed=packed)


@pytest.mark.parametrize("mode", ["D", "ED", "RGB+D"])
def test_depth_modes(mode):
    scene = random_scene(2, 30)
    scene.backgrounds = torch.zeros(2, 3)  # depth alone has none
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact, mode=mode)
    image, alpha, _ = rasterize(ours, mode=mode, backend="triton")
    v = cotangents(reference.image, reference.alpha)
    torch.autograd.backward([reference.image, reference.alpha], v)
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    assert (image - reference.image).abs().max() < 2e-5
    for name in ("means", "quats", "scales", "opacities", "viewmats"):
        assert error(getattr(ours, name).grad, getattr(exact, name).grad) < 5e-4, name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics(degree):
    check(random_scene(3 + degree, 30, sh_degree=degree), mode="RGB+ED", packed=degree % 2 == 1)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (9, 7), (33, 5), (5, 34), (17, 25)])
def test_image_sizes(size):
    """Inside a tile, of whole tiles, and with programs that lie outside the picture whole or in part."""
    check(random_scene(5, 20, size=size, views=1), mode="RGB+ED")


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(channels):
    check(random_scene(6, 20, channels=channels, views=1))


def test_seven_channels_need_two_passes():
    scene = random_scene(6, 20, channels=7, views=1)
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact)
    image, alpha, _ = rasterize(ours, backend="triton")
    v = cotangents(reference.image, reference.alpha)
    torch.autograd.backward([reference.image, reference.alpha], v)
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    assert (image - reference.image).abs().max() < 2e-5
    for name in Scene.NAMES:
        assert error(getattr(ours, name).grad, getattr(exact, name).grad) < 5e-4, name
    with pytest.raises(ValueError, match="absgrad with 7 channels"):
        rasterize(ours, absgrad=True, backend="triton")


def test_opaque_splats_stop_the_ray():
    """alpha clamped at 0.999, early termination, and no gradient through the clamp."""
    check(random_scene(8, 80, opacity=(0.9, 0.9999), scale=(0.1, 0.5)), mode="RGB+ED")


def stack(count: int, opacity: float) -> Scene:
    """Splats one behind the other, each over the whole picture."""
    g = torch.Generator().manual_seed(count)
    scene = random_scene(count, count, size=(16, 8), views=1)
    scene.means = torch.rand(count, 3, generator=g) * torch.tensor([0.2, 0.2, 1.0])
    scene.means[:, 2] += 1.5
    scene.scales = 4.0 + 0.2 * torch.rand(count, 3, generator=g)
    scene.opacities = torch.full((count,), opacity)
    scene.viewmats, scene.Ks = torch.eye(4)[None], torch.tensor([[[12.0, 0, 8], [0, 12.0, 4], [0, 0, 1]]])
    return scene


def test_hundreds_of_splats_on_a_tile():
    scene = stack(250, 0.02)
    check(scene, mode="RGB+ED")
    _, _, meta = rasterize(scene, backend="triton")
    assert len(meta["flatten_ids"]) == 250


def test_an_opaque_stack_deeper_than_a_chunk():
    """Every pixel ends in the second chunk; what is behind has no gradient, and nothing reads it twice."""
    count = 3 * int(triton_kernels.CHUNK)
    scene = stack(count, 0.2)
    check(scene, mode="RGB+ED")
    ours = scene.leaves(torch.float32)
    image, _, _ = rasterize(ours, backend="triton")
    image.sum().backward()
    hidden = scene.means[:, 2].argsort()[-int(triton_kernels.CHUNK) :]
    assert ours.colors.grad[hidden].abs().max() == 0
    assert ours.colors.grad.abs().max() > 0


def test_colors_per_camera():
    scene = random_scene(9, 20)
    both = scene.leaves(torch.float32)
    both.colors = torch.stack([scene.colors, 1 - scene.colors]).requires_grad_()
    image, _, _ = rasterize(both, backend="triton")
    one = scene.leaves(torch.float32)
    assert torch.equal(rasterize(one, backend="triton")[0][0], image[0])
    image.sum().backward()
    assert both.colors.grad[1].abs().sum() > 0


class TestNothingVisible:
    def test_no_splats(self):
        scene = random_scene(0, 1)
        for name in ("means", "quats", "scales", "opacities", "colors"):
            setattr(scene, name, getattr(scene, name)[:0])
        assert_background(scene, "triton")

    @pytest.mark.parametrize(
        ("name", "value"),
        [("means", [[0.0, 0.0, -2.0]]), ("opacities", [0.0039]), ("means", [[9.0, 0.0, 2.0]])],
        ids=["behind", "faint", "beside"],
    )
    def test_one_that_is_not_seen(self, name, value):
        assert_background(single(**{name: torch.tensor(value)}), "triton")

    @pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities"])
    def test_nan_is_culled_not_written_out_of_bounds(self, name):
        broken = getattr(single(), name) * float("nan")
        image, _, meta = rasterize(single(**{name: broken}), backend="triton")
        assert torch.isfinite(image).all()
        assert meta["radii"].max() == 0


def test_one_splat_by_hand():
    """As in test_render_edges: alpha = 0.8 at the mean, 0.8 exp(-9 / 8.6) three pixels away."""
    image, alpha, meta = rasterize(single(), mode="RGB+ED", backend="triton")
    assert meta["means2d"].flatten().tolist() == [8.5, 8.5]
    assert meta["radii"].flatten().tolist() == [7, 7]
    torch.testing.assert_close(image[0, 8, 8], torch.tensor([0.82, 0.04, 0.06, 2.0]))
    expected = 0.8 * torch.exp(torch.tensor(-9 / 8.6))
    torch.testing.assert_close(alpha[0, 8, 11, 0], expected)
    check(single(), mode="RGB+ED")


def test_one_of_several_cameras_sees_nothing():
    scene = random_scene(31, 15, views=3)
    scene.viewmats[1, :3, 3] = torch.tensor([0.0, 0.0, -50.0])
    check(scene, mode="RGB+ED")
    check(scene, mode="RGB+ED", packed=True)


def test_near_plane_crossing_and_clamped_jacobian():
    scene = random_scene(32, 60, views=1, size=(16, 12), scale=(0.05, 0.2))
    scene.viewmats[:, :3, 3] = torch.tensor([0.1, 0.0, 0.4])
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact)
    image, alpha, _ = rasterize(ours, backend="triton")
    v = cotangents(reference.image, reference.alpha)
    torch.autograd.backward([reference.image, reference.alpha], v)
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    torch.testing.assert_close(image.double(), reference.image, atol=2e-4, rtol=0)
    for name in ("means", "scales", "opacities", "colors", "viewmats"):
        assert error(getattr(ours, name).grad, getattr(exact, name).grad) < 2e-3, name


@pytest.mark.parametrize(
    "scales", [[[50.0, 50.0, 50.0]], [[3.0, 1e-3, 1e-3]], [[1e-6, 1e-6, 1e-6]], [[1e-30, 0.2, 1e-30]]]
)
@pytest.mark.parametrize("antialiased", [False, True])
def test_huge_and_needle_splats(scales, antialiased):
    scene = single(scales=torch.tensor(scales), quats=torch.tensor([[0.3, 0.5, -0.2, 0.7]]))
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact, antialiased=antialiased)
    image, alpha, _ = rasterize(ours, antialiased=antialiased, backend="triton")
    torch.testing.assert_close(alpha.double(), reference.alpha, atol=2e-4, rtol=0)
    image.square().sum().backward()
    for name in Scene.NAMES:
        assert torch.isfinite(getattr(ours, name).grad).all(), name


def test_equal_depths_keep_index_order():
    twice = single(
        means=torch.tensor([[0.0, 0.0, 2.0]]).repeat(2, 1),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(2, 1),
        scales=torch.full((2, 3), 0.2),
        opacities=torch.tensor([0.8, 0.8]),
        colors=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        backgrounds=torch.zeros(1, 3),
    )
    image, _, _ = rasterize(twice, backend="triton")
    torch.testing.assert_close(image[0, 8, 8], torch.tensor([0.8, 0.16, 0.0]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which interprets
def test_poison_floats_never_crash():
    """No input may read or write out of bounds, or bring alpha out of 0..1."""
    g = torch.Generator().manual_seed(0)
    for seed in range(6):
        size = torch.randint(1, 20, (2,), generator=g).tolist()
        scene = random_scene(seed, 10, size=(size[0], size[1]), sh_degree=1, views=1)
        for name in ("means", "quats", "scales", "opacities", "colors"):
            value = getattr(scene, name)
            hit = torch.rand(value.shape, generator=g) < (0.05, 0.5)[seed % 2]
            poison = POISON[torch.randint(0, len(POISON), value.shape, generator=g)]
            setattr(scene, name, torch.where(hit, poison, value))
        ours = scene.leaves(torch.float32)
        image, alpha, _ = rasterize(
            ours, mode="RGB+ED", antialiased=seed % 3 == 0, absgrad=True, backend="triton"
        )
        torch.autograd.backward([image, alpha], [torch.ones_like(image), torch.ones_like(alpha)])
        assert ((alpha >= 0) & (alpha <= 1)).all(), seed


@pytest.mark.parametrize(("packed", "absgrad"), [(False, True), (True, False)])
def test_default_strategy(packed, absgrad):
    """gsplat's densification reads the meta, and the loss falls."""
    torch.manual_seed(0)  # where splats split is drawn from the global generator
    scene = random_scene(40, 8, size=(16, 16), views=2)
    wanted = rasterize(random_scene(41, 12, size=(16, 16), views=2), backend="triton")[0].detach()
    names = ("means", "quats", "scales", "opacities", "colors")
    params = torch.nn.ParameterDict({n: torch.nn.Parameter(getattr(scene, n)) for n in names})
    params["scales"].data.log_()
    params["opacities"].data.logit_()
    optimizers = {n: torch.optim.Adam([value], lr=0.03) for n, value in params.items()}
    strategy = DefaultStrategy(
        refine_start_iter=1, refine_every=4, refine_stop_iter=5, grow_grad2d=1e-6, absgrad=absgrad
    )
    strategy.check_sanity(params, optimizers)
    state, losses = strategy.initialize_state(scene_scale=1.0), []
    for step in range(6):
        for n in names:
            setattr(scene, n, params[n])
        scene.scales, scene.opacities = params["scales"].exp(), params["opacities"].sigmoid()
        image, _, meta = rasterize(scene, packed=packed, absgrad=absgrad, backend="triton")
        strategy.step_pre_backward(params, optimizers, state, step, meta)
        loss = (image - wanted).square().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        strategy.step_post_backward(params, optimizers, state, step, meta, packed=packed)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert len(params["means"]) > 8


class Waits(TorchDispatchMode):
    """Counts the operators after which Python must know a number of the device's, and uploads of numbers."""

    READS = ("_local_scalar_dense", "nonzero", "bincount", "_linalg_check_errors", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen[name] += name in self.READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("packed", "waits"), [(False, 1), (True, 2)])
def test_waits_for_the_device(packed, waits):
    ours = random_scene(50, 5, size=(8, 8), sh_degree=2).leaves(torch.float32)
    with Waits() as counted:
        image, alpha, _ = rasterize(
            ours, mode="RGB+ED", packed=packed, absgrad=True, antialiased=True, backend="triton"
        )
        (image.sum() + alpha.sum()).backward()
    assert +counted.seen == {"_local_scalar_dense": 1} | ({"nonzero": 1} if packed else {})
    assert counted.seen.total() == waits


class Launches(TorchDispatchMode):
    """Counts the kernels, and the operators that are one on a GPU: all but views and unwritten memory."""

    def __init__(self, launch) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.kernels, self.launch, self.inside = 0, launch, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        free = func.is_view or "empty" in name or name == "_local_scalar_dense" or self.inside
        self.operators[name] += not free
        return func(*args, **(kwargs or {}))

    def kernel(self, *args, **constants) -> None:
        """What the interpreter does in a kernel is none of torch's."""
        self.kernels, self.inside = self.kernels + 1, True
        self.launch(*args, **constants)
        self.inside = False


def test_few_operators_are_launched_beside_the_kernels(monkeypatch: pytest.MonkeyPatch):
    """Each takes the CPU some fifteen microseconds, more than the GPU."""
    ours = random_scene(50, 5, size=(8, 8), sh_degree=0).leaves(torch.float32)
    ours.viewmats.requires_grad_(False)
    counted = Launches(triton_launch.launch)
    monkeypatch.setattr(triton_launch, "launch", counted.kernel)
    with counted:
        image, _, _ = rasterize(ours, mode="RGB+ED", backend="triton")
        image.sum().backward()
    assert counted.kernels == 6
    assert 20 < counted.operators.total() <= 80, +counted.operators


def test_second_derivatives_are_refused():
    ours = single().leaves(torch.float32)
    image, _, _ = rasterize(ours, backend="triton")
    (gradient,) = torch.autograd.grad(image.square().sum(), ours.means, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", False)
    s = single()
    args = (s.means, s.quats, s.scales, s.opacities, s.colors, s.viewmats, s.Ks, s.width, s.height)
    with pytest.raises(ValueError, match="was given CPU tensors"):
        triton_rasterizer.rasterization(*args)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"quats has shape \(1, 3\), expected \(1, 4\)"):
        rasterize(single(quats=torch.zeros(1, 3)), backend="triton")
