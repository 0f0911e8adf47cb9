"""Engines in local processes, and the loop with which an engine serves its parent."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.data_parallel import DataParallelEngine, Message, WorkerDied
from swe_infer.llama.drafting import NO_SOURCE
from swe_infer.llama.engine import Engine, EngineOptions, PromptTooLong, threads_for
from swe_infer.llama.sequence import Sequence as EngineSequence
from swe_infer.types import LlamaModel

_POLL_S = 0.2


def process_engines(
    model: LlamaModel, options: EngineOptions, devices: list[str]
) -> DataParallelEngine[ProcessWorker]:
    """Start one engine for each entry of ``devices``, which may repeat. See :class:`DataParallelEngine`.

    Raises:
        ConfigError: engines share a GPU, and no size of the cache is given.
    """
    if options.kv_cache_gb is None and "cuda" in devices[0] and len(set(devices)) < len(devices):
        raise ConfigError(f"runner.workers={len(devices)}: engines that share a GPU need runner.kv_cache_gb")
    workers = [ProcessWorker(dataclasses.replace(model, device=device), options, len(devices)) for device in devices]
    return DataParallelEngine(model, options, workers, _readable)


def _readable(workers: Sequence[ProcessWorker]) -> Sequence[ProcessWorker]:
    """Return the workers that have a message or have ended, after a short timeout at most."""
    ready = wait([worker.pipe for worker in workers] + [worker.process.sentinel for worker in workers], _POLL_S)
    return [worker for worker in workers if worker.pipe in ready or worker.process.sentinel in ready]


class ProcessWorker:
    """The parent's handle of an engine in a local process."""

    def __init__(self, model: LlamaModel, options: EngineOptions, share: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_main, args=(theirs, model, options, share), daemon=True)
        self.process.start()
        theirs.close()
        self.name = f"the engine on {model.device}"

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, kind: str, epoch: int, content: Any = None) -> None:
        try:
            self.pipe.send((kind, epoch, content))
        except OSError:
            raise self._died() from None

    def receive(self) -> list[Message]:
        try:
            return [self.pipe.recv()]
        except (EOFError, OSError):
            raise self._died() from None

    def close(self) -> None:
        self.pipe.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()

    def _died(self) -> WorkerDied:
        self.process.join(timeout=5)
        return WorkerDied(f"{self.name} ended with exit code {self.process.exitcode}")


def _main(pipe: Connection, model: LlamaModel, options: EngineOptions, share: int) -> None:
    """Entry point of a worker process. Only the parent reacts to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(pipe, model, options, max(1, torch.get_num_threads() // share))


def serve(pipe: Connection, model: LlamaModel, options: EngineOptions, threads: int) -> None:
    """Load an engine and serve requests until the parent closes the pipe. ``threads``: of an engine on a CPU."""
    if model.device == "cpu" or not torch.cuda.is_available():
        torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has closed the pipe
        try:
            engine = Engine.load(model, options)
            pipe.send(("ready", 0, None, engine.figures()))
            with threads_for(engine.model):
                _ServeLoop(pipe, engine).run()
        except SweInferError as error:
            pipe.send(("failed", 0, error, {}))


class _ServeLoop:
    """Alternates between handling the parent's messages and engine steps."""

    def __init__(self, pipe: Connection, engine: Engine) -> None:
        self.pipe = pipe
        self.engine = engine
        self.epoch = 0
        self._not_started: list[EngineSequence] = []
        self._source = NO_SOURCE

    def run(self) -> None:
        while True:
            while not self.engine.scheduler.busy or self.pipe.poll():
                self._handle(*self.pipe.recv())
            answers = self.engine.step()
            self._report_started()
            if answers:
                bare = [dataclasses.replace(a, request=a.request.without_source()) for a in answers]
                self._send("answers", bare)

    def _handle(self, kind: str, epoch: int, content: Any) -> None:
        self.epoch = epoch
        if kind == "source":
            self._source = content
        elif kind == "add":
            try:
                self.engine.add_request(dataclasses.replace(content, source=self._source))
            except (PromptTooLong, ValueError) as error:
                self._send("rejected", (content, type(error).__name__, str(error)))
            else:
                self._not_started.append(self.engine.scheduler.waiting[-1])
        elif kind == "stop":
            self._not_started.clear()
            unstarted = [s.request.without_source() for s in self.engine.scheduler.waiting if s.started is None]
            self.engine.scheduler.drop_unstarted()
            self._send("dropped", unstarted)
        elif kind == "abandon":
            self._not_started.clear()
            self.engine.abandon()
        elif kind == "reset":
            self.engine.reset_stats()
            self._send("reset", None)

    def _report_started(self) -> None:
        """Report started requests, so that the parent can send others."""
        started = [sequence.request.key for sequence in self._not_started if sequence.started is not None]
        if started:
            self._not_started = [sequence for sequence in self._not_started if sequence.started is None]
            self._send("started", started)

    def _send(self, kind: str, content: Any) -> None:
        self.pipe.send((kind, self.epoch, content, self.engine.figures()))
