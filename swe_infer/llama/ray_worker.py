"""Engines as actors of a Ray cluster. The only place that names Ray, which is imported when engines are asked for.

Each engine runs in a thread of its actor, beside the two calls by which it is reached: one brings messages, the other
waits for what it has to say. An actor ends with the process that made it; none is left behind.
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
"""How long a call waits for an engine's next word before it comes back with none."""
_WARN_AFTER_S = 30.0
_CONNECT_TIMEOUT_S = 10.0


def ray_engines(cluster: RayCluster, model: LlamaModel, options: EngineOptions) -> DataParallelEngine[RayWorker]:
    """As many engines as ``options.workers``, or as the cluster has GPUs for, or one on each node where it has none.

    The first request is handed out when the first engine has loaded. Engines for which the cluster has no room yet
    join when it has.

    Raises:
        ConfigError: there is no such cluster, or it has nothing for an engine.
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

    if ray.is_initialized():  # as inside a point that Ray's launcher runs
        return
    named = address or os.environ.get("RAY_ADDRESS")
    with _signal_handlers_kept():
        try:
            _check_reachable(named)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(f"runner.ray.address={named}: no Ray cluster ({_summary_line(error)})") from error


def _check_reachable(address: str | None) -> None:
    """Raises OSError where nothing listens at ``HOST:PORT``: Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of the run's, which ends a run in order."""
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
    """Actors start in a directory of Ray's."""
    adapter = None if model.peft_path is None else _absolute(model.peft_path)
    return dataclasses.replace(model, name=model.label, path=_absolute(model.path), peft_path=adapter)


def _absolute(path: str) -> str:
    """A directory by its whole path; what lies in the package or on the hub as it is named."""
    directory = expanded(path, "model.path")
    return str(directory.resolve()) if directory.is_dir() else path


def _plan(cluster: RayCluster, model: LlamaModel, options: EngineOptions) -> tuple[float, int, list[str]]:
    """GPUs for each engine, how many engines, and the node for each where there is one for each node."""
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
    """An actor's content."""

    def __init__(self, model: LlamaModel, options: EngineOptions, threads: int) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        arguments = (theirs, model, options, threads)
        threading.Thread(target=serve_in_a_thread, args=arguments, name="engine", daemon=True).start()

    def location(self) -> str:
        """The machine and GPUs, for people."""
        import ray

        gpus = ", ".join(f"GPU {number}" for number in ray.get_gpu_ids())
        return f"{ray.util.get_node_ip_address()}{', ' if gpus else ''}{gpus}, process {os.getpid()}"

    def send(self, kind: str, epoch: int, content: Any) -> None:
        """A message for the engine."""
        self._pipe.send((kind, epoch, content))

    def poll(self) -> list[Message]:
        """What the engine has to say; waits for it, and comes back empty after a while.

        Raises:
            EOFError, OSError: it has ended.
        """
        messages: list[Message] = []
        timeout = _LONG_POLL_S
        try:
            while self._pipe.poll(timeout):
                messages.append(self._pipe.recv())
                timeout = 0.0
        except (EOFError, OSError):
            if not messages:  # its last words come first
                raise
        return messages

    def has_message(self) -> bool:
        """Whether :meth:`poll` comes back at once."""
        return self._pipe.poll()

    def close(self) -> None:
        """End the engine."""
        self._pipe.close()


def serve_in_a_thread(pipe: Connection, model: LlamaModel, options: EngineOptions, threads: int) -> None:
    """:func:`swe_infer.llama.process_worker.serve`, of whose end, whatever it was, the parent hears."""
    try:
        serve(pipe, model, options, threads)
    except Exception as error:  # noqa: BLE001 - whatever ends an engine is told of; the others go on
        _log.exception("the engine ended")
        died = WorkerDied(f"an engine of Ray ended: {type(error).__name__}: {_summary_line(error)}")
        with suppress(OSError):  # whoever asked may have gone
            pipe.send(("failed", 0, died, {}))
    finally:
        pipe.close()


class RayWorker:
    """The parent's side of one actor.

    Args:
        node: the only node on which it may run; None: any.
        number: to tell it by until it runs somewhere.
    """

    def __init__(
        self, model: LlamaModel, options: EngineOptions, gpus: float, cpus: float, node: str | None, number: int
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = "SPREAD" if node is None else NodeAffinitySchedulingStrategy(node, soft=False)
        made = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
            # Calls of a group run one after the other, in order; the groups beside each other.
            concurrency_groups={"send": 1, "poll": 1},
        )(EngineHost)
        self.name = f"engine {number} of Ray"
        self._actor = made.remote(model, options, max(1, int(cpus)))
        self._location = self._actor.location.remote()
        self.pending_poll = self._start_poll()

    @property
    def alive(self) -> bool:
        return True  # Ray tells it of an actor that is asked for something

    def send(self, kind: str, epoch: int, content: Any = None) -> None:
        """A message. That the actor is gone is told by :meth:`receive`."""
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
    """Waits for what engines have to say; says so where the cluster has no room for any of them."""

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
            _log.warning("no engine has begun to load: the cluster has %(CPU)g CPUs and %(GPU)g GPUs free", free)
        return [worker for worker in workers if worker.pending_poll in ready]


def _summary_line(error: BaseException) -> str:
    """The line of an error that says most: Ray puts traces of other processes around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error: " in line]
    return (telling or lines or [type(error).__name__])[-1 if telling else 0][:300]
