"""The axes are what they are said to be: in the pictures, in the matrices, at the poles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.runs.rng import rng
from splatgen.scene import cameras as cams
from splatgen.scene.cameras import orbit, sample_orbit, turntable, viewmats

few = settings(deadline=None, max_examples=30)
azimuths = st.floats(-720, 720, width=32)
elevations = st.floats(-90, 90, width=32)


def one(azimuth, elevation=0.0, **options):
    return orbit(torch.tensor([azimuth]), torch.tensor([elevation]), **{"size": 64, **options})


def project(cameras, point):
    """Pixel (u, v) and depth of a world point in each camera, through viewmats and K, in float64."""
    p = torch.tensor([*point, 1.0], dtype=torch.float64)
    local = (viewmats(cameras).double() @ p)[:, :3]
    image = (cameras.K.double() @ local[:, :, None])[..., 0]
    return image[:, :2] / image[:, 2:], local[:, 2]


def test_azimuth_0_stands_on_plus_z_and_looks_at_the_origin():
    camera = one(0.0)
    torch.testing.assert_close(cams.positions(camera), torch.tensor([[0.0, 0.0, 2.5]]))
    _, front = project(camera, (0, 0, 1))
    _, back = project(camera, (0, 0, -1))
    assert front == pytest.approx(1.5)
    assert back == pytest.approx(3.5)


def test_plus_x_is_on_the_right_and_plus_y_is_up_at_azimuth_0():
    camera = one(0.0)
    (right,), _ = project(camera, (0.5, 0, 0))
    (top,), _ = project(camera, (0, 0.5, 0))
    assert right[0] > 33
    assert right[1] == pytest.approx(32, abs=1e-4)
    assert top[1] < 31  # rows count downward
    assert top[0] == pytest.approx(32, abs=1e-4)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position"),
    [
        (90, 0, (1, 0, 0)),
        (180, 0, (0, 0, -1)),
        (270, 0, (-1, 0, 0)),
        (0, 90, (0, 1, 0)),
        (123, -90, (0, -1, 0)),
    ],
)
def test_azimuth_grows_toward_x_and_elevation_toward_y(azimuth, elevation, position):
    found = cams.positions(one(float(azimuth), float(elevation), distance=1.0))[0]
    torch.testing.assert_close(found, torch.tensor(position, dtype=torch.float32), atol=1e-6, rtol=0)


@few
@given(azimuths, elevations, st.floats(0.5, 20, width=32), st.floats(5, 120, width=32))
def test_an_orbit_looks_at_the_origin_upright(azimuth, elevation, distance, fov):
    camera = one(azimuth, elevation, distance=distance, fov=fov, size=(48, 32))
    (centre,), depth = project(camera, (0, 0, 0))
    assert centre.tolist() == pytest.approx([24, 16], abs=1e-3)
    assert depth == pytest.approx(distance, rel=1e-5)
    if abs(elevation) < 89:
        (above,), _ = project(camera, (0, 1e-3 * distance, 0))
        assert above[1] < centre[1]
        assert above[0] == pytest.approx(float(centre[0]), abs=1e-3)


@few
@given(azimuths, elevations)
def test_viewmats_are_rigid_and_invert_c2w_with_y_and_z_flipped(azimuth, elevation):
    camera = one(azimuth, elevation)
    view = viewmats(camera).double()[0]
    rotation = view[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.det(rotation) == pytest.approx(1.0, abs=1e-6)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(view, flip @ torch.linalg.inv(camera.c2w.double()[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("elevation", [90.0, -90.0])
@pytest.mark.parametrize("azimuth", [0.0, 37.0, 180.0])
def test_the_poles_are_defined(azimuth, elevation):
    camera = one(azimuth, elevation)
    assert viewmats(camera).isfinite().all()
    near = one(azimuth, elevation * 0.9999)  # no jump on the way to the pole
    torch.testing.assert_close(camera.c2w, near.c2w, atol=1e-3, rtol=0)


@few
@given(st.integers(1, 300), st.integers(1, 300))
def test_resizing_keeps_the_field_of_view(width, height):
    camera = one(20.0, 10.0, size=(80, 60))
    other = camera.resized(width, height)
    assert (other.width, other.height) == (width, height)
    for axis, old, new in ((0, 80, width), (1, 60, height)):
        assert new / other.K[0, axis, axis] == pytest.approx(float(old / camera.K[0, axis, axis]), rel=1e-5)
        assert other.K[0, axis, 2] == pytest.approx(new / 2, rel=1e-5)
    assert other.K[0, 2].tolist() == [0, 0, 1]
    (before,), _ = project(camera, (0.3, 0.2, 0.1))
    (after,), _ = project(other, (0.3, 0.2, 0.1))
    torch.testing.assert_close(after, before * torch.tensor([width / 80, height / 60]), rtol=1e-4, atol=1e-4)


def test_the_vertical_field_of_view_spans_half_extent():
    edge = cams.half_extent(2.5, 50.0)
    (top,), _ = project(one(0.0), (0, edge, 0))
    assert top[1] == pytest.approx(0, abs=1e-3)
    (top,), _ = project(one(70.0, size=(30, 90)), (0, edge, 0))
    assert top[1] == pytest.approx(0, abs=1e-3)


def test_a_batch_takes_a_distance_and_a_field_of_view_for_each():
    distance, fov = torch.tensor([1.0, 2.0]), torch.tensor([30.0, 60.0])
    batch = orbit(torch.tensor([10.0, 20.0]), torch.tensor([0.0, 5.0]), size=16, distance=distance, fov=fov)
    for n in range(2):
        alone = one(10.0 * (n + 1), 5.0 * n, size=16, distance=float(distance[n]), fov=float(fov[n]))
        torch.testing.assert_close(batch.c2w[n : n + 1], alone.c2w)
        torch.testing.assert_close(batch.K[n : n + 1], alone.K)


@few
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_every_sector_gets_exactly_one_view(views, seed):
    found = sample_orbit(rng(seed, 0, "cameras"), views=views, size=8, elevation=(-10, 30))
    place = found.azimuth.double() / 360 * views
    assert ((found.azimuth >= 0) & (found.azimuth <= 360)).all()

    def distinct(origin):  # whether sectors that begin at origin hold one view each
        return len({int(math.floor(float(p - origin))) % views for p in place}) == views

    # The rotation of the sectors is random: if any serves, so does one that begins just before a view.
    assert any(distinct(p - 1e-5) for p in place)


def test_random_cameras_stay_within_their_ranges_and_depend_on_the_seed_alone():
    def draw(seed):
        return sample_orbit(
            rng(seed, 3, "cameras"), views=64, size=8, elevation=(-20, 40), distance=(2, 3), fov=(30, 60)
        )

    found = draw(1)
    assert ((found.elevation >= -20) & (found.elevation <= 40)).all()
    assert found.elevation.max() - found.elevation.min() > 40  # and fill them
    radius = cams.positions(found).norm(dim=-1)
    assert ((radius > 1.999) & (radius < 3.001)).all()
    fov = torch.rad2deg(2 * torch.atan(4 / found.K[:, 1, 1]))
    assert ((fov > 29.99) & (fov < 60.01)).all()
    assert torch.equal(found.c2w, draw(1).c2w)
    assert not torch.equal(found.c2w, draw(2).c2w)


@few
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_views_one_by_one_are_drawn_as_they_always_were(views, seed):
    """Bit for bit: old runs are repeated with today's code."""
    found = sample_orbit(
        rng(seed, 0, "cameras"), views=views, size=8, elevation=(-10, 30), distance=(2, 3), fov=(30, 60)
    )
    generator = rng(seed, 0, "cameras")
    u, offset = torch.rand(4, views, generator=generator), torch.rand(1, generator=generator)
    expected = orbit(
        ((torch.arange(views) + u[0]) / views + offset) % 1.0 * 360.0,
        -10 + (30 - -10) * u[1],
        size=8,
        distance=2 + (3 - 2) * u[2],
        fov=30 + (60 - 30) * u[3],
    )
    for name in ("c2w", "K", "azimuth", "elevation"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@few
@given(st.integers(1, 4), st.sampled_from([2, 3, 4]), st.integers(0, 2**31))
def test_a_group_of_views_goes_once_around_at_one_height_distance_and_field_of_view(groups, group, seed):
    found = sample_orbit(
        rng(seed, 0, "cameras"), views=groups * group, size=8, elevation=(0, 30), distance=(2, 3),
        fov=(15, 60), group=group,
    )  # fmt: skip
    turns = found.azimuth.double().view(groups, group)
    gap = torch.full((groups, group - 1), 360.0 / group, dtype=torch.float64)
    torch.testing.assert_close(turns.diff(dim=1), gap, atol=1e-3, rtol=0)
    assert ((turns >= 0) & (turns < 360)).all()
    radius = cams.positions(found).norm(dim=-1)
    for shared in (found.elevation, radius, found.K[:, 1, 1]):
        rows = shared.view(groups, group)
        torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    if groups > 1:
        assert len(set(found.elevation.tolist())) == groups
    places = turns[:, 0] / (360.0 / group) * groups  # groups share out the sector that each fills once

    def distinct(origin):
        return len({int(math.floor(float(p - origin))) % groups for p in places}) == groups

    assert any(distinct(p - 1e-5) for p in places)


def test_every_direction_is_as_likely_for_each_view_of_a_group_as_its_sector_allows():
    drawn = [
        sample_orbit(rng(0, n, "cameras"), views=4, size=8, elevation=(0, 0), group=4).azimuth
        for n in range(200)
    ]
    first = torch.stack(drawn)[:, 0]
    assert 0 <= first.min() < 5
    assert 85 < first.max() <= 90
    assert first.mean() == pytest.approx(45, abs=6)


def test_views_that_do_not_fill_groups_are_refused():
    with pytest.raises(ValueError, match="6 views can't be seen 4 at a time: give a multiple of 4"):
        sample_orbit(rng(0, 0, "cameras"), views=6, size=8, elevation=(0, 0), group=4)


@pytest.mark.parametrize("group", [1, 4])
def test_at_a_relative_distance_of_1_what_is_1_high_fills_half_of_the_picture(group):
    found = sample_orbit(
        rng(0, 0, "cameras"), views=8, size=64, elevation=(0, 0), distance=(1, 1), fov=(15, 60),
        group=group, relative=True,
    )  # fmt: skip
    (top, *others), _ = project(found, (0, 1, 0))
    assert top[1] == pytest.approx(0, abs=1e-3)
    assert all(other[1] == pytest.approx(0, abs=1e-3) for other in others)
    radius = cams.positions(found).norm(dim=-1)
    assert radius.max() > 1.5 * radius.min()


def test_a_turntable_starts_at_the_front_and_turns_toward_x():
    turn = turntable(8, size=16)
    torch.testing.assert_close(turn.azimuth, torch.arange(8) * 45.0)
    x, _, z = cams.positions(turn).T
    assert z[0] > 0
    assert x[0] == pytest.approx(0, abs=1e-6)
    assert x[1] > 0
    assert (turn.elevation == 15).all()


def test_indexing_and_moving_keep_all_fields():
    turn = turntable(5, size=16)
    part = turn[1:3].to("cpu")
    assert len(part) == 2
    assert torch.equal(part.azimuth, turn.azimuth[1:3])
    assert torch.equal(turn[torch.tensor([4])].c2w, turn.c2w[4:])
    assert (part.width, part.height) == (16, 16)


@pytest.mark.parametrize("size", [0, (0, 4), (4, -1)])
def test_a_camera_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="at least one pixel"):
        one(0.0, size=size)


# The law of elevations


def tilts(law, calls=4000, elevation=(-20.0, 90.0)):
    found = [
        sample_orbit(rng(0, step, "law"), views=4, size=4, elevation=elevation, law=law).elevation
        for step in range(calls)
    ]
    return torch.stack(found).double()


def test_threestudios_law_has_half_of_its_steps_on_the_sphere():
    """Of views in -20..90 above 60 degrees: 30/110 of one half, (1 - sin 60) / (1 + sin 20) of the other."""
    found = tilts("mixed")
    sphere = (1.0 - math.sin(math.radians(60))) / (1.0 + math.sin(math.radians(20)))
    assert float((found > 60).double().mean()) == pytest.approx((30 / 110 + sphere) / 2, abs=0.01)
    assert (30 / 110 + sphere) / 2 == pytest.approx(0.186, abs=1e-3)
    assert found.min() >= -20
    assert found.max() <= 90


def test_the_usual_law_is_uniform_in_degrees_and_draws_what_it_drew():
    found = tilts("degrees", calls=2000)
    assert float((found > 52).double().mean()) == pytest.approx(38 / 110, abs=0.01)
    a, b = (
        sample_orbit(rng(0, 1, "law"), views=4, size=4, elevation=(-20, 90), law=x)
        for x in ("degrees", "mixed")
    )
    assert torch.equal(a.azimuth, b.azimuth)


def test_views_of_a_group_share_the_laws_elevation():
    cameras = sample_orbit(rng(0, 3, "law"), views=8, size=4, elevation=(-20, 90), group=4, law="mixed")
    assert all(len(set(cameras.elevation[n : n + 4].tolist())) == 1 for n in (0, 4))
