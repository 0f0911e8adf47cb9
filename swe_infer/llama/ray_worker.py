"""Engines as actors of a Ray cluster, which places them, restarts them and shows them in its dashboard.

An actor has two methods, which run concurrently: ``run`` is a generator of the engine's reports, ``send`` delivers a
command. Its queue of requests is bounded by :class:`swe_infer.llama.request_router.RequestRouter`. An actor ends with
the process that created it.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.llama.cluster import RayCluster
from swe_infer.llama.data_parallel import DataParallelEngine, Report, Worker, WorkerDied
from swe_infer.llama.engine import EngineOptions
from swe_infer.llama.process_worker import serve
from swe_infer.ray_connection import ray_error_line
from swe_infer.types import LlamaModel

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_NODES_INTERVAL_S = 5.0
_WARN_AFTER_S = 30.0


def ray_engines(
    cluster: RayCluster, model: LlamaModel, options: EngineOptions, actor: type[EngineActor] | None = None
) -> DataParallelEngine:
    """Start ``options.workers`` engines; by default as many as the cluster's GPUs allow, or one for each node without
    GPUs. More are started when nodes are added.

    The first request is assigned when the first engine has loaded. Engines that wait for resources of the cluster
    join later. ``actor`` replaces :class:`EngineActor`.

    Raises:
        ConfigError: no cluster answers, or it has no resources for an engine.
    """
    cluster.connect()
    actors = _Actors(cluster, model, options, actor or EngineActor)
    return DataParallelEngine(model, options, actors.new_workers, actors.poll)


class EngineActor:
    """The class of the actor. Paths are relative to ``directory``, the parent's working directory."""

    def __init__(self, directory: str, model: LlamaModel, options: EngineOptions, threads: int) -> None:
        with suppress(OSError):  # not on this node, so paths must be absolute or names
            os.chdir(directory)
        logging.basicConfig(level=logging.INFO)
        self._arguments = (model, options, threads)
        self._start = 0
        self._commands: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def run(self, start: int) -> Iterator[str | Report]:
        """Load and run the engine. Yields its location, then its reports."""
        import ray

        if self._start:  # the parent lost its connection to the first run
            os._exit(1)
        self._start = start
        gpus = "".join(f", GPU {number}" for number in ray.get_gpu_ids())
        yield f"the engine on {ray.util.get_node_ip_address()}{gpus}, process {os.getpid()}"
        yield from serve(self._receive, *self._arguments)
        threading.Event().wait()  # the parent ends the process, which may hold a GPU's memory

    def _receive(self, block: bool) -> Any:
        return pickle.loads(self._commands.get()) if block or not self._commands.empty() else None

    def send(self, start: int, command: bytes) -> None:
        """Send a pickled command to the engine, unless it was meant for the engine before a restart.

        ``run`` unpickles it and reports the errors: nothing waits for the result of this method.
        """
        if start == self._start:
            self._commands.put(command)


class RayWorker(Worker):
    """An engine in an actor, which Ray restarts."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor
        self._starts = 0
        self.start()

    def start(self) -> None:
        self._starts += 1
        self.placed = False
        self.reports = self._actor.run.options(concurrency_group="run", num_returns="streaming").remote(self._starts)

    def send(self, kind: str, content: Any = None) -> None:
        from ray import cloudpickle

        command = cloudpickle.dumps((kind, content))
        self._actor.send.options(concurrency_group="send").remote(self._starts, command)

    def kill(self) -> None:
        import ray

        ray.kill(self._actor, no_restart=False)

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


class _Actors:
    """Creates actors as the cluster grows, and reads their reports."""

    def __init__(
        self, cluster: RayCluster, model: LlamaModel, options: EngineOptions, actor: type[EngineActor]
    ) -> None:
        import ray

        gpus = cluster.gpus_per_engine(model)
        if 0 < gpus < 1 and options.kv_cache_gb is None:
            raise ConfigError(f"runner.ray.gpus={gpus}: engines that share a GPU need runner.kv_cache_gb")
        self._count: Callable[[], int] = lambda: options.workers or cluster.engines_that_fit(gpus)
        if not self._count():
            raise ConfigError(
                f"runner.ray: no node has {cluster.cpus:g} CPUs and {gpus:g} GPUs for an engine; set runner.workers "
                "where the cluster grows"
            )
        self._run_name = f"{model.label} {uuid.uuid4().hex[:6]}"
        self._arguments = (os.getcwd(), model, options, max(1, int(cluster.cpus)))
        self._class = ray.remote(
            num_cpus=cluster.cpus,
            num_gpus=gpus,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
            concurrency_groups={"run": 2, "send": 1},
        )(actor)
        self._created = 0
        self._next_check = 0.0
        self._warn_at = time.monotonic() + _WARN_AFTER_S

    def new_workers(self) -> Iterator[RayWorker]:
        """Create workers for nodes that were added. Those of lost nodes wait for new ones."""
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + _NODES_INTERVAL_S
            while self._created < self._count():
                name = f"{self._run_name} engine {self._created}"
                self._created += 1
                yield RayWorker(name, self._class.options(name=name).remote(*self._arguments))

    def poll(self, workers: Sequence[RayWorker]) -> Iterator[tuple[RayWorker, Report | WorkerDied]]:
        import ray

        ready, rest = ray.wait([worker.reports for worker in workers], num_returns=1, timeout=_POLL_S)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for worker in workers:
            if worker.reports in ready:
                try:
                    report = ray.get(next(worker.reports))
                except (ray.exceptions.RayError, StopIteration) as error:
                    if worker.placed or not isinstance(error, ray.exceptions.ActorUnavailableError):
                        yield worker, WorkerDied(ray_error_line(error))
                    else:  # Ray has not restarted it yet
                        worker.start()
                else:
                    if worker.placed:
                        yield worker, report
                    else:
                        worker.name, worker.placed = report, True
        if any(worker.placed for worker in workers):
            self._warn_at = time.monotonic() + _WARN_AFTER_S
        elif time.monotonic() > self._warn_at:
            self._warn_at = time.monotonic() + _WARN_AFTER_S
            free = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
            _log.warning("no engine runs: the cluster has %(CPU)g CPUs and %(GPU)g GPUs free", free)
