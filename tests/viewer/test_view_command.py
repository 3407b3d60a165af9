"""`splatgen view`, and what the terminal says of a viewer."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from pages import LEFT, PATIENCE, RED, Page, balls, free_port, snapshot
from splatgen_viewer.access import Access
from splatgen_viewer.page import Subject

from splatgen import formats
from splatgen.commands import generate, resume, view
from splatgen.commands.common import still
from splatgen.commands.common import viewer as viewing
from splatgen.commands.common.errors import Failure
from splatgen.commands.common.viewer import ViewerAddress, ViewerOptions
from splatgen.config import Config, ImageConfig, OutputOptions, SplatOptions, ViewOptions
from splatgen.formats import splat_file
from splatgen.loop import object_run
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.snapshot import Channel, Command, ViewRequest
from splatgen.runs.steering import SettingChange, write


class At:
    """A viewer, as far as words about it go."""

    def __init__(self, host, port):
        self.port, self.access = port, Access.to(host)
        self.url = f"http://{host}:{port}{self.access.path()}"


HERE = {"SSH_CONNECTION": "192.0.2.7 51234 198.51.100.4 22"}


def test_the_terminal_says_the_address_alone():
    assert viewing.told(At("127.0.0.1", 8080), ViewerAddress(), {}) == ["viewer: http://127.0.0.1:8080/"]


def test_over_ssh_it_says_how_to_reach_it():
    lines = viewing.told(At("127.0.0.1", 8081), ViewerAddress(), HERE)
    assert lines[0] == "port 8080 is taken: 8081"
    words = shlex.split(lines[2].partition("first: ")[2])
    assert words[:4] == ["ssh", "-N", "-L", "8081:127.0.0.1:8081"]
    assert words[4].endswith("@198.51.100.4")


@pytest.mark.parametrize(
    ("connection", "words"),
    [("192.0.2.7 51234 198.51.100.4 2222", ["-p", "2222"]), ("odd", ["@HOST"]), ("", None)],
)
def test_other_ports_and_odd_environments_of_ssh(connection, words):
    text = " ".join(viewing.told(At("127.0.0.1", 8080), ViewerAddress(), {"SSH_CONNECTION": connection}))
    assert ("ssh -N" in text) == (words is not None)
    assert all(word in text for word in words or [])


def test_beyond_the_loopback_it_warns_and_names_the_safe_way():
    viewer = At("0.0.0.0", 8080)
    text = "\n".join(viewing.told(viewer, ViewerAddress(host="0.0.0.0"), HERE))
    assert viewer.access.token in text
    assert "warning: whoever has this address sees and steers the run" in text
    assert "ssh -N -L 8080:127.0.0.1:8080" in text


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (ViewerAddress(host="no.such.host.invalid"), "no viewer at no.such.host.invalid, port 8080"),
        (ViewerAddress(host="203.0.113.7"), "no viewer at 203.0.113.7"),
        (ViewerAddress(port=0), "--port 0: give 1 to 65535"),
        (ViewerAddress(port=70_000), "--port 70000: give 1 to 65535"),
    ],
)
def test_a_place_where_nothing_can_listen_is_refused(place, words):
    with pytest.raises(Failure, match=words), viewing.opened(Channel(), Subject(title="a test"), place):
        pass


def test_without_the_option_there_is_no_viewer_and_images_have_none():
    with viewing.watched(ViewerOptions(), Config()) as channel:
        assert channel is None
    with (
        pytest.raises(Failure, match="leave it out"),
        viewing.watched(ViewerOptions(viewer=True), ImageConfig()),
    ):
        pass


def test_a_viewer_starts_where_it_should_and_prints_its_address_to_stderr(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with viewing.watched(
            ViewerOptions(viewer=True, place=ViewerAddress(port=taken)), Config()
        ) as channel:
            assert isinstance(channel, Channel)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"port {taken} is taken: " in err
    assert "splatgen: viewer: http://127.0.0.1:" in err


def test_settings_start_where_the_run_is_now(tmp_path):
    config = Config(prior="toybox-mini", reward=("toybox=0.7", "clip=0.3"))
    plain = viewing.settings(config, None)
    scale = config.guidance.scale
    assert plain == {"guidance.scale": scale, "lr.factor": 1.0, "reward.toybox": 0.7, "reward.clip": 0.3}
    changes = [
        SettingChange(step=2, setting=name, value=0.5) for name in ("lr.factor", "reward.clip", "reward.old")
    ]
    write(tmp_path / "steering.jsonl", changes)
    assert viewing.settings(config, tmp_path) == {**plain, "lr.factor": 0.5, "reward.clip": 0.5}


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (ViewOptions(distance=(2.0, 3.0), fov=(90.0, 90.0)), 2.5),
        (ViewOptions(distance=(0.8, 1.0), fov=(15.0, 60.0), relative=True), 0.9),
    ],
)
def test_the_first_view_reaches_as_far_as_the_runs_cameras(views, expected):
    assert viewing.reach(Config(views=views)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    given = Config(
        prompt="a red cube",
        prior="toybox-mini",
        reward=("toybox-mini",),
        steps=4,
        device="cpu",
        views=ViewOptions(count=2, size=(16,)),
        splats=SplatOptions(count=60),
        output=OutputOptions(frames=0, size=16),
    )
    return object_run.generate(given, out=tmp_path_factory.mktemp("runs"), command=["test"]).run


def test_a_run_is_known_by_its_prompt_and_numbers_and_a_file_by_its_name(run):
    known = view.record(run.folder)
    assert (known.title, known.status, known.step) == ("a red cube", "done", 4)
    assert [row["step"] for row in known.rows] == [0, 1, 2, 3]
    assert view.record(run.splats_ply) == view.Record(title="splats.ply")


def test_a_page_that_wants_a_picture_of_a_file_gets_one():
    channel, given = Channel(), snapshot(cloud=balls((LEFT, RED)))
    camera = np.eye(4, dtype=np.float32)
    camera[2, 3] = 3.0
    splats = starting_splats(Config(device="cpu"))
    asked = ViewRequest(c2w=camera, fov=50.0, width=40, height=30)
    shown = still.Still(splats=splats, file=splat_file.of(splats), name="a-cube", snapshot=given)
    still.answer(Command(kind="look", look=asked), channel, shown)
    assert channel.take().view.shape == (30, 40, 3)
    still.answer(Command(kind="look"), channel, shown)
    assert channel.take() is None
    still.answer(Command(kind="save"), channel, shown)
    assert channel.files.get_nowait().name == "a-cube.ply"


@pytest.mark.parametrize("kind", ["run", "file"])
def test_it_shows_the_splats_until_ctrl_c(run, kind, tmp_path):
    port = free_port()
    given = run.folder if kind == "run" else run.splats_ply.rename(tmp_path / "cube.ply")
    code = "import sys; from splatgen.commands.view import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, str(given), "--port", str(port)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert f"viewer: http://127.0.0.1:{port}/" in process.stderr.readline()
        at = At("127.0.0.1", port)
        with Page(at) as page:
            splats = page.wait(lambda m: m["type"] == "GaussianSplatsMessage")
            count = len(splats["props"]["buffer"]) // 32
            page.wait(lambda m: f"{count} splats" in str(m.get("updates")))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "", "")
    if kind == "file":
        (tmp_path / "cube.ply").rename(run.splats_ply)
        assert count == len(formats.load(run.splats_ply))


@pytest.mark.parametrize("verb", ["generate", "resume"])
def test_a_run_with_a_viewer_prints_its_folder_alone(run, verb, tmp_path, capsys):
    main = {"generate": generate.main, "resume": resume.main}[verb]
    words = (
        [str(run.folder), "--steps", "5"]
        if verb == "resume"
        else ["--config", str(run.config_json), "--out", str(tmp_path)]
    )
    assert main([*words, "--viewer", "--quiet", "--port", str(free_port())]) == 0
    out, err = capsys.readouterr()
    (made,) = [run.folder] if verb == "resume" else tmp_path.iterdir()
    assert out == f"{made}\n"
    assert "viewer: http://127.0.0.1:" in err
    assert (made / "splats.ply").is_file()
