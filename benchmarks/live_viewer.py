"""What the live viewer costs: `python benchmarks/live_viewer.py`.

Pages are other processes that speak viser's protocol without drawing, so that no browser's work is counted;
they share the machine's cores with the run. Parts of one run alternate between pages, so that what else the
machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import viser
from splatgen_viewer.live import Viewer
from splatgen_viewer.page import Subject

from splatgen.commands.common.viewer import INTERVAL
from splatgen.loop.snapshot import Channel, Cloud, Snapshot
from splatgen.runs.machine import machine_name

CHANGE, SETTLE = 60, 15  # steps between changes of the pages, and of these, those not counted
STALLED = "stalled"


# Pages


def page(port: int, stalled: bool) -> None:
    """A process that connects and hangs up when its input says so, and says then how much it read."""
    for line in sys.stdin:
        if line.strip() == "on":
            over = threading.Event()
            reader = threading.Thread(target=wait if stalled else read, args=(port, over))
            reader.start()
        else:
            over.set()
            reader.join()


def wait(port: int, over: threading.Event) -> None:
    """A page that connects and reads nothing."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: viser-v{viser.__version__}\r\n\r\n".encode()
        )
        over.wait()
    print(json.dumps({"bytes": 0, "seconds": 1.0, "updates": 0}), flush=True)


def read(port: int, over: threading.Event) -> None:
    """A page that reads as fast as it can."""
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    amount, updates, begin = 0, 0, time.monotonic()
    with connect(
        f"ws://127.0.0.1:{port}", subprotocols=[Subprotocol(f"viser-v{viser.__version__}")], max_size=None
    ) as it:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                content = it.recv(timeout=0.1)
                amount += len(content)
                updates += len(content) > 100_000
    told = {"bytes": amount, "seconds": time.monotonic() - begin, "updates": updates}
    print(json.dumps(told), flush=True)


class Pages:
    """Processes of pages, connected or not."""

    def __init__(self, port: int, kinds: list[str]) -> None:
        words = [sys.executable, __file__, "--port", str(port), "--page"]
        self.processes = [
            subprocess.Popen([*words, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for kind in kinds
        ]

    def tell(self, word: str, count: int | None = None) -> list[dict[str, float]]:
        chosen = self.processes[:count]
        for process in chosen:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
        answers = [p.stdout.readline() for p in chosen if p.stdout is not None] if word == "off" else []
        return [json.loads(answer) for answer in answers]

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


@contextlib.contextmanager
def watched(channel: Channel, kinds: list[str]) -> Iterator[tuple[Viewer, Pages]]:
    with Viewer(channel, Subject(title="benchmark"), host="127.0.0.1", port=18080) as viewer:
        pages = Pages(viewer.port, kinds)
        try:
            yield viewer, pages
        finally:
            pages.close()


# Measurements


def steps(
    count: int, size: int, *, prior: str = "toybox", change: int = CHANGE, settle: int = SETTLE
) -> dict[str, Any]:
    """Wall and CPU time of a run's steps with no page, one, and four of which one reads nothing."""
    from splatgen.config import Config, OutputOptions, SplatOptions
    from splatgen.loop import object_run

    phases = {"no page": 0, "one page": 1, "four pages, one stalled": 4}
    config = Config(
        prompt="a red cube on top of a blue sphere",
        steps=count,
        prior=prior,
        device="cpu",
        splats=SplatOptions(count=size),
        output=OutputOptions(frames=0, size=32, checkpoint_seconds=0),
    )
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in phases}
    state: dict[str, Any] = {"phase": "no page", "last": None}
    channel = Channel(interval=INTERVAL)
    with watched(channel, ["reads", "reads", "reads", STALLED]) as (_, pages):

        def report(progress: Any) -> None:
            now = (time.perf_counter(), time.thread_time())
            place = progress.step % change
            if state["last"] is not None and place > settle:
                wall, cpu = (1e3 * (b - a) for a, b in zip(state["last"], now, strict=True))
                times[state["phase"]].append((wall, cpu))
            if place == 0:
                if phases[state["phase"]]:
                    pages.tell("off", phases[state["phase"]])
                names = list(phases)
                state["phase"] = names[(names.index(state["phase"]) + 1) % len(names)]
                if phases[state["phase"]]:
                    pages.tell("on", phases[state["phase"]])
            state["last"] = (time.perf_counter(), time.thread_time())

        with tempfile.TemporaryDirectory() as folder:
            object_run.generate(
                config, out=Path(folder), command=["benchmark"], report=report, channel=channel
            )
        if phases[state["phase"]]:
            pages.tell("off", phases[state["phase"]])
    base = [statistics.median(t[kind] for t in times["no page"]) for kind in (0, 1)]
    rows = {}
    for name, found in times.items():
        wall, cpu = (statistics.median(t[kind] for t in found) for kind in (0, 1))
        mean = statistics.fmean(t[0] for t in found)
        rows[name] = {
            "steps": len(found),
            "median_ms": round(wall, 2),
            "ratio": round(wall / base[0], 3),
            "mean_ms": round(mean, 2),
            "mean_ratio": round(mean / statistics.fmean(t[0] for t in times["no page"]), 3),
            "loop_cpu_ms": round(cpu, 2),
        }
    return {"splats": size, "phases": rows}


def clouds(count: int) -> list[Cloud]:
    generator = np.random.default_rng(0)
    covariances = np.tile(np.eye(3, dtype=np.float32) * 1e-4, (count, 1, 1))
    return [
        Cloud(
            means=generator.normal(size=(count, 3)).astype(np.float32),
            covariances=covariances,
            rgbs=generator.random((count, 3), np.float32),
            opacities=generator.random(count, np.float32),
        )
        for _ in range(2)
    ]


def feed(channel: Channel, made: list[Cloud], seconds: float, first: int = 1, most: int = 10**9) -> None:
    """Snapshots as often as the channel wants them."""
    end, number = time.monotonic() + seconds, first
    while time.monotonic() < end and number < first + most:
        if channel.wants():
            row = {"step": number, "loss": 1.0 / number, "reward/a": 0.5, "splats/count": 1}
            channel.put(
                Snapshot(
                    step=number,
                    steps=10**6,
                    seconds=0.1 * number,
                    status="running",
                    cloud=made[number % 2],
                    rows=(row,),
                    cameras=np.tile(np.eye(4, dtype=np.float32), (4, 1, 1)),
                )
            )
            number += 1
        time.sleep(0.002)


def traffic(count: int, seconds: float) -> dict[str, float]:
    """What one page gets of a cloud that changes as fast as it is taken."""
    channel = Channel(interval=INTERVAL)
    with watched(channel, ["reads"]) as (_, pages):
        pages.tell("on")
        began = time.process_time()
        feed(channel, clouds(count), seconds)
        cpu = time.process_time() - began
        (told,) = pages.tell("off")
    return {
        "splats": count,
        "megabytes_a_second": round(told["bytes"] / told["seconds"] / 1e6, 2),
        "updates_a_second": round(told["updates"] / told["seconds"], 2),
        "viewer_cpu_share": round(cpu / seconds, 3),
    }


def memory(updates: int, count: int) -> dict[str, float]:
    """Memory of the process over many updates, with a page that reads and one that does not."""
    channel, made = Channel(interval=0.0), clouds(count)
    found: dict[str, float] = {}
    with watched(channel, ["reads", STALLED]) as (viewer, pages):
        viewer.pump.over.set()  # by hand, so that no update waits
        viewer.pump.thread.join()
        pages.tell("on")
        time.sleep(1.0)
        for number in range(1, updates + 1):
            feed(channel, made, 10.0, first=number, most=1)
            viewer.pump._turn(last=True)
            if number in (100, updates // 2, updates):
                found[f"mb_after_{number}"] = round(resident(), 1)
        told = pages.tell("off")
    return {"splats": count, **found, "mb_read": round(told[0]["bytes"] / 1e6, 1)}


def resident() -> float:
    """Megabytes of this process now (Linux), or at most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def first_splat() -> dict[str, float] | None:
    """Seconds from the command to its address, and to splats in a browser; None without one."""
    program = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if program is None:
        return None
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        tab = browser.new_page(viewport={"width": 800, "height": 600})
        words = ["generate", "a red cube", "--viewer", "--port", "18090", "--out", folder, "--device", "cpu"]
        begin = time.monotonic()
        command = [sys.executable, "-m", "splatgen.cli", *words]
        run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            assert run.stderr is not None
            address = run.stderr.readline().split()[-1]
            listens = time.monotonic() - begin
            tab.goto(address)
            tab.get_by_text("of 400").or_(tab.get_by_text("step 1")).first.wait_for(timeout=60_000)
            told = time.monotonic() - begin
            while not drawn(tab.screenshot()):
                tab.wait_for_timeout(20)
            seen = time.monotonic() - begin
        finally:
            run.terminate()
            run.communicate()
            browser.close()
    return {"address_s": round(listens, 2), "numbers_s": round(told, 2), "splats_s": round(seen, 2)}


def drawn(content: bytes) -> bool:
    """Whether a screenshot shows more than white, left of the panels and below the browser's notes."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int32)[200:, :380]
    return bool((pixels.min(-1) < 225).mean() > 0.05)


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is quoted."""
    return {
        "first": first_splat(),
        "steps": [steps(options.steps, size) for size in (1500, 10_000)],
        "traffic": [traffic(count, options.seconds) for count in (10_000, 50_000, 200_000)],
        "memory": memory(options.updates, 20_000),
    }


def tiny() -> dict[str, Any]:
    """The same on next to nothing: that it runs, not what it costs."""
    return {
        "steps": [steps(14, 60, prior="toybox-mini", change=4, settle=1)],
        "traffic": [traffic(200, 0.5)],
        "memory": memory(4, 200),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="of everything a little, without a browser")
    parser.add_argument("--page", choices=("reads", STALLED), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.page:
        page(options.port, options.page == STALLED)
        return
    report = {
        "machine": machine_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **(tiny() if options.tiny else whole(options)),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
