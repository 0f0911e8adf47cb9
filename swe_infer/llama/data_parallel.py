"""Data parallelism: several engines behind the interface of one.

The parent tokenizes prompts and routes requests to engines, which run in local processes
(:mod:`swe_infer.llama.process_worker`) or in actors of a Ray cluster (:mod:`swe_infer.llama.ray_worker`). An engine
that ends or hangs is started again, and its requests go to the engines that are ready. Each assignment of a request
has its own number, so that late answers of abandoned requests are dropped.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.config import read_config, read_generation_defaults
from swe_infer.llama.engine import EngineOptions, end_tokens
from swe_infer.llama.hub import snapshot_directory
from swe_infer.llama.request_router import ALONE_AFTER, RequestRouter
from swe_infer.llama.sequence import GenerationRequest, RequestOutput
from swe_infer.llama.stats import merged_figures
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.types import LlamaModel

_log = logging.getLogger(__name__)

MAX_LOSSES = 5
"""Losses of an engine without an answer in between, after which it is not started again. Once it has answered, a loss
counts only if one of its requests was new: the others were in flight during another loss, and may be the cause."""

OnRejected: TypeAlias = Callable[[GenerationRequest, Exception], None]


class WorkerDied(SweInferError):
    """An engine ended unexpectedly. Running the same command again answers the remaining requests."""


@dataclass(slots=True)
class Report:
    """What an engine reports: that it has loaded, the results of a step, or the error that ends it.

    Args:
        run: number of the run that ``figures`` cover.
        started: keys of requests.
        answers: in place of each request there is one with its key alone.
        rejected: keys of requests that cannot run, or that a stop dropped (None).
    """

    run: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    started: list[Hashable] = field(default_factory=list)
    answers: list[RequestOutput] = field(default_factory=list)
    rejected: list[tuple[Hashable, Exception | None]] = field(default_factory=list)
    error: SweInferError | None = None


class Worker(ABC):
    """The parent's handle of one engine.

    Args:
        name: a readable location.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.losses = 0
        """Since the last answer."""
        self.answered = False
        self.silent_s = 0.0
        """Seconds without a report while it has requests."""
        self.figures: Mapping[str, float] | None = None
        self.error: Exception | None = None
        """Why it will be reported as lost, if known."""
        self.start()

    @abstractmethod
    def start(self) -> None:
        """Start the engine, at first and after each loss."""

    @abstractmethod
    def send(self, kind: str, *content: Any) -> None:
        """Send a command of :func:`swe_infer.llama.process_worker.serve`, without waiting for the engine."""

    @abstractmethod
    def kill(self) -> None:
        """End the engine, even if it hangs. It is then reported as lost."""

    @abstractmethod
    def close(self) -> None:
        """End the engine for good."""


class DataParallelEngine:
    """Several engines as one.

    Args:
        new_workers: called before each poll; returns workers to add.
        poll: returns reports of workers, and errors of lost workers, after a short timeout at most.
        wait_for_all: whether to load all engines before the first request. Otherwise one is enough and the others
            join when they are ready.

    Raises:
        CheckpointError, ConfigError: from ``Engine.load`` in the first worker that reported.
        WorkerDied: no worker started.
    """

    def __init__(
        self,
        model: LlamaModel,
        options: EngineOptions,
        new_workers: Callable[[], Sequence[Any]],
        poll: Callable[[Sequence[Any]], Iterable[tuple[Any, Report | WorkerDied]]],
        *,
        wait_for_all: bool = True,
    ) -> None:
        self.options = options
        self.usable = True
        """Whether each engine runs or is being started."""
        self._new_workers, self._poll_workers = new_workers, poll
        self._workers: list[Worker] = []
        self._router: RequestRouter[Worker] = RequestRouter(options.max_sequences, options.max_batch_tokens)
        self._losses: Counter[Hashable] = Counter()
        self._lost: tuple[deque[GenerationRequest], ...] = (deque(), deque())
        """Requests to assign again: those of one lost engine, and those that will run alone."""
        self._numbers = itertools.count()
        self._run = 0
        self._last_poll = 0.0
        try:
            directory = snapshot_directory(model.path, "config.json", allow_pickle=model.allow_pickle)
            config = read_config(directory)
            self.tokenizer = LlamaTokenizer.of(model, directory)
            self.defaults = read_generation_defaults(directory)
            self.end_tokens = end_tokens(config, self.defaults, self.tokenizer)
            self.context_window = model.context_window or config.context_window
            while not self.workers or (wait_for_all and len(self.workers) < len(self._workers)):
                self._poll(lambda request, error: None)
        except BaseException:
            self.close()
            raise

    def generate(
        self, requests: Iterable[GenerationRequest], on_rejected: OnRejected, stop: threading.Event | None = None
    ) -> Iterator[RequestOutput]:
        """See :meth:`Engine.generate`. Outputs come in the order of completion.

        Raises:
            WorkerDied: no engine is left, and none is started again.
        """
        self._clear_requests()
        source, fresh, stopped = iter(requests), deque[GenerationRequest](), False
        while True:
            if stop is not None and stop.is_set() and not stopped:
                stopped = True
                self._send_all("stop")
            if not stopped:
                self._assign_requests(source, fresh)
            if not self._router.busy_workers() and (stopped or not any((fresh, *self._lost))):
                return
            yield from self._poll(on_rejected)

    def _assign_requests(self, source: Iterator[GenerationRequest], fresh: deque[GenerationRequest]) -> None:
        """Assign requests while workers have capacity: those of a lost engine, then new ones. Those that must run
        alone come last, so that no engine idles for them."""
        again, alone = self._lost
        batches: dict[Worker, list[tuple[GenerationRequest, Any]]] = {}
        assigned = True
        while assigned:
            if not fresh and (request := next(source, None)) is not None:
                fresh.append(request)
            assigned = False
            for queue in [again, fresh] if again or fresh else [alone]:
                losses = self._losses[queue[0].key] if queue else 0
                proven = losses > 0 and len(fresh) > 0
                if queue and (worker := self._router.choose(queue[0], losses, proven=proven)) is not None:
                    request = replace(queue[0], key=(next(self._numbers), queue.popleft().key))
                    source_needed = self._router.assign(request, worker, losses)
                    message = request.without_source(), request.source if source_needed else None
                    batches.setdefault(worker, []).append(message)
                    assigned = True
                    break
        for worker, batch in batches.items():
            worker.send("add", self._run, batch)

    def _poll(self, on_rejected: OnRejected) -> list[RequestOutput]:
        """Handle the reports of workers. Returns the answers among them."""
        self._workers += self._new_workers()
        answers: list[RequestOutput] = []
        for worker, report in self._poll_workers(self._workers):
            worker.silent_s = 0.0
            if isinstance(report, WorkerDied):
                self._handle_loss(worker, WorkerDied(f"{worker.name}: {worker.error or report}"), on_rejected)
            elif report.error is not None:
                if isinstance(report.error, ConfigError) and not self.workers:
                    raise report.error
                worker.error = report.error
                worker.kill()
            else:
                answers += self._handle_report(worker, report, on_rejected)
        now = time.monotonic()
        elapsed, self._last_poll = min(now - self._last_poll, 1.0), now  # more: this process was busy or suspended
        for worker in self._router.busy_workers():
            worker.silent_s += elapsed
            if worker.silent_s > self.options.stall_timeout_s and worker.error is None:
                worker.error = WorkerDied(f"killed after {self.options.stall_timeout_s:g} s without progress")
                worker.kill()
        return answers

    def _handle_report(self, worker: Worker, report: Report, on_rejected: OnRejected) -> list[RequestOutput]:
        if worker not in self.workers:
            self._router.add_worker(worker)
            _log.info("%s is ready, %d of %d", worker.name, len(self.workers), len(self._workers))
        if report.run == self._run:
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
        """Requeue the requests of ``worker`` and start it again.

        Raises:
            WorkerDied: no worker is left.
        """
        requests = [_without_number(request) for request in self._router.remove_worker(worker)]
        suspicious = bool(requests) and all(self._losses[request.key] for request in requests)
        worker.losses += not (worker.answered and suspicious)
        worker.figures = worker.error = None
        _log.warning("%s; its %d requests go to engines that are ready", error, len(requests))
        if worker.losses < MAX_LOSSES:
            worker.start()
        else:
            _log.error("%s was lost %d times without an answer: it stays stopped", worker.name, worker.losses)
            self.usable = False
            self._workers.remove(worker)
            worker.close()
            if not self._workers:
                raise WorkerDied(f"no engine is left; the last one: {error}")
        self._losses.update(request.key for request in requests)
        for request in requests:
            if (losses := self._losses[request.key]) > ALONE_AFTER:
                on_rejected(request, WorkerDied(f"{losses} engines ended while they computed this request"))
            else:
                self._lost[losses == ALONE_AFTER].append(request)

    def _clear_requests(self) -> None:
        self._router.clear()
        self._losses.clear()
        for queue in self._lost:
            queue.clear()

    def _send_all(self, kind: str) -> None:
        for worker in self.workers:
            worker.send(kind)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The workers that are ready."""
        return self._router.workers

    def abandon(self) -> None:
        """Drop all requests in flight."""
        self._clear_requests()
        self._send_all("abandon")

    def reset_stats(self) -> None:
        """Start new statistics. An engine has none until its next request."""
        self._run += 1
        for worker in self.workers:
            worker.figures = None

    def figures(self) -> dict[str, float]:
        """Counts and rates of the engines that are ready are summed, shares averaged."""
        return {"workers": len(self.workers), **merged_figures(self.figures_of_each())}

    def figures_of_each(self) -> list[Mapping[str, float]]:
        """Figures of each ready engine that has had a request since :meth:`reset_stats`."""
        return [worker.figures for worker in self.workers if worker.figures is not None]

    def close(self) -> None:
        """Stop the workers."""
        self.usable = False
        for worker in self._workers:
            worker.close()


def _without_number(request: GenerationRequest) -> GenerationRequest:
    """The request as the caller passed it."""
    assert isinstance(request.key, tuple)
    return replace(request, key=request.key[1])
