"""Engines as actors of a Ray cluster. The only module that uses Ray, which it imports on first use.

Each engine runs in a thread of its actor. The actor has two methods for the parent: ``send`` delivers a message,
``poll`` waits for the engine's messages. An actor ends with the process that created it.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.llama.cluster import RayCluster
from swe_infer.llama.data_parallel import DataParallelEngine, Message, WorkerDied
from swe_infer.llama.engine import EngineOptions
from swe_infer.llama.process_worker import serve
from swe_infer.resources import expanded
from swe_infer.types import LlamaModel

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_LONG_POLL_S = 10.0
"""Seconds for which ``poll`` waits for a message."""
_WARN_AFTER_S = 30.0
_CONNECT_TIMEOUT_S = 10.0


def ray_engines(cluster: RayCluster, model: LlamaModel, options: EngineOptions) -> DataParallelEngine[RayWorker]:
    """Start ``options.workers`` engines; by default as many as the cluster's GPUs allow, or one on each node without
    GPUs.

    The first request is assigned when the first engine has loaded. Engines that wait for resources of the cluster
    join later.

    Raises:
        ConfigError: no cluster answers, or it has no resources for an engine.
    """
    _connect(cluster.address)
    model = _with_absolute_paths(model)
    gpus, count, nodes = _plan(cluster, model, options)
    workers = [
        RayWorker(model, options, gpus, cluster.cpus, nodes[place] if nodes else None, place)
        for place in range(count)
    ]
    return DataParallelEngine(model, options, workers, _Poller(), wait_for_all=False)


def _connect(address: str | None) -> None:
    import ray

    if ray.is_initialized():  # for example inside a job of Ray's Hydra launcher
        return
    named = address or os.environ.get("RAY_ADDRESS")
    with _signal_handlers_kept():
        try:
            _check_reachable(named)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(f"runner.ray.address={named}: no Ray cluster ({_summary_line(error)})") from error


def _check_reachable(address: str | None) -> None:
    """Raises OSError if nothing listens at ``HOST:PORT``. Ray itself would retry for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore this process's signal handlers, which ``ray.init`` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_absolute_paths(model: LlamaModel) -> LlamaModel:
    """Make paths absolute: actors start in another working directory."""
    adapter = None if model.peft_path is None else _absolute(model.peft_path)
    return dataclasses.replace(model, name=model.label, path=_absolute(model.path), peft_path=adapter)


def _absolute(path: str) -> str:
    """The absolute path of a directory; package and hub names are unchanged."""
    directory = expanded(path, "model.path")
    return str(directory.resolve()) if directory.is_dir() else path


def _plan(cluster: RayCluster, model: LlamaModel, options: EngineOptions) -> tuple[float, int, list[str]]:
    """Return GPUs per engine, number of engines, and their nodes if there is one engine per node."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    installed = sum(node["Resources"].get("GPU", 0.0) for node in alive)
    gpus = cluster.gpus
    if gpus is None:
        gpus = float(model.tensor_parallel) if installed and model.device != "cpu" else 0.0
    if 0 < gpus < 1 and options.kv_cache_gb is None:
        raise ConfigError(f"runner.ray.gpus={gpus}: engines that share a GPU need runner.kv_cache_gb")
    if options.workers is not None:
        return gpus, options.workers, []
    if not gpus:
        return gpus, len(alive), [str(node["NodeID"]) for node in alive]
    count = sum(int(node["Resources"].get("GPU", 0.0) / gpus) for node in alive)
    if not count:
        raise ConfigError(
            f"runner.ray.gpus={gpus:g}: the largest node has "
            f"{max(node['Resources'].get('GPU', 0.0) for node in alive):g} GPUs; "
            "set runner.workers where the cluster grows"
        )
    return gpus, count, []


class EngineHost:
    """The class of the actor: runs one engine in a thread."""

    def __init__(self, model: LlamaModel, options: EngineOptions, threads: int) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        arguments = (theirs, model, options, threads)
        threading.Thread(target=serve_in_a_thread, args=arguments, name="engine", daemon=True).start()

    def location(self) -> str:
        """Readable location: address, GPUs and process."""
        import ray

        gpus = ", ".join(f"GPU {number}" for number in ray.get_gpu_ids())
        return f"{ray.util.get_node_ip_address()}{', ' if gpus else ''}{gpus}, process {os.getpid()}"

    def send(self, kind: str, epoch: int, content: Any) -> None:
        """Send a message to the engine."""
        self._pipe.send((kind, epoch, content))

    def poll(self) -> list[Message]:
        """Return the engine's messages. Waits for the first one; empty after a timeout.

        Raises:
            EOFError, OSError: the engine has ended.
        """
        messages: list[Message] = []
        timeout = _LONG_POLL_S
        try:
            while self._pipe.poll(timeout):
                messages.append(self._pipe.recv())
                timeout = 0.0
        except (EOFError, OSError):
            if not messages:  # deliver the last messages first
                raise
        return messages

    def has_message(self) -> bool:
        """Whether :meth:`poll` would return at once."""
        return self._pipe.poll()

    def close(self) -> None:
        """Stop the engine."""
        self._pipe.close()


def serve_in_a_thread(pipe: Connection, model: LlamaModel, options: EngineOptions, threads: int) -> None:
    """Run :func:`swe_infer.llama.process_worker.serve` and report any error to the parent."""
    try:
        serve(pipe, model, options, threads)
    except Exception as error:  # noqa: BLE001 - every failure is reported; other engines continue
        _log.exception("the engine ended")
        died = WorkerDied(f"an engine of Ray ended: {type(error).__name__}: {_summary_line(error)}")
        with suppress(OSError):  # the parent may have closed the pipe
            pipe.send(("failed", 0, died, {}))
    finally:
        pipe.close()


class RayWorker:
    """The parent's handle of an engine in a Ray actor.

    Args:
        node: the node it must run on; None: any.
        number: identifies the engine until its location is known.
    """

    def __init__(
        self, model: LlamaModel, options: EngineOptions, gpus: float, cpus: float, node: str | None, number: int
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = "SPREAD" if node is None else NodeAffinitySchedulingStrategy(node, soft=False)
        actor_class = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
            # Calls within a group run in order; the groups run concurrently.
            concurrency_groups={"send": 1, "poll": 1},
        )(EngineHost)
        self.name = f"engine {number} of Ray"
        self._actor = actor_class.remote(model, options, max(1, int(cpus)))
        self._location = self._actor.location.remote()
        self.pending_poll = self._start_poll()

    @property
    def alive(self) -> bool:
        return True  # receive() detects a dead actor

    def send(self, kind: str, epoch: int, content: Any = None) -> None:
        """Send a message. :meth:`receive` reports a dead actor."""
        self._actor.send.options(concurrency_group="send").remote(kind, epoch, content)

    def receive(self) -> list[Message]:
        import ray

        try:
            messages: list[Message] = ray.get(self.pending_poll)
            if self._location is not None and messages:
                self.name, self._location = f"the engine on {ray.get(self._location)}", None
        except ray.exceptions.RayError as error:
            raise WorkerDied(f"{self.name} was lost ({type(error).__name__}: {_summary_line(error)})") from None
        self.pending_poll = self._start_poll()
        return messages

    def close(self) -> None:
        import ray

        ray.kill(self._actor)

    def _start_poll(self) -> Any:
        return self._actor.poll.options(concurrency_group="poll").remote()


class _Poller:
    """Waits for messages of engines. Warns while no engine can start for lack of resources."""

    def __init__(self) -> None:
        self._waiting_since = time.monotonic()
        self._received = False

    def __call__(self, workers: Sequence[RayWorker]) -> Sequence[RayWorker]:
        import ray

        refs = [worker.pending_poll for worker in workers]
        ready, rest = ray.wait(refs, num_returns=1, timeout=_POLL_S)
        if ready and rest:
            ready = ready + ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        self._received = self._received or bool(ready)
        if not self._received and time.monotonic() - self._waiting_since > _WARN_AFTER_S:
            self._waiting_since = time.monotonic()
            free = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
            _log.warning("no engine has started: the cluster has %(CPU)g CPUs and %(GPU)g GPUs free", free)
        return [worker for worker in workers if worker.pending_poll in ready]


def _summary_line(error: BaseException) -> str:
    """The most informative line of an error, which Ray wraps in tracebacks of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if "Error: " in line]
    return (informative or lines or [type(error).__name__])[-1 if informative else 0][:300]
