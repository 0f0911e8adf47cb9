"""Data parallelism: several engines behind the interface of one.

The parent routes requests to engines, which encode their prompts. They run in local processes
(:mod:`swe_infer.llama.process_worker`) or in actors of a Ray cluster (:mod:`swe_infer.llama.ray_worker`). An engine
gets only requests that it can start soon: those it runs, and queued prompts for about its next steps. All others wait
here for the first engine with capacity, so that a slow engine delays nothing that another could do.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.drafting import NO_SOURCE
from swe_infer.llama.engine import EngineOptions, end_tokens, read_checkpoint
from swe_infer.llama.sequence import GenerationRequest, OnRejected, RequestOutput
from swe_infer.llama.stats import merged_figures
from swe_infer.text import first_line
from swe_infer.types import Failure, LlamaModel, Skip

_log = logging.getLogger(__name__)

MAX_REQUEST_LOSSES = 4  # after which it fails; after half of them it has an engine to itself, so that it fails alone
MAX_RESTARTS = 8  # of an engine without an answer in between
_LOAD_TIMEOUT = 10  # in stall timeouts
_STEPS_AHEAD = 2  # for which an engine queues prompts: while one runs, the next is in transit
_POLL_S, _NEW_WORKERS_INTERVAL_S = 0.2, 5.0
_PAUSE_S = 2e-5  # for each engine: looking at all of them takes a few per cent of the driver's time


class WorkerDied(SweInferError):
    """An engine ended unexpectedly. Running the same command again answers the remaining requests."""


class Report(NamedTuple):
    """What an engine has done since its last report."""

    results: list[tuple[Hashable, RequestOutput | Failure | Skip]]
    unstarted: int  # number of requests that it has not started
    busy: bool  # whether it has any request
    figures: Mapping[str, float]


class Worker:
    """The parent's handle of one engine. A thread waits for the engine, which subclasses run."""

    name = "an engine"
    ready = False  # whether it has loaded
    answered = False  # whether it has answered any request
    losses = 0  # since its last answer
    waits, waited_s = False, -inf  # whether a call is running, and for how long, up to a timeout
    figures: Mapping[str, float] | None = None

    dumps = staticmethod(pickle.dumps)  # of commands
    describe = staticmethod(first_line)  # an error of start or call
    start: Callable[[], str]  # starts it in a new process, and returns its name once the process exists
    call: Callable[[bytes], bytes]  # sends commands to process_worker.serve there; any error means that it ended
    kill: Callable[[bool], None]  # ends the process, even if it hangs, and for good unless the argument is True

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.clear()

    def run(self, replies: queue.SimpleQueue[tuple[Worker, Any]]) -> None:
        """Start the engine and pass calls on. An empty call starts it again."""
        while True:
            try:
                self.name, self.waited_s = self.start(), 0.0
                commands = pickle.dumps([])
                while commands:
                    replies.put((self, pickle.loads(self.call(commands))))
                    commands = self.calls.get()
            except Exception as error:  # noqa: BLE001 - other engines continue
                replies.put((self, WorkerDied(self.describe(error))))
                self.calls.get()

    def clear(self) -> None:
        """Forget all requests."""
        self.outstanding: dict[Hashable, GenerationRequest] = {}
        self.queued: list[int] = []  # prompt tokens of the last requests, which it has not started
        self.alone = False  # whether its request must not share it
        self.last: GenerationRequest | None = None
        self.commands: list[tuple[str, Any]] = []  # of the next call

    def has_prompt_of(self, request: GenerationRequest) -> bool:
        """Whether the last request had the same prompt."""
        return self.last is not None and self.last.has_prompt_of(request)

    def assign(self, request: GenerationRequest, *, alone: bool = False) -> None:
        """Assign ``request``. Samples of a prompt share a source, which is sent once."""
        self.outstanding[request.key] = request
        self.queued.append(1 if self.has_prompt_of(request) else request.estimated_tokens)
        source = None if self.last is not None and self.last.source is request.source else request.source
        self.alone, self.last = alone, request
        self.commands.append(("add", (replace(request, source=NO_SOURCE), source)))

    def keep_queued(self, unstarted: int) -> None:
        """Forget the prompts that it has started, all but the last ``unstarted``."""
        del self.queued[: -unstarted or None]


def choose_worker(workers: Sequence[Worker], request: GenerationRequest, options: EngineOptions) -> Worker | None:
    """Return the worker for ``request``; None if none has capacity yet.

    Samples of a prompt go to the worker of the first one, whose prefix cache has the prompt, unless that worker is
    full while another is idle. Otherwise the worker with the fewest requests is chosen.
    """
    free = [w for w in workers if not w.waits and len(w.outstanding) < (1 if w.alone else options.max_sequences)]
    if same_prompt := [worker for worker in workers if worker.has_prompt_of(request)]:
        return next((w for w in free if w in same_prompt or not w.outstanding), None)
    free = [worker for worker in free if sum(worker.queued) < _STEPS_AHEAD * options.max_batch_tokens]
    return min(free, key=lambda worker: len(worker.outstanding), default=None)


class DataParallelEngine:
    """Several engines as one. It is ready when the first one is; the others join.

    Args:
        new_workers: asked every few seconds for workers to add.

    Raises:
        CheckpointError, ConfigError: from ``Engine.load`` in the first worker that reported.
        WorkerDied: no worker started.
    """

    def __init__(self, model: LlamaModel, options: EngineOptions, new_workers: Iterator[Iterable[Worker]]) -> None:
        self.options = options
        self.usable = True  # whether each engine runs or is being started
        self._new_workers = new_workers
        self._all: list[Worker] = []
        self._replies: queue.SimpleQueue[tuple[Worker, Report | SweInferError]] = queue.SimpleQueue()
        self._losses: Counter[Hashable] = Counter()
        self._waiting: deque[GenerationRequest] = deque()
        self._alone: deque[GenerationRequest] = deque()
        self._polled = self._look_at = self._merged_until = 0.0
        self._merged: dict[str, float] = {}
        try:
            _, config, self.tokenizer, self.defaults = read_checkpoint(model)
            self.end_tokens = end_tokens(config, self.defaults, self.tokenizer)
            self.context_window = model.context_window or config.context_window
            while not self.workers:
                self._poll()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> list[Worker]:
        """The workers that are ready."""
        return [worker for worker in self._all if worker.ready]

    def generate(
        self, requests: Iterable[GenerationRequest], on_rejected: OnRejected, stop: threading.Event | None = None
    ) -> Iterator[RequestOutput]:
        """See :meth:`Engine.generate`. Outputs come in the order of completion.

        Raises:
            ConfigError: a drafter cannot be sent to an engine.
            WorkerDied: no engine is left.
        """
        self.abandon()
        self._on_rejected = on_rejected
        source, stopped = iter(requests), False
        answers: list[RequestOutput] = []
        while True:
            if not stopped and (stopped := stop is not None and stop.is_set()):
                for worker in self.workers:
                    worker.commands.append(("drop_unstarted", None))
            if not stopped:
                self._assign_requests(source)
            self._send_commands()
            yield from answers  # while engines work
            waiting = not stopped and (self._waiting or self._alone)
            if not (waiting or any(worker.outstanding for worker in self._all)):
                return
            answers = self._poll()

    def _assign_requests(self, source: Iterator[GenerationRequest]) -> None:
        """Assign requests while workers have capacity. Those that must be alone run on an idle one that has answered
        others; if none has, they run last."""
        workers = self.workers
        while True:
            if not self._waiting and (request := next(source, None)) is not None:
                self._waiting.append(request)
            idle = None
            if self._alone:
                tried = [w for w in workers if w.answered] or ([] if self._waiting else workers)
                idle = next((w for w in tried if not (w.outstanding or w.waits)), None)
            if idle is not None:
                idle.assign(self._alone.popleft(), alone=True)
            elif self._waiting and (worker := choose_worker(workers, self._waiting[0], self.options)) is not None:
                worker.assign(self._waiting.popleft())
            else:
                return

    def _send_commands(self) -> None:
        """Call workers. Raises ConfigError if a drafter cannot be pickled."""
        for worker in self._all:
            if not worker.waits and (worker.commands or worker.outstanding):
                try:
                    worker.calls.put(worker.dumps(worker.commands))
                except Exception as error:  # drafters of users may raise anything
                    why = f"decoding.drafter: several engines need one that can be pickled: {first_line(error)}"
                    raise ConfigError(why) from error
                worker.commands, worker.waits, worker.waited_s = [], True, 0.0

    def _poll(self) -> list[RequestOutput]:
        """Handle the next reports, if one comes soon. Returns their answers."""
        now = time.monotonic()
        elapsed, self._polled = min(now - self._polled, 1.0), now  # a longer pause was one of this process
        if now >= self._look_at:
            self._look_at = now + _NEW_WORKERS_INTERVAL_S
            for worker in next(self._new_workers, ()):
                self._all.append(worker)
                threading.Thread(target=worker.run, args=(self._replies,), daemon=True).start()
        for worker in self._all:
            worker.waited_s += elapsed
            if worker.waited_s > self.options.stall_timeout_s * (1 if worker.ready else _LOAD_TIMEOUT):
                _log.warning("%s is killed after %.3g s without a report", worker.name, worker.waited_s)
                worker.waited_s = -inf
                worker.kill(True)
        answers: list[RequestOutput] = []
        with suppress(queue.Empty):
            worker, reply = self._replies.get(timeout=_POLL_S)
            time.sleep(_PAUSE_S * len(self._all))
            while True:
                worker.waits, worker.waited_s = False, -inf
                if isinstance(reply, Report):
                    answers += self._handle_report(worker, reply)
                else:
                    self._handle_error(worker, reply)
                worker, reply = self._replies.get_nowait()
        return answers

    def _handle_report(self, worker: Worker, report: Report) -> list[RequestOutput]:
        if not worker.ready:
            worker.ready = True
            _log.info("%s is ready, %d of %d", worker.name, len(self.workers), len(self._all))
        worker.figures = report.figures
        worker.keep_queued(report.unstarted)
        answers = []
        for key, result in report.results:
            request = worker.outstanding.pop(key, None)
            if isinstance(result, RequestOutput):
                worker.losses, worker.answered = 0, True
                if request is not None:
                    answers.append(replace(result, request=request))
            elif request is not None:
                self._on_rejected(request, result)
        if not report.busy:
            worker.outstanding.clear()  # dropped after a stop
        return answers

    def _handle_error(self, worker: Worker, error: Exception) -> None:
        """Start ``worker`` again, and queue its requests.

        Raises:
            ConfigError: no worker works, or a request is the cause.
            WorkerDied: no worker is left.
        """
        if isinstance(error, ConfigError):
            if worker.ready or not any(each.ready or each.answered for each in self._all):
                raise error
            worker.losses = MAX_RESTARTS  # it would fail again
        error = WorkerDied(f"{worker.name}: {error}")
        worker.losses += not (worker.alone and worker.answered)  # then the request is the cause
        requests = list(worker.outstanding.values())
        worker.clear()
        _log.warning("%s; its %d requests go to engines that are ready", error, len(requests))
        worker.ready, worker.figures = False, None
        if worker.losses <= MAX_RESTARTS:
            worker.waits = True
            worker.calls.put(b"")
        else:
            _log.error("%s is not started again", worker.name)
            self.usable = False
            self._all.remove(worker)
            worker.kill(False)
            if not self._all:
                raise WorkerDied(f"no engine is left; the last one: {error}")
        for request in requests:
            self._losses[request.key] += 1
            losses = self._losses[request.key]
            if losses == MAX_REQUEST_LOSSES:
                why = f"{losses} engines ended while they computed this request; the last one: {error}"
                self._on_rejected(request, Failure(WorkerDied.__name__, why))
            else:
                (self._alone if losses >= MAX_REQUEST_LOSSES / 2 else self._waiting).append(request)

    def abandon(self) -> None:
        """Drop all requests in flight."""
        self._merged_until = 0.0
        for requests in (self._losses, self._waiting, self._alone):
            requests.clear()
        for worker in self.workers:
            if worker.outstanding:
                worker.clear()
                worker.commands.append(("abandon", None))

    def reset_stats(self) -> None:
        """Start new statistics. The figures of each engine follow with its next report."""
        self._merged_until = 0.0
        for worker in self.workers:
            worker.figures = None
            worker.commands.append(("reset_stats", None))

    def figures(self) -> dict[str, float]:
        """Counts and rates of the engines that are ready are summed, shares averaged. Within a run they may be two
        milliseconds old for each engine."""
        now = time.monotonic()
        if now >= self._merged_until:
            known = [worker.figures for worker in self.workers if worker.figures is not None]
            self._merged = {"workers": len(self.workers), **merged_figures(known)}
            self._merged_until = now + 0.002 * len(known)
        return self._merged

    def close(self) -> None:
        """Stop the workers."""
        self.usable = False
        for worker in self._all:
            worker.kill(False)
