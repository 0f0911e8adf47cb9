"""Engines as actors of a Ray cluster, which places them, restarts them and shows them in its dashboard.

An actor ends with the process that created it.
"""

from __future__ import annotations

import itertools
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from threading import Thread
from typing import Any

import ray

from swe_infer.errors import ConfigError
from swe_infer.llama.cluster import RayCluster
from swe_infer.llama.data_parallel import DataParallelEngine, Worker
from swe_infer.llama.engine import EngineOptions
from swe_infer.llama.process_worker import exchange, serve
from swe_infer.ray_connection import ray_error_line
from swe_infer.types import LlamaModel

_log = logging.getLogger(__name__)


def ray_engines(
    cluster: RayCluster, model: LlamaModel, options: EngineOptions, server: Callable[..., None] = serve
) -> DataParallelEngine:
    """Start ``options.workers`` engines; by default as many as the cluster's GPUs allow, or one for each node without
    GPUs. More are started when nodes are added.

    The first request is assigned when the first engine has loaded. Engines that wait for resources of the cluster
    join later. ``server`` replaces :func:`serve`.

    Raises:
        ConfigError: no cluster answers, or it has no resources for an engine.
    """
    cluster.connect()
    gpus = cluster.gpus_per_engine(model)
    if 0 < gpus < 1 and options.kv_cache_gb is None:
        raise ConfigError(f"runner.ray.gpus={gpus}: engines that share a GPU need runner.kv_cache_gb")
    if not (options.workers or cluster.engines_that_fit(gpus)):
        raise ConfigError(
            f"runner.ray: no node has {cluster.cpus:g} CPUs and {gpus:g} GPUs for an engine; set runner.workers "
            "where the cluster grows"
        )
    resources = {"num_cpus": cluster.cpus, "num_gpus": gpus}
    actor = ray.remote(**resources, max_restarts=-1, scheduling_strategy="SPREAD")(EngineActor)
    arguments = os.getcwd(), server, model, options, max(1, int(cluster.cpus))
    prefix = f"{model.label} {uuid.uuid4().hex[:6]} engine"

    def new_workers() -> Iterator[list[RayWorker]]:
        """Workers for nodes that were added. Those of lost nodes wait for new ones."""
        created: list[RayWorker] = []
        for check in itertools.count(1):
            numbers = range(len(created), options.workers or cluster.engines_that_fit(gpus))
            new = [RayWorker(actor.options(name=f"{prefix} {number}").remote(*arguments)) for number in numbers]
            created += new
            yield new
            if check % 6 == 0 and not any(worker.ready for worker in created):
                free = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
                _log.warning("no engine is ready: the cluster has %(CPU)g CPUs and %(GPU)g GPUs free", free)

    return DataParallelEngine(model, options, new_workers())


class EngineActor:
    """The class of the actor. Paths are relative to ``directory``, the parent's working directory."""

    def __init__(self, directory: str, server: Callable[..., None], *arguments: Any) -> None:
        with suppress(OSError):  # not on this node, so paths must be absolute or names
            os.chdir(directory)
        logging.basicConfig(level=logging.INFO)
        self._pipe, theirs = Pipe()
        self._thread = Thread(target=server, args=(theirs, *arguments), daemon=True)

    def start(self) -> str:
        """Start the engine. Returns where it runs."""
        if self._thread.ident is not None:  # the parent gave it up
            os._exit(1)
        self._thread.start()
        gpus = "".join(f", GPU {number}" for number in ray.get_gpu_ids())
        return f"the engine on {ray.util.get_node_ip_address()}{gpus}, process {os.getpid()}"

    def call(self, commands: bytes) -> bytes:
        """Pass a call on."""
        if self._thread.ident is None:
            raise RuntimeError("Ray has started it again")
        return exchange(self._pipe, commands)


class RayWorker(Worker):
    """An engine in an actor, which Ray restarts."""

    dumps = staticmethod(ray.cloudpickle.dumps)  # drafters that are defined in the main program, too
    describe = staticmethod(ray_error_line)

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self._actor = actor

    # Futures, since a thread that waits within Ray can crash the process at its end.

    def start(self) -> str:
        # Ray repeats this call until the actor has a process.
        return str(self._actor.start.options(max_task_retries=-1).remote().future().result())

    def call(self, commands: bytes) -> bytes:
        return bytes(self._actor.call.remote(commands).future().result())

    def kill(self, restarts: bool) -> None:
        ray.kill(self._actor, no_restart=not restarts)
