"""Data parallelism: several engines behind the interface of one.

The parent tokenizes prompts and routes requests to engines, which run in local processes
(:mod:`swe_infer.llama.process_worker`) or in actors of a Ray cluster (:mod:`swe_infer.llama.ray_worker`). When an
engine dies, its requests go to the others and are computed again.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.config import read_config, read_generation_defaults
from swe_infer.llama.engine import EngineOptions, PromptTooLong, end_tokens
from swe_infer.llama.hub import snapshot_directory
from swe_infer.llama.request_router import RequestRouter
from swe_infer.llama.sequence import GenerationRequest, RequestOutput
from swe_infer.llama.stats import merged_figures
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.types import LlamaModel

_log = logging.getLogger(__name__)

_MAX_LOSSES = 3

Message: TypeAlias = tuple[str, int, Any, Mapping[str, float]]
"""A message of an engine: kind, epoch, content, and the engine's figures."""


class WorkerDied(SweInferError):
    """An engine ended unexpectedly. Running the same command again answers the remaining requests."""


class Worker(Protocol):
    """The parent's handle of one engine."""

    @property
    def name(self) -> str:
        """A readable location."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the engine runs, as far as the parent knows."""
        ...

    def send(self, kind: str, epoch: int, content: Any = None) -> None:
        """Raises WorkerDied."""
        ...

    def receive(self) -> list[Message]:
        """Return the messages that have arrived: at least one if ``wait`` reported this worker as readable.

        Raises:
            WorkerDied: the engine has ended.
        """
        ...

    def close(self) -> None:
        """Stop the engine if it still runs."""
        ...


W = TypeVar("W", bound=Worker)


class DataParallelEngine(Generic[W]):
    """Several engines as one.

    Args:
        workers: started; each sends ``ready`` or ``failed``.
        wait: returns the workers that have a message or have ended, after a short timeout at most.
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
        workers: Sequence[W],
        wait: Callable[[Sequence[W]], Sequence[W]],
        *,
        wait_for_all: bool = True,
    ) -> None:
        self.options = options
        self._wait = wait
        self._count = len(workers)
        self._starting = list(workers)
        self._ready: list[W] = []
        self._figures: dict[int, Mapping[str, float]] = {}
        self._epoch = 0
        self._router: RequestRouter[W] = RequestRouter(options.max_sequences, options.max_batch_tokens)
        self._requeued: deque[GenerationRequest] = deque()
        self._losses: Counter[Hashable] = Counter()
        try:
            directory = snapshot_directory(model.path, "config.json", allow_pickle=model.allow_pickle)
            config = read_config(directory)
            self.tokenizer = LlamaTokenizer.of(model, directory)
            self.defaults = read_generation_defaults(directory)
            self.end_tokens = end_tokens(config, self.defaults, self.tokenizer)
            self.context_window = model.context_window or config.context_window
            while not self._ready or (wait_for_all and self._starting):
                self._poll(self._starting)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        requests: Iterable[GenerationRequest],
        on_rejected: Callable[[GenerationRequest, Exception], None],
        stop: threading.Event | None = None,
    ) -> Iterator[RequestOutput]:
        """See :meth:`Engine.generate`. Outputs come in the order of completion.

        Raises:
            WorkerDied: the last worker ended unexpectedly.
        """
        self._reset_requests()
        source = iter(requests)
        exhausted = stopped = False
        while True:
            if stop is not None and stop.is_set() and not stopped:
                stopped = True
                for worker in list(self._ready):
                    self._send(worker, "stop")
            if stopped:
                self._requeued.clear()
            else:
                exhausted = self._assign_requests(source, exhausted, on_rejected)
            busy = self._router.busy_workers()
            if not busy and (stopped or (exhausted and not self._requeued)):
                return
            yield from self._poll([*busy, *self._starting], on_rejected)

    def _assign_requests(
        self,
        source: Iterator[GenerationRequest],
        exhausted: bool,
        on_rejected: Callable[[GenerationRequest, Exception], None],
    ) -> bool:
        """Assign requests while workers have capacity, requeued ones first. Returns whether ``source`` is
        exhausted."""
        while self._requeued or not exhausted:
            if not self._requeued:
                request = next(source, None)
                if request is None:
                    return True
                self._requeued.append(request)
            request = self._requeued[0]
            if (losses := self._losses[request.key]) >= _MAX_LOSSES:
                self._requeued.popleft()
                on_rejected(request, WorkerDied(f"{losses} engines ended while they computed this request"))
            elif losses == _MAX_LOSSES - 1 and self._last_attempt_in_flight():
                break  # run such requests one at a time, to find the one that ends engines
            elif (chosen := self._router.choose(request)) is None:
                break
            else:
                needs_source = self._router.assign(self._requeued.popleft(), chosen)
                if not needs_source or self._send(chosen, "source", request.source):
                    self._send(chosen, "add", request.without_source())
        return exhausted

    def _last_attempt_in_flight(self) -> bool:
        """Whether a request that would be rejected after one more lost engine is in flight."""
        return any(self._losses[key] == _MAX_LOSSES - 1 for key in self._router.outstanding_keys())

    def _poll(
        self,
        workers: Sequence[W],
        on_rejected: Callable[[GenerationRequest, Exception], None] | None = None,
    ) -> list[RequestOutput]:
        """Wait briefly for messages of ``workers`` and handle them. Returns the outputs among them."""
        answers: list[RequestOutput] = []
        for worker in self._wait(workers):
            try:
                messages = worker.receive()
            except WorkerDied as error:
                self._remove_lost(worker, error)
                continue
            for message in messages:
                answers += self._handle_message(worker, message, on_rejected)
        return answers

    def _handle_message(
        self,
        worker: W,
        message: Message,
        on_rejected: Callable[[GenerationRequest, Exception], None] | None,
    ) -> list[RequestOutput]:
        kind, epoch, content, figures = message
        if kind == "failed":
            if isinstance(content, ConfigError) and not self._ready:
                raise content
            self._remove_lost(worker, content)
        elif kind == "ready":
            self._starting.remove(worker)
            self._ready.append(worker)
            self._router.add_worker(worker)
            self._figures[id(worker)] = figures
            _log.info("%s is ready, %d of %d", worker.name, len(self._ready), self._count)
        elif epoch == self._epoch and worker in self._ready:
            self._figures[id(worker)] = figures
            if kind == "started":
                self._router.mark_started(worker, content)
            elif kind == "rejected":
                request, reason, text = content
                self._router.mark_done(worker, request.key)
                if on_rejected is not None:
                    on_rejected(request, PromptTooLong(text) if reason == "PromptTooLong" else ValueError(text))
            elif kind == "dropped":
                for request in content:
                    self._router.mark_done(worker, request.key)
            elif kind == "answers":
                for answer in content:
                    self._router.mark_done(worker, answer.request.key)
                return list(content)
        return []

    def _send(self, worker: W, kind: str, content: Any = None) -> bool:
        """Send a message. Returns False if ``worker`` is lost."""
        try:
            worker.send(kind, self._epoch, content)
        except WorkerDied as error:
            self._remove_lost(worker, error)
            return False
        return True

    def _remove_lost(self, worker: W, error: Exception) -> None:
        """Remove ``worker`` and requeue its requests for the others.

        Raises:
            SweInferError: no worker is left.
        """
        for workers in (self._starting, self._ready):
            if worker in workers:
                workers.remove(worker)
        self._figures.pop(id(worker), None)
        requests = self._router.remove_worker(worker)
        worker.close()
        left = len(self._starting) + len(self._ready)
        if not left:
            raise error if self._count == 1 else WorkerDied(f"all {self._count} engines are gone; the last: {error}")
        _log.warning("%s; its %d requests go to the remaining engines (%d)", error, len(requests), left)
        self._losses.update(request.key for request in requests)
        self._requeued.extend(requests)

    def _reset_requests(self) -> None:
        self._epoch += 1
        self._router.clear()
        self._requeued.clear()
        self._losses.clear()

    @property
    def workers(self) -> tuple[W, ...]:
        """The workers that have loaded and are alive."""
        return tuple(self._ready)

    @property
    def usable(self) -> bool:
        """Whether no worker is lost, as far as the parent knows."""
        workers = [*self._ready, *self._starting]
        return len(workers) == self._count and all(worker.alive for worker in workers)

    def abandon(self) -> None:
        """Drop all requests in flight."""
        self._reset_requests()
        with suppress(WorkerDied):  # the next call reports it
            for worker in list(self._ready):
                self._send(worker, "abandon")

    def reset_stats(self) -> None:
        """Reset the statistics of all engines. No request may be in flight; late messages of an abandoned run are
        ignored."""
        self._epoch += 1
        for worker in list(self._ready):
            self._figures.pop(id(worker), None)
            self._send(worker, "reset")
        while missing := [worker for worker in self._ready if id(worker) not in self._figures]:
            self._poll(missing)

    def figures(self) -> dict[str, float]:
        """Figures of the live engines: counts and rates summed, shares averaged."""
        return {"workers": len(self._ready), **merged_figures(self.figures_of_each())}

    def figures_of_each(self) -> list[Mapping[str, float]]:
        """Figures of each live engine, in the order of :attr:`workers`."""
        return [self._figures[id(worker)] for worker in self._ready if id(worker) in self._figures]

    def close(self) -> None:
        """Stop the workers."""
        workers = [*self._starting, *self._ready]
        self._starting, self._ready = [], []
        for worker in workers:
            worker.close()
