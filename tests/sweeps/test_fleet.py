"""Workers under a real Ray: the same table as without it, whatever dies; and what a node is refused for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_sweep as tiny
from conftest import Cli

from splatgen.commands.common import checks
from splatgen.config import from_dict
from splatgen.loop.loop import Progress, ignore
from splatgen.runs import run_folder
from splatgen.runs.version import __version__
from splatgen.sweeps.fleet import (
    RAY,
    RAY_ALONE,
    Fleet,
    FleetError,
    FleetOptions,
    Node,
    check_answers,
    newest_step,
)
from splatgen.sweeps.hand import Hand, Order, unpack
from splatgen.sweeps.ledger import Sweep, read_rows, read_sweep
from splatgen.sweeps.plan import Task
from splatgen.sweeps.sweep import Callbacks
from splatgen.worlds.toybox import weights_folder

os.environ.update(RAY | RAY_ALONE)  # before Ray is imported, as `connect` does it
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'splatgen[ray]'")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc"),
    pytest.mark.skipif(
        any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward")),
        reason="the miniature toybox weights are not there",
    ),
]
LOCAL = FleetOptions(address="local", workers=2, gpus=1.0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """What nobody disturbed."""
    return tiny.made(tiny.plan("sds", "psd"), tmp_path_factory.mktemp("alone"))


def hands() -> list[int]:
    """Processes that make runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Hand"):
            found.append(int(path.parent.name))
    return found


def once(event: Callable[[], None], at: int) -> Callbacks:
    """A watch with something that happens while the n-th run is made."""
    begun: list[Task] = []

    def begin(task: Task) -> Callable[[Progress], None]:
        begun.append(task)
        if len(begun) == at:
            threading.Timer(0.2, event).start()
        return ignore

    return replace(tiny.WATCH, begin=begin)


def kill_a_hand() -> None:
    os.kill(hands()[0], signal.SIGKILL)


def test_a_worker_that_is_killed_changes_nothing(alone: Sweep, tmp_path: Path) -> None:
    with Fleet(LOCAL, ["test"], truth=False, tell=lambda _: None) as fleet:
        fleet.prepare(alone.plan)
        watch = once(kill_a_hand, at=2)
        sweep = tiny.made(alone.plan, tmp_path, fleet, watch)
        assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert [o.status for o in sweep.outcomes] == ["done"] * 6
    assert tiny.table(sweep) == tiny.table(alone)
    end = time.monotonic() + 30
    while hands() and time.monotonic() < end:
        time.sleep(0.2)
    assert not hands()


def test_ctrl_c_in_a_terminal_ends_all_runs_with_a_checkpoint(tmp_path: Path) -> None:
    """It goes to the whole group of processes, those of Ray among them."""
    (tmp_path / "prompts.txt").write_text("\n".join(tiny.PROMPTS))
    words = [
        tmp_path / "prompts.txt",
        "--workers",
        "2",
        "--methods",
        "sds",
        "--seeds",
        "1",
        "--out",
        tmp_path,
    ]
    words += ["--prior", "toybox-mini", "--reward", "toybox-mini", "--steps", "100000", "--device", "cpu"]
    words += ["--views.count", "1", "--views.size", "16", "--splats.count", "40", "--output.size", "16"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "splatgen.cli", "sweep", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 400
    while time.monotonic() < end and sweep.poll() is None and len(list(tmp_path.rglob("latest"))) < 2:
        time.sleep(0.2)
    os.killpg(sweep.pid, signal.SIGINT)
    out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 130, err
    (folder,) = tmp_path.glob("*-sweep-*")
    assert f"continue with: splatgen sweep --resume {folder}" in err
    assert "Traceback" not in err
    assert "| 0/3, 2 stopped, 1 waiting |" in out
    stopped = [o for o in read_sweep(folder).outcomes if o.status == "stopped"]
    assert all(newest_step(folder / o.folder) > 0 for o in stopped)


DRIVER = """
import sys
from pathlib import Path
import tiny_sweep as tiny
from splatgen.sweeps.fleet import Fleet, FleetOptions
with Fleet(FleetOptions(address="local", workers=1, gpus=1.0), ["test"], truth=False, tell=print) as fleet:
    tiny.made(tiny.plan("sds", "psd"), Path(sys.argv[1]), fleet)
"""


def test_a_driver_that_is_killed_leaves_what_a_plain_sweep_ends(alone: Sweep, tmp_path: Path) -> None:
    words = [sys.executable, "-c", DRIVER, str(tmp_path)]
    path = os.pathsep.join([str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path})
    end = time.monotonic() + 300
    while time.monotonic() < end and driver.poll() is None:
        folders = list(tmp_path.iterdir())
        if folders and len(read_rows(folders[0])) >= 2:
            break
        time.sleep(0.05)
    driver.kill()
    driver.wait(60)
    (folder,) = tmp_path.iterdir()
    assert 2 <= len(read_rows(folder)) < 6
    assert not read_sweep(folder).complete
    sweep = tiny.made(alone.plan, tmp_path, folder=folder)
    assert tiny.table(sweep) == tiny.table(alone)
    while hands() and time.monotonic() < end:
        time.sleep(0.2)
    assert not hands()


# Nodes


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[object]:
    """A head and three more nodes on loopback: one good, one of another version, one with a full disk."""
    from ray.cluster_utils import Cluster

    about = {
        "other": "import splatgen.runs.version as v; v.__version__ = '0.0.9'",
        "full": "import shutil, collections\n"
        "shutil.disk_usage = lambda _: collections.namedtuple('U', 'total used free')(1, 1, 0)",
    }
    for name, text in about.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(text)
    small = {"object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, **small},
    )
    found.good = found.add_node(num_cpus=1, **small)
    for name in about:
        found.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path / name)}, **small)
    yield found
    found.shutdown()


def test_a_cluster_that_loses_a_node_and_has_others_that_cannot_work(
    alone: Sweep, tmp_path: Path, cluster: object
) -> None:
    said: list[str] = []
    options = FleetOptions(address=cluster.address, workers=1, gpus=1.0)  # type: ignore[attr-defined]
    with Fleet(options, ["test"], truth=False, tell=said.append) as fleet:
        watch = once(lambda: cluster.remove_node(cluster.good, allow_graceful=False), at=3)  # type: ignore[attr-defined]
        sweep = tiny.made(alone.plan, tmp_path, fleet, watch)
    assert tiny.table(sweep) == tiny.table(alone)
    assert all(o.node for o in sweep.outcomes)
    wrong = [text for text in said if f"it has splatgen 0.0.9, the sweep has {__version__}" in text]
    full = [text for text in said if "0 MB free" in text]
    assert len(wrong) == len(full) == 1
    assert all("is refused: " in text for text in said)


@pytest.mark.parametrize(
    ("gpus", "device", "room"),
    [(1.0, "auto", 2), (0.5, "cuda", 4), (2.0, "cuda", 1), (4.0, "auto", 0), (1.0, "cpu", 8)],
)
def test_a_node_has_room_by_its_gpus_or_its_cpus(gpus: float, device: str, room: int) -> None:
    options = FleetOptions(address="auto", workers=1, gpus=gpus)
    fleet = Fleet(options, ["test"], truth=False, tell=lambda _: None)
    node = Node(id="a", name="a", cpus=8.0, gpus=2.0)
    config = from_dict({"device": device})
    assert fleet._room(node, config) == room
    bare = replace(node, gpus=0.0)
    assert fleet._room(bare, config) == (0 if device == "cuda" else 8)


def test_ray_gives_every_run_its_gpu_or_its_share_of_one(tmp_path: Path) -> None:
    """A node that says that it has two GPUs: Ray only counts them, so runs are made on the CPU."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2, **small})
    try:
        whole = placed(found.address, 1.0, 1, tmp_path)
        shared = placed(found.address, 0.5, 3, tmp_path)
    finally:
        found.shutdown()
    assert max(whole, key=len) == ["0", "1"]  # no more than fit, and more than there are CPUs
    assert max(map(len, shared)) == 3
    assert max(count for runs in shared for count in Counter(runs).values()) == 2
    assert {gpu for runs in shared for gpu in runs} == {"0", "1"}


def placed(address: str, share: float, workers: int, out: Path) -> list[list[str]]:
    """The GPUs that the runs at work may see, each time that another begins."""
    options = FleetOptions(address=address, workers=workers, gpus=share)
    seen: list[list[str]] = []
    with Fleet(options, ["test"], truth=False, tell=print) as fleet:

        def begin(_: Task) -> Callable[[Progress], None]:
            def visible(_: Hand) -> str:
                return os.environ["CUDA_VISIBLE_DEVICES"]

            at_work = [post.hand for post in fleet._posts if post.task is not None]
            seen.append(sorted(ray.get([hand.__ray_call__.remote(visible) for hand in at_work], timeout=60)))
            return ignore

        what = tiny.plan("sds", prompts=("a red cube",), seeds=4, steps=20)
        what = replace(what, methods={"sds": replace(what.first, device="auto")})
        sweep = tiny.made(what, out, fleet, replace(tiny.WATCH, begin=begin))
    assert [o.status for o in sweep.outcomes] == ["done"] * 4
    return seen


# A hand, without Ray


def order(root: Path, mark: str = "none") -> Order:
    return Order(root=str(root), mark=mark, command=("test",), truth=False, threads=1, gpus=0.0)


def test_what_is_made_out_of_sight_is_sent_back(alone: Sweep, tmp_path: Path) -> None:
    hand = Hand(order(tmp_path / "elsewhere"))
    task = alone.plan.tasks()[0]
    report = hand.make(task)
    assert report.outcome.status == "done"
    assert report.files is not None
    unpack(tmp_path / task.folder, report.files)
    names = {path.name for path in (tmp_path / task.folder).iterdir()}
    assert {"config.json", "run.json", "metrics.jsonl", "splats.ply", "preview.png"} <= names
    ours, theirs = (p / task.folder / "preview.png" for p in (tmp_path, alone.folder))
    assert ours.read_bytes() == theirs.read_bytes()
    with pytest.raises(ValueError, match="which no run leaves"):
        unpack(tmp_path / "x", {"../../evil": b""})
    assert not (tmp_path / "x").exists()


def test_a_folder_is_shared_when_it_is_the_same_one(alone: Sweep, tmp_path: Path) -> None:
    task = alone.plan.tasks()[0]
    report = Hand(order(alone.folder, alone.folder.name)).make(task)
    assert report.files is None
    assert report.outcome.numbers == alone.outcomes[0].numbers
    assert Hand(order(alone.folder, "another")).make(task).files is not None


def test_a_hand_says_why_it_cannot_work(alone: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    hand, config = Hand(order(alone.folder, alone.folder.name)), alone.plan.first
    assert hand.look(__version__, config) is None
    assert "install the same there" in str(hand.look("9.9", config))
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: type("U", (), {"free": 0})())
    with pytest.raises(OSError, match="0 MB free"):
        hand.look(__version__, config)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://host:10001", "give local, auto, or HOST:PORT"),
        ("nonsense", "give local, auto, or HOST:PORT"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(
    cli: Cli, tmp_path: Path, address: str, message: str
) -> None:
    with pytest.raises(FleetError, match=message):
        check_answers(address)
    words = ["a red cube", "--prior", "toybox-mini", "--reward", "toybox-mini", "--out", tmp_path]
    done = cli("compare", *words, "--ray", address)
    assert (done.code, done.out) == (3, "")
    assert message in done.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_benchmark_of_faults_runs(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "sweep_faults.py"
    words = ["--kills", "0", "--tasks", "30", "--runs", "0", "--out", str(tmp_path / "found.json")]
    subprocess.run([sys.executable, script, *words], check=True, timeout=600)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]
    assert found["overhead"]["tasks"] == 30
    assert len(found["overhead"]["driver_mb"]) == 10
