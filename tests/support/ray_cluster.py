"""A Ray cluster of two nodes on this machine, each a raylet with workers of its own, and the sudden end of one."""

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
    """Use as a context manager. Every node takes ``points`` tasks at a time.

    Workers see the environment as it is when the cluster starts, and start in the directory of that moment.
    """

    def __init__(self, points: int) -> None:
        self._points = points
        self._cluster: Any = None
        self._second: Any = None

    def __enter__(self) -> Self:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        node = {"num_cpus": self._points, "object_store_memory": _OBJECT_STORE}
        self._cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self._second = self._cluster.add_node(**node)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()

    @property
    def address(self) -> str:
        """What ``ray.init`` takes."""
        return str(self._cluster.address)

    def workers(self) -> list[int]:
        """The processes of the second node that have a run directory open."""
        raylet = self._second.all_processes["raylet"][0].process.pid
        return [pid for pid in sorted(descendants(raylet)) if _runs_a_point(pid)]

    def lose_the_second(self) -> float:
        """End everything on the second node at once, as when a machine loses power; returns when (Unix time)."""
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
    """The processes below ``pid``."""
    try:
        children = {int(p) for f in Path(f"/proc/{pid}/task").glob("*/children") for p in f.read_text().split()}
    except OSError:
        return set()
    return children | {below for child in children for below in descendants(child)}


def _runs_a_point(pid: int) -> bool:
    try:
        return any("records.jsonl" in os.readlink(f) for f in Path(f"/proc/{pid}/fd").glob("*"))
    except OSError:
        return False
