"""Engines in local processes, and the loop with which an engine serves its parent."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from collections.abc import Hashable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.process import BaseProcess
from threading import Lock

import torch

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.child_process import start_child
from swe_infer.llama.data_parallel import DataParallelEngine, Report, Worker, WorkerDied
from swe_infer.llama.drafting import NO_SOURCE
from swe_infer.llama.engine import Engine, EngineOptions, threads_for
from swe_infer.llama.sequence import GenerationRequest, RequestOutput
from swe_infer.llama.stopping import StopParams
from swe_infer.text import first_line
from swe_infer.types import Failure, LlamaModel, Skip

_log = logging.getLogger(__name__)

_REPORT_INTERVAL_S = 0.5


def process_engines(model: LlamaModel, options: EngineOptions, devices: list[str]) -> DataParallelEngine:
    """Start one engine for each entry of ``devices``, which may repeat. See :class:`DataParallelEngine`.

    Raises:
        ConfigError: engines share a GPU, and no size of the cache is given.
    """
    if options.kv_cache_gb is None and "cuda" in devices[0] and len(set(devices)) < len(devices):
        raise ConfigError(f"runner.workers={len(devices)}: engines that share a GPU need runner.kv_cache_gb")
    threads = max(1, torch.get_num_threads() // len(devices))
    workers = [ProcessWorker(dataclasses.replace(model, device=device), options, threads) for device in devices]
    return DataParallelEngine(model, options, iter([workers]))


class ProcessWorker(Worker):
    """An engine in a local process, which ends with its parent."""

    process: BaseProcess | None = None
    _given_up = False

    def __init__(self, model: LlamaModel, options: EngineOptions, threads: int) -> None:
        super().__init__()
        self._arguments = (model, options, threads)
        self._ending = Lock()  # two threads that wait for a process might both miss its exit code

    def start(self) -> str:
        self.kill()
        self._pipe, theirs = Pipe()
        self.process = start_child(serve, theirs, *self._arguments)
        theirs.close()
        if self._given_up:  # by another thread, which may not have seen the new process
            self.kill()
        return f"the engine on {self._arguments[0].device}, process {self.process.pid}"

    def call(self, commands: bytes) -> bytes:
        try:
            return exchange(self._pipe, commands)
        except (EOFError, OSError):
            assert self.process is not None
            self.process.join(timeout=5)
            self.kill()  # if it hangs at its end
            raise WorkerDied(f"ended with exit code {self.process.exitcode}") from None

    def kill(self, restarts: bool = True) -> None:
        self._given_up |= not restarts
        if self.process is not None:
            with self._ending:
                self.process.kill()
                self.process.join()


def exchange(pipe: Connection, commands: bytes) -> bytes:
    """Send a call to :func:`serve`, and return the answer."""
    with suppress(OSError):  # an error that ended it can still be read
        pipe.send_bytes(commands)
    return pipe.recv_bytes()


def serve(pipe: Connection, model: LlamaModel, options: EngineOptions, threads: int) -> None:
    """Load an engine, with ``threads`` threads on a CPU, and alternate between calls and steps.

    A call is a list of commands: ``("add", (request, source))``, where the source is None if it is that of the last
    request, or ``(name, None)`` for a method of the engine. The answer to it is a report, or the error that ends the
    engine. It comes when there is something to report.
    """
    try:
        if model.device == "cpu" or not torch.cuda.is_available():
            torch.set_num_threads(threads)
        engine = Engine.load(model, options)
        with threads_for(engine.model.config, engine.model.device, engine.model.shard.count):
            serve_engine(pipe, engine)
    except Exception as error:  # noqa: BLE001 - every failure is reported
        if not isinstance(error, SweInferError):
            _log.exception("the engine ended")
            error = WorkerDied(f"{type(error).__name__}: {first_line(error)}")
        _answer(pipe, error)


def _answer(pipe: Connection, answer: Report | Exception) -> None:
    """Answer a call. If the parent has ended, the next call says so."""
    with suppress(OSError):
        pipe.send_bytes(pickle.dumps(answer))


def serve_engine(pipe: Connection, engine: Engine) -> None:
    """See :func:`serve`. Returns when the parent has closed the pipe."""
    source, called, due, reported = NO_SOURCE, False, 0.0, 0
    results: list[tuple[Hashable, RequestOutput | Failure | Skip]] = []
    while True:
        if not called and (pipe.poll() or not engine.busy):
            try:
                pickled = pipe.recv_bytes()
            except (EOFError, OSError):
                return
            try:
                commands = pickle.loads(pickled)
            except Exception as error:  # noqa: BLE001 - a drafter's module may raise anything
                why = f"decoding.drafter: an engine cannot load it: {type(error).__name__}: {first_line(error)}"
                _answer(pipe, ConfigError(why))
                continue
            called, due = True, 0.0 if commands else time.monotonic() + _REPORT_INTERVAL_S
            for method, argument in commands:
                if method == "add":
                    request, own_source = argument
                    source = source if own_source is None else own_source
                    engine.add_request(dataclasses.replace(request, source=source))
                else:
                    results = [] if method == "abandon" else results
                    getattr(engine, method)()
        for answer in engine.step():
            key = answer.request.key
            _log.info("answered %s with %d tokens", key, len(answer.token_ids))
            bare = GenerationRequest(key, (), StopParams(0))  # the parent has the prompt
            results.append((key, dataclasses.replace(answer, request=bare)))
        results += [(request.key, why) for request, why in engine.take_rejected()]
        unstarted = len(engine.unstarted)
        if called and (results or unstarted != reported or not engine.busy or time.monotonic() >= due):
            _answer(pipe, Report(results, unstarted, engine.busy, engine.figures()))
            results, reported, called = [], unstarted, False
