"""A Ray cluster of nodes (raylets) on this machine, which can be killed and added."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["TwoNodes", "descendants"]

_OBJECT_STORE = 78_643_200


class TwoNodes:
    """Use as a context manager.

    Workers inherit environment and directory from the start of the cluster.

    Args:
        jobs: concurrent tasks of each node.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._cluster: Any = None
        self._second: Any = None

    def __enter__(self) -> Self:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        node = {"num_cpus": self._jobs, "object_store_memory": _OBJECT_STORE}
        self._cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self.add()
        return self

    def add(self) -> None:
        """Add a node, which :meth:`kill_second` would kill."""
        self._second = self._cluster.add_node(num_cpus=self._jobs, object_store_memory=_OBJECT_STORE)

    def engines(self) -> list[int]:
        """Processes of engines on any node."""
        return [pid for pid in sorted(descendants(os.getpid())) if b"EngineActor" in _command_line(pid)]

    @property
    def logs(self) -> Path:
        """The folder with the logs of all nodes."""
        return Path(self._cluster.head_node.get_logs_dir_path())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()

    @property
    def address(self) -> str:
        """The address for ``ray.init``."""
        return str(self._cluster.address)

    def workers(self) -> list[int]:
        """Processes of the second node with an open run directory."""
        raylet = self._second.all_processes["raylet"][0].process.pid
        return [pid for pid in sorted(descendants(raylet)) if _executes_a_job(pid)]

    def kill_second(self) -> float:
        """Kill all processes of the node that was added last, as in a power failure; returns the Unix time."""
        raylet = self._second.all_processes["raylet"][0].process.pid
        everything = [raylet, *descendants(raylet)]
        now = time.time()
        for pid in everything:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._cluster.remove_node(self._second, allow_graceful=False)
        return now


def descendants(pid: int) -> set[int]:
    """All descendant processes of ``pid``."""
    try:
        children = {int(p) for f in Path(f"/proc/{pid}/task").glob("*/children") for p in f.read_text().split()}
    except OSError:
        return set()
    return children | {below for child in children for below in descendants(child)}


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _executes_a_job(pid: int) -> bool:
    try:
        return any("records.jsonl" in os.readlink(f) for f in Path(f"/proc/{pid}/fd").glob("*"))
    except OSError:
        return False
