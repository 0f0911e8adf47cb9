"""Engines in local processes, and the loop with which an engine serves its parent."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.child_process import start_child
from swe_infer.llama.data_parallel import DataParallelEngine, Report, Worker, WorkerDied
from swe_infer.llama.drafting import NO_SOURCE
from swe_infer.llama.engine import Engine, EngineOptions, PromptTooLong, threads_for
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.sequence import Sequence as EngineSequence
from swe_infer.llama.stopping import StopParams
from swe_infer.text import first_line
from swe_infer.types import LlamaModel

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_REPORT_INTERVAL_S = 1.0


def process_engines(model: LlamaModel, options: EngineOptions, devices: list[str]) -> DataParallelEngine:
    """Start one engine for each entry of ``devices``, which may repeat. See :class:`DataParallelEngine`.

    Raises:
        ConfigError: engines share a GPU, and no size of the cache is given.
    """
    if options.kv_cache_gb is None and "cuda" in devices[0] and len(set(devices)) < len(devices):
        raise ConfigError(f"runner.workers={len(devices)}: engines that share a GPU need runner.kv_cache_gb")
    workers = [ProcessWorker(dataclasses.replace(model, device=device), options, len(devices)) for device in devices]
    to_add = iter([workers])
    return DataParallelEngine(model, options, lambda: next(to_add, []), _poll)


def _poll(workers: Sequence[ProcessWorker]) -> Iterator[tuple[ProcessWorker, Report | WorkerDied]]:
    readable = wait([worker.pipe for worker in workers], _POLL_S)
    for worker in workers:
        if worker.pipe in readable:
            try:
                yield worker, worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join(timeout=5)
                worker.kill()  # if it hangs at its end
                yield worker, WorkerDied(f"ended with exit code {worker.process.exitcode}")


class ProcessWorker(Worker):
    """An engine in a local process, which ends with its parent."""

    def __init__(self, model: LlamaModel, options: EngineOptions, share: int) -> None:
        self._arguments = (model, options, share)
        self._sender = ThreadPoolExecutor(max_workers=1)  # an engine that hangs does not read its pipe
        self.start()

    def start(self) -> None:
        self.pipe, theirs = Pipe()
        self.process = start_child(_main, theirs, *self._arguments)
        theirs.close()
        self.name = f"the engine on {self._arguments[0].device}, process {self.process.pid}"

    def send(self, kind: str, content: Any = None) -> None:
        self._sender.submit(self.pipe.send_bytes, ForkingPickler.dumps((kind, content)))

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self._sender.shutdown()
        self.pipe.close()


def _main(pipe: Connection, model: LlamaModel, options: EngineOptions, share: int) -> None:
    """Entry point of the process."""

    def receive(block: bool) -> Any:
        try:
            return pipe.recv() if block or pipe.poll() else None
        except OSError:
            raise EOFError from None

    with suppress(OSError):  # the parent has closed the pipe
        for report in serve(receive, model, options, max(1, torch.get_num_threads() // share)):
            pipe.send(report)


def serve(
    receive: Callable[[bool], Any], model: LlamaModel, options: EngineOptions, threads: int
) -> Iterator[Report]:
    """Load an engine, and alternate between the parent's commands and steps.

    Commands are ``("add", [(request, source), …])``, where the source is None if it is that of the last request;
    ``("stop", None)``, which drops requests that have not started; ``("abandon", None)``, which drops all; and
    ``("reset", None)`` of the statistics.

    Args:
        receive: returns the next command. If it is called with False, it returns None if there is none yet.
        threads: of an engine on a CPU.
    """
    if model.device == "cpu" or not torch.cuda.is_available():
        torch.set_num_threads(threads)
    try:
        engine = Engine.load(model, options)
        yield Report(engine.figures())
        with threads_for(engine.model):
            yield from _serve(engine, receive)
    except EOFError:  # the parent has closed the pipe
        return
    except SweInferError as error:
        yield Report(error=error)
    except Exception as error:  # noqa: BLE001 - every failure is reported; other engines continue
        _log.exception("the engine ended")
        yield Report(error=WorkerDied(f"{type(error).__name__}: {first_line(error)}"))


def _serve(engine: Engine, receive: Callable[[bool], Any]) -> Iterator[Report]:
    scheduler, source = engine.scheduler, NO_SOURCE
    unstarted: list[EngineSequence] = []
    report, due = Report(), 0.0
    while True:
        while command := receive(not scheduler.busy and due > 0.0):
            kind, content = command
            if kind == "add":
                for request, own_source in content:
                    source = source if own_source is None else own_source
                    try:
                        engine.add_request(dataclasses.replace(request, source=source))
                        unstarted.append(scheduler.waiting[-1])
                    except (PromptTooLong, ValueError) as error:
                        report.rejected.append((request.key, error))
            elif kind == "stop":
                report.rejected += [(s.request.key, None) for s in scheduler.waiting if s.started is None]
                scheduler.drop_unstarted()
            elif kind == "abandon":
                unstarted.clear()
                engine.abandon()
            else:
                engine.reset_stats()
            due = 0.0
        for answer in engine.step():
            key = answer.request.key
            _log.info("answered %s with %d tokens", key, len(answer.token_ids))
            bare = GenerationRequest(key, (), StopParams(0))  # the parent has the prompt
            report.answers.append(dataclasses.replace(answer, request=bare))
        report.started = [s.request.key for s in unstarted if s.started is not None]
        unstarted = [s for s in unstarted if s.started is None]
        if report.answers or report.started or time.monotonic() >= due:
            report.figures = engine.figures()
            yield report
            report, due = Report(), time.monotonic() + _REPORT_INTERVAL_S
