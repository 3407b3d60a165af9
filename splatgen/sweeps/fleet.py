"""Workers under Ray, on this machine or a cluster: hands are started, given runs, and replaced when they die.

Ray knows the nodes, their resources and who died; this file knows which run is where. A run whose hand dies
goes to another; one that kills its hand twice without having come further is listed as failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splatgen.config import Config
from splatgen.runs.run_folder import Run
from splatgen.runs.version import __version__
from splatgen.sweeps.hand import Hand, Order, Report, unpack
from splatgen.sweeps.ledger import Outcome
from splatgen.sweeps.plan import Plan, Task
from splatgen.sweeps.sweep import Callbacks
from splatgen.sweeps.worker import TRIES

WAIT = 0.5  # seconds between looks at who asks to stop, and at nodes that came or went
ANSWER = 5.0  # seconds in which a cluster's address has to answer
STORE = 2**27  # bytes of Ray's shared memory on this machine: results of a run pass through it


class FleetError(RuntimeError):
    """No cluster, or no node that can work."""


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """Where the workers are and how many."""

    address: str  # local, auto, or HOST:PORT
    workers: int  # on this machine; of a cluster the most, 1 for as many as it has room for
    gpus: float  # a run takes


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster."""

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(eq=False, kw_only=True)
class Post:
    """A hand and where it is."""

    node: Node
    hand: Any  # Ray's handle of a Hand
    ready: bool = False
    task: Task | None = None


@dataclass
class Fleet:
    """Makes runs of a sweep. Within `with`, Ray is connected: a cluster of its own, or one that is there."""

    options: FleetOptions
    command: Sequence[str]
    truth: bool
    tell: Callable[[str], None]
    _posts: list[Post] = field(default_factory=list)
    _busy: dict[Any, Post] = field(default_factory=dict)  # by Ray's reference of what is at work
    _refused: dict[str, str] = field(default_factory=dict)  # node: why
    _starts: Counter[str] = field(default_factory=Counter)  # of hands that never came up, by node
    _deaths: dict[str, tuple[int, int]] = field(default_factory=dict)  # folder: how many at which step
    _next_look: float = 0.0  # at the nodes that there are, which takes longer than a small task

    def __enter__(self) -> Fleet:
        connect(self.options)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for post in self._posts:
            with contextlib.suppress(Exception):  # it may be dead already
                ray.kill(post.hand)
        ray.shutdown()

    def prepare(self, plan: Plan) -> None:
        """Raise FleetError where no node has what a run takes."""
        if not any(self._room(node, plan.first) for node in nodes()):
            raise FleetError(
                f"no node of the cluster has room for a run, which takes {self._needs(plan.first)}: "
                "give another --gpus or --device"
            )

    def threads(self) -> int:
        """The cores shared between the workers here; one of each CPU that Ray counts on a cluster."""
        here = self.options.address == "local"
        return max(1, torch.get_num_threads() // self.options.workers) if here else 1

    def outcomes(
        self, tasks: Sequence[Task], root: Path, threads: int, watch: Callbacks
    ) -> Iterator[Outcome]:
        import ray

        queue, stopping = deque(tasks), False
        while queue or any(post.task for post in self._posts):
            if not stopping:
                if not self._posts or time.monotonic() > self._next_look:
                    self._staff(queue, root, threads)
                    self._next_look = time.monotonic() + WAIT
                self._assign(queue, watch)
            done, _ = ray.wait(list(self._busy), num_returns=1, timeout=WAIT) if self._busy else ([], [])
            for reference in done:
                yield from self._settle(reference, queue, root, stopping)
            if watch.should_stop() and not stopping:
                stopping = True
                queue.clear()
                for post in self._posts:
                    post.hand.stop.remote()

    def _needs(self, config: Config) -> str:
        return f"{self.options.gpus:g} GPU" if config.device == "cuda" else "1 CPU"

    def _room(self, node: Node, config: Config) -> int:
        """How many runs a node can have at once."""
        if node.gpus and config.device != "cpu":
            return int(node.gpus / self.options.gpus)
        return 0 if config.device == "cuda" else int(node.cpus)

    def _most(self) -> int:
        free = self.options.address != "local" and self.options.workers == 1
        return 10**6 if free else self.options.workers

    def _staff(self, queue: Sequence[Task], root: Path, threads: int) -> None:
        """A hand wherever there is room and work; hands of nodes that are gone are forgotten by _settle."""
        config = (queue[0] if queue else next(post.task for post in self._posts if post.task)).config
        there = nodes()
        for node in there:
            if node.id in self._refused:
                continue
            here = sum(post.node.id == node.id for post in self._posts)
            room = self._room(node, config)
            wanted = min(room - here, self._most() - len(self._posts), len(queue) - self._free())
            for _ in range(wanted):
                self._start(node, config, root, threads)
        if not self._posts and queue:
            reasons = "; ".join(self._refused.values()) or "the cluster has no node with room"
            raise FleetError(f"no worker is left: {reasons}")

    def _free(self) -> int:
        return sum(post.task is None for post in self._posts)

    def _start(self, node: Node, config: Config, root: Path, threads: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gpus = self.options.gpus if node.gpus and config.device != "cpu" else 0.0
        order = Order(
            root=str(root.resolve()),
            mark=root.name,
            command=tuple(self.command),
            truth=self.truth,
            threads=threads,
            gpus=gpus,
        )
        where = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        kind = ray.remote(Hand).options(
            num_cpus=0 if gpus else 1,
            num_gpus=gpus,
            scheduling_strategy=where,
            max_concurrency=2,
            max_restarts=0,
        )
        post = Post(node=node, hand=kind.remote(order))
        self._posts.append(post)
        self._busy[post.hand.look.remote(__version__, config)] = post

    def _assign(self, queue: deque[Task], watch: Callbacks) -> None:
        for post in self._posts:
            if post.ready and post.task is None and queue:
                post.task = queue.popleft()
                watch.begin(post.task)
                self._busy[post.hand.make.remote(post.task)] = post

    def _settle(self, reference: Any, queue: deque[Task], root: Path, stopping: bool) -> Iterator[Outcome]:
        """What came of a hand's work: an outcome, a refusal, or its death."""
        import ray

        post = self._busy.pop(reference)
        task, post.task = post.task, None
        try:
            found: Report | str | None = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # it raised what the node is to blame for
            self._dismiss(post, f"{type(error.cause).__name__}: {error.cause}")
            if task is not None and not stopping:
                queue.appendleft(task)
            return
        except ray.exceptions.RayError as error:  # it died, or its node did
            self._posts.remove(post)
            if task is not None:
                yield from self._died(task, post.node, queue, root, stopping)
            else:
                self._starts[post.node.id] += 1
                if self._starts[post.node.id] >= TRIES:
                    self._refuse(post.node, f"no worker comes up there: {error}".splitlines()[0])
            return
        if isinstance(found, Report):
            assert task is not None, "only what makes a task reports"
            if found.files is not None:
                unpack(root / task.folder, found.files)
            name = "" if self.options.address == "local" else post.node.name
            yield dataclasses.replace(found.outcome, folder=task.folder, node=name)
        elif found is None:
            post.ready = True
        else:
            self._dismiss(post, found)

    def _died(
        self, task: Task, node: Node, queue: deque[Task], root: Path, stopping: bool
    ) -> Iterator[Outcome]:
        """A run whose hand is gone: back into the queue, unless it is to blame."""
        if stopping:
            return
        step = newest_step(root / task.folder)
        before, at = self._deaths.get(task.folder, (0, -1))
        alive = any(other.id == node.id for other in nodes())
        count = (before if step == at else 0) + alive  # a node takes any run with it
        self._deaths[task.folder] = (count, step)
        if count < TRIES:
            queue.appendleft(task)
            return
        error = f"its worker died {TRIES} times at step {max(step, 0)}: killed, or out of memory"
        yield Outcome.of(task, status="failed", error=error)

    def _dismiss(self, post: Post, why: str) -> None:
        """A hand that can't work, and with it its node."""
        import ray

        self._posts.remove(post)
        ray.kill(post.hand)
        self._refuse(post.node, why)

    def _refuse(self, node: Node, why: str) -> None:
        if node.id not in self._refused:
            self._refused[node.id] = f"{node.name} is refused: {' '.join(why.split())[:300]}"
            self.tell(self._refused[node.id])


def newest_step(folder: Path) -> int:
    """Of a run's checkpoints; -1 without any that can be seen from here."""
    names = [path.name.partition("-")[2] for path in Run(folder=folder).checkpoints.glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


RAY = {  # of Ray's processes here; it reads these when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # all: what it says of workers would go to stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its own future default, without which it warns
}
RAY_ALONE = {  # of a cluster of one machine
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # no cluster: it listens on loopback, on Linux too
    "RAY_worker_niceness": "0",  # runs here are as fast as without Ray
}
RAY_JOINED = {  # of a cluster that is there: it has half a minute to answer, not the ten of Ray
    "RAY_gcs_server_port_wait_time_s": "2",  # tries
    "RAY_py_gcs_connect_timeout_s": "5",
}


def connect(options: FleetOptions) -> None:
    """Start Ray on this machine, or join a cluster; FleetError where none answers."""
    local = options.address == "local"
    os.environ.update(RAY | (RAY_ALONE if local else RAY_JOINED))
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if local:
        quiet |= {"num_cpus": options.workers, "include_dashboard": False, "object_store_memory": STORE}
    else:
        check_answers(options.address)
    try:
        ray.init(address=options.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        key = "" if "RAY_AUTH_MODE" in os.environ else "; one that asks for a token takes RAY_AUTH_MODE=token"
        raise FleetError(f"no Ray cluster at {options.address}: {reason}{key}") from error


def check_answers(address: str) -> None:
    """Raise FleetError unless an address is auto, or a HOST:PORT that somebody listens on."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and "/" not in host and int(port) < 65536):
        raise FleetError(f"--ray {address[:100]!r}: give local, auto, or HOST:PORT of the cluster's head")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except OSError as error:
        raise FleetError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


def nodes() -> list[Node]:
    """The machines of the cluster that are alive, in an order that stays."""
    import ray

    return [
        Node(
            id=node["NodeID"],
            name=f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"]))
        if node["Alive"]
    ]
