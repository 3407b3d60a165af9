"""The ray caster against a march along each ray, closed forms, and what captions say."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from splatgen.runs.rng import rng
from splatgen.scene.cameras import half_extent, orbit, turntable
from splatgen.worlds.toybox import world
from splatgen.worlds.toybox.grammar import COLORS, SHAPES, parse

GREY = torch.full((3,), 0.5)


def implicit(shape, p):
    """Below 0 inside, above 0 outside; and the runner-up of the faces, [M, F] -> the largest decides."""
    x, y, z = p.unbind(-1)
    if shape == "sphere":
        faces = [p.norm(dim=-1) - world.SPHERE_RADIUS]
    elif shape == "cube":
        faces = [x.abs() - world.CUBE_HALF, y.abs() - world.CUBE_HALF, z.abs() - world.CUBE_HALF]
    elif shape == "cylinder":
        faces = [torch.hypot(x, z) - world.CYLINDER_RADIUS, y.abs() - world.CYLINDER_HALF]
    elif shape == "cone":
        slope = world.CONE_RADIUS / (2 * world.CONE_HALF)
        faces = [torch.hypot(x, z) - slope * (world.CONE_HALF - y), -world.CONE_HALF - y]
    else:
        faces = [torch.hypot(torch.hypot(x, y) - world.TORUS_MAJOR, z) - world.TORUS_MINOR]
    return torch.stack(faces, -1)


def random_rays(count, seed=0):
    """From a sphere of radius 3 through the object's neighbourhood, float64."""
    g = rng(seed, 0, "rays")
    origin = 3 * normalize(torch.randn(count, 3, generator=g).double(), dim=-1)
    through = 0.6 * torch.randn(count, 3, generator=g).double()
    return origin, normalize(through - origin, dim=-1)


def march(shape, o, d, steps=1500, far=5.0):
    """Distance of the first crossing, inf without; and the least value on the ray: how near a miss was."""
    t = torch.linspace(0, far, steps, dtype=torch.float64)
    value = implicit(shape, o[:, None] + t[:, None] * d[:, None]).amax(-1)  # [M, steps]
    inside = value < 0
    first = inside.double().argmax(-1).clamp_min(1)
    low, high = t[first - 1], t[first]
    for _ in range(40):
        mid = 0.5 * (low + high)
        within = implicit(shape, o + mid[:, None] * d).amax(-1) < 0
        low, high = torch.where(within, low, mid), torch.where(within, mid, high)
    return torch.where(inside.any(-1), high, math.inf), value.amin(-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_first_hits_are_those_of_a_march_along_the_ray(shape):
    o, d = random_rays(400)
    t, _ = world.INTERSECT[shape](o.float(), d.float())
    expected, nearest = march(shape, o, d)
    clear = nearest.abs() > 5e-3  # a grazing ray may be judged either way
    hit = t < world.FAR
    assert 50 < int(hit.sum()) < 350
    assert clear.sum() > 350
    assert torch.equal(hit[clear], expected.isfinite()[clear])
    both = hit & expected.isfinite() & clear
    error = (t.double() - expected)[both].abs()
    assert error.max() < (2e-2 if shape == "torus" else 1e-3)  # a torus is traced to 2e-3 off its surface
    assert error.median() < 2e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_unit_face_the_ray_and_are_the_surfaces(shape):
    o, d = random_rays(400, seed=1)
    t, normal = world.INTERSECT[shape](o.float(), d.float())
    hit = t < world.FAR
    o, d, t, normal = o[hit], d[hit], t[hit].double(), normal[hit].double()
    torch.testing.assert_close(
        normal.norm(dim=-1), torch.ones(len(t), dtype=torch.float64), atol=1e-5, rtol=0
    )
    facing = (normal * d).sum(-1)
    assert facing.max() < 5e-2
    p = (o + t[:, None] * d).requires_grad_()
    faces = implicit(shape, p)
    gradient = normalize(torch.autograd.grad(faces.amax(-1).sum(), p)[0], dim=-1)
    ordered = faces.detach().sort(-1).values
    smooth = facing < -0.1  # away from edges and grazing rays
    if faces.shape[-1] > 1:
        smooth &= ordered[:, -1] - ordered[:, -2] > 1e-3
    assert smooth.sum() > 50
    assert (1 - (normal * gradient)[smooth].sum(-1)).max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ray_that_points_away_hits_nothing(shape):
    o, d = random_rays(200)
    t, _ = world.INTERSECT[shape](o.float(), -d.float())
    assert (t == world.FAR).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rays_along_the_axes_meet_the_extent(shape, axis, sign):
    d = torch.zeros(1, 3)
    d[0, axis] = -sign
    t, normal = world.INTERSECT[shape](-3 * d + torch.tensor([1e-3, 2e-3, 3e-3]) * (d == 0), d)
    half = (world.HALF_WIDTH, world.HALF_HEIGHT, world.HALF_DEPTH)[axis][shape]
    if shape == "torus":
        assert (t == world.FAR).all() if axis == 2 else t == pytest.approx(3 - half, abs=5e-3)
    elif shape == "cone" and axis != 1:
        assert t == pytest.approx(3 - half / 2, abs=5e-3)  # half as wide in the middle
    else:
        assert t == pytest.approx(3 - half, abs=1e-2)
        assert t == world.FAR or normal.isfinite().all()


@pytest.mark.parametrize("distance", [1.9, 2.5, 6.0])
def test_the_silhouette_of_a_sphere_has_the_area_of_the_closed_form(distance):
    """The tangent cone cuts the image plane in a disc of radius f r / sqrt(D^2 - r^2)."""
    cameras = orbit(torch.tensor([0.0, 77.0]), torch.tensor([0.0, 40.0]), size=64, distance=distance)
    alpha = world.ground_truth(parse("a red sphere"), cameras).alpha
    r = world.SPHERE_RADIUS
    area = math.pi * float(cameras.K[0, 0, 0]) ** 2 * r**2 / (distance**2 - r**2)
    for found in alpha.sum((1, 2, 3)).tolist():
        assert found == pytest.approx(area, rel=4e-3)


def test_the_depth_of_a_sphere_is_the_closed_form():
    cameras = turntable(1, size=33, elevation=0.0)
    depth = world.ground_truth(parse("a red sphere"), cameras, supersample=1).depth
    assert depth[0, 0, 16, 16] == pytest.approx(2.5 - world.SPHERE_RADIUS, abs=1e-5)
    assert depth[0, 0, 0, 0] == 0


CAPTIONS = [
    "a red sphere",
    "a green cube with a white front",
    "a red and blue checkered torus",
    "a purple cone on top of a cyan cylinder",
    "a orange cube next to a yellow cone",
]


@pytest.mark.parametrize("text", CAPTIONS)
def test_pictures_are_in_range_and_the_background_fills_what_is_left(text):
    cameras = turntable(3, size=24, elevation=20.0)
    one, other = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.0, 0.6, 1.0])
    a, b = (world.ground_truth(parse(text), cameras, back) for back in (one, other))
    assert torch.equal(a.alpha, b.alpha)
    assert ((a.alpha >= 0) & (a.alpha <= 1)).all()
    assert ((a.rgb >= 0) & (a.rgb <= 1 + 1e-6)).all()
    assert a.alpha.max() == 1
    assert a.alpha.min() == 0
    expected = (1 - a.alpha) * (one - other)[:, None, None]
    torch.testing.assert_close(a.rgb - b.rgb, expected, atol=1e-6, rtol=0)
    assert torch.equal((a.depth > 0), (a.alpha > 0))


@pytest.mark.parametrize("text", CAPTIONS)
def test_the_whole_object_is_in_the_frame(text):
    alpha = world.ground_truth(parse(text), turntable(8, size=32, elevation=10.0)).alpha
    border = torch.cat([alpha[..., 0, :], alpha[..., -1, :], alpha[..., 0], alpha[..., -1]], -1)
    assert border.max() == 0


def test_supersampling_converges():
    cameras = turntable(2, size=16)
    caption = parse("a red cone on top of a blue cube")
    pictures = {n: world.ground_truth(caption, cameras, GREY, supersample=n).rgb for n in (1, 2, 4, 16)}
    errors = [float((pictures[n] - pictures[16]).abs().mean()) for n in (1, 2, 4)]
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2] > 0
    assert errors[2] < 0.01


def test_captions_of_a_batch_are_those_alone():
    cameras = turntable(len(CAPTIONS), size=12)
    backgrounds = torch.rand(len(CAPTIONS), 3, generator=rng(0, 0, "background"))
    batch = world.ground_truth([parse(text) for text in CAPTIONS], cameras, backgrounds)
    for n, text in enumerate(CAPTIONS):
        alone = world.ground_truth(parse(text), cameras[n : n + 1], backgrounds[n])
        torch.testing.assert_close(batch.rgb[n : n + 1], alone.rgb, atol=1e-6, rtol=0)
        torch.testing.assert_close(batch.alpha[n : n + 1], alone.alpha, atol=1e-6, rtol=0)


def test_captions_and_cameras_must_be_as_many():
    with pytest.raises(ValueError, match="got 1 captions for 2 cameras"):
        world.ground_truth([parse("a red cube")], turntable(2, size=8))


# Placement


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_stacked_objects_touch_and_are_centred(first, second):
    top, bottom = world.place(parse(f"a red {first} on top of a blue {second}"))
    low = top.center[1] - top.scale * world.HALF_HEIGHT[first]
    high = bottom.center[1] + bottom.scale * world.HALF_HEIGHT[second]
    assert low == pytest.approx(high)
    ends = (
        top.center[1] + top.scale * world.HALF_HEIGHT[first],
        bottom.center[1] - bottom.scale * world.HALF_HEIGHT[second],
    )
    assert ends[0] == pytest.approx(-ends[1])
    assert ends[0] < half_extent(2.5, 50)
    assert top.center[0] == bottom.center[0] == 0


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_neighbours_have_their_gap_and_the_first_is_on_the_left(first, second):
    left, right = world.place(parse(f"a red {first} next to a blue {second}"))
    gap = (right.center[0] - right.scale * world.HALF_WIDTH[second]) - (
        left.center[0] + left.scale * world.HALF_WIDTH[first]
    )
    assert gap == pytest.approx(world.PAIR_GAP)
    assert left.center[0] < right.center[0]
    assert left.center[1] == right.center[1] == 0


def mean_colour(rgb, rows=slice(None), columns=slice(None)):
    return rgb[0][:, rows, columns].flatten(1).mean(1)


def front_view(text, azimuth=0.0, elevation=0.0):
    cameras = orbit(torch.tensor([azimuth]), torch.tensor([elevation]), size=32)
    return world.ground_truth(parse(text), cameras)


def test_relations_show_in_the_picture():
    beside = front_view("a red sphere next to a blue sphere")
    assert mean_colour(beside.rgb, columns=slice(0, 16)).argmax() == 0
    assert mean_colour(beside.rgb, columns=slice(16, 32)).argmax() == 2
    assert (beside.alpha[0, 0, :, 15:17] < 1).all()  # the gap shows
    behind = front_view("a red sphere next to a blue sphere", azimuth=180.0)
    assert mean_colour(behind.rgb, columns=slice(0, 16)).argmax() == 2
    stacked = front_view("a red cube on top of a blue cube")
    assert mean_colour(stacked.rgb, rows=slice(0, 16)).argmax() == 0
    assert mean_colour(stacked.rgb, rows=slice(16, 32)).argmax() == 2
    assert stacked.alpha[0, 0, :, 16].diff().abs().sum() == pytest.approx(2, abs=0.01)  # no gap


@pytest.mark.parametrize("shape", SHAPES)
def test_a_front_faces_azimuth_0_only(shape):
    text = f"a red {shape} with a blue front"

    def blue(azimuth):
        found = front_view(text, azimuth)
        bluish = (found.rgb[0, 2] > found.rgb[0, 0]) & (found.alpha[0, 0] > 0.5)
        return int(bluish.sum()) / int((found.alpha > 0.5).sum())

    assert blue(0.0) > 0.1
    assert blue(180.0) == 0
    assert blue(0.0) > 2 * blue(90.0)
    assert blue(90.0) == pytest.approx(blue(270.0), abs=0.02)


@pytest.mark.parametrize("color", COLORS)
def test_colours_are_those_of_the_name(color):
    found = front_view(f"a {color} sphere").rgb[0][:, 16, 16]
    named = torch.tensor(COLORS[color])
    torch.testing.assert_close(found / found.norm(), named / named.norm(), atol=2e-2, rtol=0)


def test_shading_is_fixed_in_the_world_and_never_dark():
    normals = normalize(torch.randn(2000, 3, generator=rng(0, 0, "normals")), dim=-1)
    brightness = world.shade(normals)
    assert brightness.min() > 0.4
    assert brightness.max() < 1.1
    assert world.shade(torch.tensor([0.0, 1, 0])) > world.shade(torch.tensor([0.0, -1, 0]))


@pytest.mark.parametrize(("pattern", "share"), [("striped", (0.2, 0.6)), ("checkered", (0.35, 0.65))])
def test_patterns_show_both_colours(pattern, share):
    found = front_view(f"a red and blue {pattern} cube", azimuth=30.0, elevation=20.0)
    inside = found.alpha[0, 0] == 1
    bluish = (found.rgb[0, 2] > found.rgb[0, 0])[inside].float().mean()
    assert share[0] < bluish < share[1]


# Points


@pytest.mark.parametrize("text", CAPTIONS)
def test_points_lie_on_the_surface_and_have_its_colours(text):
    caption = parse(text)
    points, colors = world.point_cloud(caption, 300, rng(0, 0, "points"))
    assert points.shape == colors.shape == (300, 3)
    assert ((colors >= 0) & (colors <= 1)).all()
    distances = []
    for placed in world.place(caption):
        local = (points.double() - torch.tensor(placed.center)) / placed.scale
        distances.append(placed.scale * implicit(placed.item.shape, local).amax(-1))
    assert torch.stack(distances).amin(0).abs().max() < 5e-3
    for placed, distance in zip(world.place(caption), distances, strict=True):
        assert (distance.abs() < 5e-3).float().mean() > 0.15  # every object has its share
        assert placed.scale > 0


def test_points_depend_on_the_generator_alone():
    def draw(seed):
        return world.point_cloud(parse("a red cone"), 50, rng(seed, 0, "points"))[0]

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_training_views_cover_their_ranges():
    cameras = world.random_cameras(rng(0, 0, "cameras"), 2000, 8)
    assert cameras.elevation.min() >= -15
    assert cameras.elevation.max() <= 80
    assert (cameras.elevation > 52).float().mean() == pytest.approx(0.14, abs=0.03)
    quarters = torch.histc(cameras.azimuth, 4, 0, 360) / 2000
    assert (quarters - 0.25).abs().max() < 0.04
