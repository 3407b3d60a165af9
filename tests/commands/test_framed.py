"""Files of others before the camera: in render and in view, wherever they are and however large."""

import numpy as np
import pytest
from foreign import columns, write
from PIL import Image

import splatgen
from splatgen import formats


def sheet(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(float) / 255


def preview(cli, source, out, *words) -> tuple[np.ndarray, str]:
    done = cli("render", source, "--frames", 0, "--size", 48, "--out", out, *words)
    assert done.code == 0
    return sheet(out), done.err


def usual(tmp_path, size=1.0, shift=(0.0, 0.0, 0.0), kind="float", **options):
    rows = columns()
    for axis, way in zip("xyz", shift, strict=True):
        rows[axis] = rows[axis] * size + way
    for i in range(3):
        rows[f"scale_{i}"] = rows[f"scale_{i}"] + np.log(size)
    name = f"{size}-{'-'.join(map(str, shift))}.ply"
    return write(tmp_path / name, rows, types=dict.fromkeys("xyz", kind), **options)


@pytest.mark.parametrize(
    ("size", "shift", "kind"),
    [
        (1.0, (-5.0, 0.0, -30.0), "float"),
        (10.0, (0.0, 0.0, 0.0), "float"),
        (0.01, (0.3, 0.0, 0.0), "float"),
        (1.0, (500_000.0, 4_000_000.0, 100.0), "double"),
    ],
)
def test_objects_anywhere_look_alike(cli, tmp_path, size, shift, kind):
    first, _ = preview(cli, usual(tmp_path), tmp_path / "a.png", "--fit", "always")
    found, said = preview(cli, usual(tmp_path, size, shift, kind), tmp_path / "b.png")
    assert np.abs(found - first).mean() < 2e-3
    assert "has its middle at (" in said
    assert (found < 0.95).any(-1).mean() > 0.05


def test_what_is_in_view_stays_and_nothing_is_said(cli, tmp_path):
    at_home, said = preview(cli, usual(tmp_path), tmp_path / "a.png")
    assert "middle" not in said
    assert np.array_equal(at_home, preview(cli, usual(tmp_path), tmp_path / "b.png", "--fit", "never")[0])


def test_never_is_never(cli, tmp_path):
    far = usual(tmp_path, 1.0, (0.0, -40.0, 0.0))
    assert preview(cli, far, tmp_path / "a.png", "--fit", "never")[0].min() == 1.0


def test_z_up_stands_upright(cli, tmp_path):
    """The same object in both axes: one says so in a comment."""
    rows = columns()
    turned = {**rows, "x": -rows["x"], "y": -rows["z"], "z": -rows["y"]}  # right, front, up
    for i in range(3):
        turned[f"scale_{i}"] = rows[f"scale_{i}"] = np.full(40, np.log(0.1))
    first, _ = preview(cli, write(tmp_path / "a.ply", rows), tmp_path / "a.png")
    path = write(tmp_path / "b.ply", turned, comments=["Vertical Axis: z"])
    found, _ = preview(cli, path, tmp_path / "b.png")
    assert np.abs(found - first).mean() < 1e-3
    lying, _ = preview(cli, write(tmp_path / "c.ply", turned), tmp_path / "c.png")
    assert np.abs(lying - first).mean() > 0.02


def test_antialiased_splats_are_drawn_as_they_were_made(cli, tmp_path):
    """Splats far smaller than a pixel are fainter, not as large as one."""
    rows = columns()
    for i in range(3):
        rows[f"scale_{i}"] = np.full(40, -7.0)
    plain, _ = preview(cli, write(tmp_path / "a.ply", rows), tmp_path / "a.png")
    tagged = write(tmp_path / "b.ply", rows, comments=["SplatRenderMode: mip"])
    faint, _ = preview(cli, tagged, tmp_path / "b.png")
    assert (1 - faint).sum() < 0.5 * (1 - plain).sum()
    ink = [
        float((255 - splatgen.render(tmp_path / name, size=32).rgb.astype(float)).sum())
        for name in ("a.ply", "b.ply")
    ]
    assert ink[1] < 0.5 * ink[0]  # in Python, too


def test_nothing_is_nothing_to_frame(cli, tmp_path):
    path = write(tmp_path / "a.ply", {name: value[:0] for name, value in columns().items()})
    assert preview(cli, path, tmp_path / "a.png")[0].min() == 1.0


def test_view_shows_the_middle_and_saves_what_it_was_given(tmp_path, monkeypatch):
    """Its page looks at the origin, so that is where the object goes; Save gives the file back as it was."""
    from splatgen.commands import view
    from splatgen.commands.common import still
    from splatgen.loop.snapshot import Channel, Command

    rows = {**columns(), "label": np.arange(40)}
    for axis, way in (("x", -5.0), ("z", -30.0)):
        rows[axis] = rows[axis] + way
    path = write(tmp_path / "a.ply", rows, types={"label": "uchar"})
    seen = {}

    def show(channel: Channel, splats, snapshot, title, place, file):
        seen.update(channel=channel, splats=splats)
        shown = still.Still(splats=splats, file=file, name="a", snapshot=snapshot)
        still.answer(Command(kind="save"), channel, shown)

    monkeypatch.setattr(view, "show", show)
    assert view.main([str(path)]) == 0
    assert seen["splats"].means.norm(dim=-1).max() < 1.2
    saved = seen["channel"].files.get_nowait().content
    (tmp_path / "b.ply").write_bytes(saved)
    file = formats.read(tmp_path / "b.ply")
    np.testing.assert_allclose(file.means[:, 2], rows["z"], atol=1e-5)
    assert file.extras["label"].tolist() == list(range(40))
