"""Data parallelism: several engines behind the interface of one.

The parent tokenizes prompts and routes requests to engines, which run in local processes
(:mod:`swe_infer.llama.process_worker`) or in actors of a Ray cluster (:mod:`swe_infer.llama.ray_worker`). An engine
that ends or hangs is started again, and its requests go to those that are ready. Each assignment of a request has its
own number, so that late answers are dropped.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pickle import PicklingError
from typing import Any, TypeAlias

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.config import read_config, read_generation_defaults
from swe_infer.llama.engine import EngineOptions, end_tokens
from swe_infer.llama.hub import snapshot_directory
from swe_infer.llama.request_router import RequestRouter
from swe_infer.llama.sequence import GenerationRequest, RequestOutput
from swe_infer.llama.stats import merged_figures
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.types import LlamaModel

_log = logging.getLogger(__name__)

MAX_REQUEST_LOSSES = 4
"""Lost engines after which a request fails."""
_ALONE_AFTER = 2
"""Lost engines after which a request has an engine to itself, so that it fails alone if it ends engines."""
MAX_RESTARTS = 8
"""Maximum of restarts of an engine without an answer in between."""
_LOAD_TIMEOUT = 10
"""Time to load an engine, in stall timeouts."""

OnRejected: TypeAlias = Callable[[GenerationRequest, Exception], None]


class WorkerDied(SweInferError):
    """An engine ended unexpectedly. Running the same command again answers the remaining requests."""


@dataclass(slots=True)
class Report:
    """What an engine reports: that it has loaded, the results of steps, or the error that ends it.

    Args:
        started: keys of requests.
        answers: with requests that have a key alone.
        rejected: keys of requests that cannot run, or that were dropped after a stop (None).
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    started: list[Hashable] = field(default_factory=list)
    answers: list[RequestOutput] = field(default_factory=list)
    rejected: list[tuple[Hashable, Exception | None]] = field(default_factory=list)
    error: SweInferError | None = None


class Worker:
    """The parent's handle of one engine, which subclasses run. ``name`` is a readable location."""

    name = "an engine"
    figures: Mapping[str, float] | None = None
    losses = 0  # since the last answer
    answered = False
    placed = True  # whether it has a process
    silent_s = 0.0  # without a report while it loads or has requests
    error: Exception | None = None  # why it was killed

    def start(self) -> None:
        """Start the engine, at first and after it was reported as lost."""
        raise NotImplementedError

    def send(self, kind: str, content: Any = None) -> None:
        """Send a command of :func:`swe_infer.llama.process_worker.serve`, without waiting for the engine."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the engine, even if it hangs. It is then reported as lost."""
        raise NotImplementedError

    def close(self) -> None:
        """End the engine for good."""
        raise NotImplementedError


class DataParallelEngine:
    """Several engines as one. It is ready when the first one is; the others join.

    Args:
        new_workers: called before each poll; returns started workers to add.
        poll: returns reports of workers, or why they are lost, after a short timeout at most.

    Raises:
        CheckpointError, ConfigError: from ``Engine.load`` in the first worker that reported.
        WorkerDied: no worker started.
    """

    def __init__(
        self,
        model: LlamaModel,
        options: EngineOptions,
        new_workers: Callable[[], Iterable[Any]],
        poll: Callable[[Sequence[Any]], Iterable[tuple[Any, Report | WorkerDied]]],
    ) -> None:
        self.options = options
        self.usable = True
        """Whether each engine runs or is being started."""
        self._new_workers, self._poll_workers = new_workers, poll
        self._all: list[Worker] = []
        self._router: RequestRouter[Worker] = RequestRouter(options.max_sequences, options.max_batch_tokens)
        self._losses: Counter[Hashable] = Counter()
        self._waiting: deque[GenerationRequest] = deque()
        self._alone: deque[GenerationRequest] = deque()
        self._numbers = itertools.count()
        self._polled = 0.0
        try:
            directory = snapshot_directory(model.path, "config.json", allow_pickle=model.allow_pickle)
            config = read_config(directory)
            self.tokenizer = LlamaTokenizer.of(model, directory)
            self.defaults = read_generation_defaults(directory)
            self.end_tokens = end_tokens(config, self.defaults, self.tokenizer)
            self.context_window = model.context_window or config.context_window
            while not self.workers:
                self._poll(lambda request, error: None)
        except BaseException:
            self.close()
            raise

    def generate(
        self, requests: Iterable[GenerationRequest], on_rejected: OnRejected, stop: threading.Event | None = None
    ) -> Iterator[RequestOutput]:
        """See :meth:`Engine.generate`. Outputs come in the order of completion.

        Raises:
            WorkerDied: no engine is left.
        """
        self._clear_requests()
        source, stopped = iter(requests), False
        while True:
            if stop is not None and stop.is_set() and not stopped:
                stopped = True
                self._send_all("stop")
            if not stopped:
                self._assign_requests(source)
            if not self._router.busy_workers() and (stopped or not (self._waiting or self._alone)):
                return
            yield from self._poll(on_rejected)

    def _assign_requests(self, source: Iterator[GenerationRequest]) -> None:
        """Assign requests while workers have capacity. Raises ConfigError if a drafter cannot be pickled.

        Those that must be alone run when no other waits, so that no engine idles for them, and first on an engine
        that was lost: each new batch could end it again.
        """
        batches: dict[Worker, list[tuple[GenerationRequest, Any]]] = {}
        while True:
            if not self._waiting and (request := next(source, None)) is not None:
                self._waiting.append(request)
            idle = (worker for worker, state in self._router.workers.items() if not state.outstanding)
            restarted = any(worker.losses and worker.answered for worker in idle)
            alone = bool(self._alone) and (restarted or not self._waiting)
            queue = self._alone if alone else self._waiting
            if not queue or (chosen := self._router.choose(queue[0], alone=alone)) is None:
                break
            request = queue.popleft()
            request = replace(request, key=(next(self._numbers), request.key))
            source_needed = self._router.assign(request, chosen, alone=alone)
            message = request.without_source(), request.source if source_needed else None
            batches.setdefault(chosen, []).append(message)
        for worker, batch in batches.items():
            try:
                worker.send("add", batch)
            except (AttributeError, TypeError, PicklingError) as error:
                raise ConfigError(
                    f"decoding.drafter: several engines need one that can be pickled: {error}"
                ) from error

    def _poll(self, on_rejected: OnRejected) -> list[RequestOutput]:
        """Handle the reports of workers. Returns the answers."""
        self._all += self._new_workers()
        answers: list[RequestOutput] = []
        for worker, report in self._poll_workers(self._all):
            worker.silent_s = 0.0
            if isinstance(report, WorkerDied):
                self._handle_loss(worker, WorkerDied(f"{worker.name}: {worker.error or report}"), on_rejected)
            elif report.error is None:
                answers += self._handle_report(worker, report, on_rejected)
            else:
                if isinstance(report.error, ConfigError):
                    if not self.workers and not any(each.answered for each in self._all):
                        raise report.error
                    worker.losses = MAX_RESTARTS  # it would fail again
                worker.error = report.error
                worker.kill()
        self._kill_hung_workers()
        return answers

    def _kill_hung_workers(self) -> None:
        now = time.monotonic()
        elapsed, self._polled = min(now - self._polled, 1.0), now  # a longer pause was one of this process
        busy = self._router.busy_workers()
        for worker in self._all:
            loading = worker not in self._router.workers
            if worker in busy or (loading and worker.placed):
                worker.silent_s += elapsed
            timeout = self.options.stall_timeout_s * (_LOAD_TIMEOUT if loading else 1)
            if worker.silent_s > timeout and worker.error is None:
                worker.error = WorkerDied(
                    f"killed after {timeout:g} s {'in which it did not load' if loading else 'without a step'}"
                )
                worker.kill()

    def _handle_report(self, worker: Worker, report: Report, on_rejected: OnRejected) -> list[RequestOutput]:
        if worker not in self._router.workers:
            self._router.add_worker(worker)
            _log.info("%s is ready, %d of %d", worker.name, len(self.workers), len(self._all))
        worker.figures = report.figures
        self._router.mark_started(worker, report.started)
        for key, error in report.rejected:
            request = self._router.mark_done(worker, key)
            if request is not None and error is not None:
                on_rejected(_without_number(request), error)
        answers = []
        for answer in report.answers:
            worker.losses, worker.answered = 0, True
            if (request := self._router.mark_done(worker, answer.request.key)) is not None:
                answers.append(replace(answer, request=_without_number(request)))
        return answers

    def _handle_loss(self, worker: Worker, error: WorkerDied, on_rejected: OnRejected) -> None:
        """Start ``worker`` again, and queue its requests.

        Raises:
            WorkerDied: no worker is left.
        """
        requests = [_without_number(request) for request in self._router.remove_worker(worker)]
        _log.warning("%s; its %d requests go to engines that are ready", error, len(requests))
        alone = any(self._losses[request.key] >= _ALONE_AFTER for request in requests)
        worker.losses += not (alone and worker.answered)  # then the request is the cause
        worker.figures = worker.error = None
        if worker.losses <= MAX_RESTARTS:
            worker.start()
        else:
            _log.error("%s is not started again", worker.name)
            self.usable = False
            self._all.remove(worker)
            worker.close()
            if not self._all:
                raise WorkerDied(f"no engine is left; the last one: {error}")
        for request in requests:
            self._losses[request.key] += 1
            losses = self._losses[request.key]
            if losses == MAX_REQUEST_LOSSES:
                why = f"{losses} engines ended while they computed this request; the last one: {error}"
                on_rejected(request, WorkerDied(why))
            else:
                (self._alone if losses >= _ALONE_AFTER else self._waiting).append(request)

    def _clear_requests(self) -> None:
        self._router.clear()
        self._losses.clear()
        self._waiting.clear()
        self._alone.clear()

    def _send_all(self, kind: str) -> None:
        for worker in self.workers:
            worker.send(kind)

    @property
    def workers(self) -> list[Worker]:
        """The workers that are ready."""
        return list(self._router.workers)

    def abandon(self) -> None:
        """Drop all requests in flight."""
        self._clear_requests()
        self._send_all("abandon")

    def reset_stats(self) -> None:
        """Start new statistics. The figures of each engine follow with its next report."""
        for worker in self.workers:
            worker.figures = None
            worker.send("reset")

    def figures(self) -> dict[str, float]:
        """Counts and rates of the engines that are ready are summed, shares averaged."""
        return {"workers": len(self.workers), **merged_figures(self.figures_of_each())}

    def figures_of_each(self) -> list[Mapping[str, float]]:
        """The last figures of each ready engine that has reported any."""
        return [worker.figures for worker in self.workers if worker.figures is not None]

    def close(self) -> None:
        """Stop the workers."""
        self.usable = False
        for worker in self._all:
            worker.close()


def _without_number(request: GenerationRequest) -> GenerationRequest:
    assert isinstance(request.key, tuple)
    return replace(request, key=request.key[1])
