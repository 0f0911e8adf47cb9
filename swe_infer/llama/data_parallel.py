"""Data parallelism: several engines side by side behind the interface of one.

The parent encodes prompts and routes them to engines, which are processes of this machine
(:mod:`swe_infer.llama.process_worker`) or actors of a Ray cluster (:mod:`swe_infer.llama.ray_worker`). When an engine
is lost, its requests go to the others; what it had computed is lost.
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
"""From an engine: what kind, of which epoch, the content, and the engine's figures."""


class WorkerDied(SweInferError):
    """An engine ended by itself. What no engine has answered is not lost: the same command asks it again."""


class Worker(Protocol):
    """The parent's side of one engine."""

    @property
    def name(self) -> str:
        """Where it is, for people."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as is known without asking it."""
        ...

    def send(self, kind: str, epoch: int, content: Any = None) -> None:
        """Raises WorkerDied."""
        ...

    def receive(self) -> list[Message]:
        """The messages that have arrived: at least one where ``wait`` reported this worker as readable.

        Raises:
            WorkerDied: it has ended.
        """
        ...

    def close(self) -> None:
        """End it, if it has not ended."""
        ...


W = TypeVar("W", bound=Worker)


class DataParallelEngine(Generic[W]):
    """Engines that are loading already, as one.

    Args:
        workers: begun; each will say ``ready`` or ``failed``.
        wait: those of some workers that have something to say or have ended; waits a moment at most.
        wait_for_all: whether the first request waits until all have loaded, or until one has; the rest join later.

    Raises:
        CheckpointError, ConfigError: what ``Engine.load`` raised in the first worker that was heard of.
        WorkerDied: no worker came up.
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
            self.tokenizer = LlamaTokenizer(directory, model.prompt_format)
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
        """See :meth:`Engine.generate`. Answers come in the order in which they are complete.

        Raises:
            WorkerDied: the last worker ended by itself.
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
        """Hand out what there is room for, first of all what came back; returns whether ``source`` is exhausted."""
        while self._requeued or not exhausted:
            if not self._requeued:
                request = next(source, None)
                if request is None:
                    return True
                self._requeued.append(request)
            request = self._requeued[0]
            if (losses := self._losses[request.key]) >= _MAX_LOSSES:
                self._requeued.popleft()
                on_rejected(request, WorkerDied(f"{losses} engines ended while they were answering it"))
            elif losses == _MAX_LOSSES - 1 and self._last_attempt_in_flight():
                break  # of two that were on the same lost engines one may be innocent
            elif (chosen := self._router.choose(request)) is None:
                break
            else:
                needs_source = self._router.assign(self._requeued.popleft(), chosen)
                if not needs_source or self._send(chosen, "source", request.source):
                    self._send(chosen, "add", request.without_source())
        return exhausted

    def _last_attempt_in_flight(self) -> bool:
        """Whether some engine answers a request that is refused if that engine ends, too."""
        return any(self._losses[key] == _MAX_LOSSES - 1 for key in self._router.outstanding_keys())

    def _poll(
        self,
        workers: Sequence[W],
        on_rejected: Callable[[GenerationRequest, Exception], None] | None = None,
    ) -> list[RequestOutput]:
        """What some of ``workers`` have to say now; waits a moment at most. Returns the answers among it."""
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
        """Send a message; returns whether ``worker`` was there to take it."""
        try:
            worker.send(kind, self._epoch, content)
        except WorkerDied as error:
            self._remove_lost(worker, error)
            return False
        return True

    def _remove_lost(self, worker: W, error: Exception) -> None:
        """Go on without ``worker``: what it had goes to the others.

        Raises:
            SweInferError: there is none.
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
        _log.warning("%s; what it had goes to the %d that are left (%d requests)", error, left, len(requests))
        self._losses.update(request.key for request in requests)
        self._requeued.extend(requests)

    def _reset_requests(self) -> None:
        self._epoch += 1
        self._router.clear()
        self._requeued.clear()
        self._losses.clear()

    @property
    def workers(self) -> tuple[W, ...]:
        """Those that have loaded and are not lost."""
        return tuple(self._ready)

    @property
    def usable(self) -> bool:
        """Whether none is lost, as far as is known."""
        workers = [*self._ready, *self._starting]
        return len(workers) == self._count and all(worker.alive for worker in workers)

    def abandon(self) -> None:
        """Drop what is in the making."""
        self._reset_requests()
        with suppress(WorkerDied):  # of the last one: that is for who asks next
            for worker in list(self._ready):
                self._send(worker, "abandon")

    def reset_stats(self) -> None:
        """Begin counting anew. Nothing may be in the making; what comes late of an abandoned run is dropped."""
        self._epoch += 1
        for worker in list(self._ready):
            self._figures.pop(id(worker), None)
            self._send(worker, "reset")
        while missing := [worker for worker in self._ready if id(worker) not in self._figures]:
            self._poll(missing)

    def figures(self) -> dict[str, float]:
        """The figures of the engines that live: counts and rates summed, shares averaged."""
        return {"workers": len(self._ready), **merged_figures(self.figures_of_each())}

    def figures_of_each(self) -> list[Mapping[str, float]]:
        """What each engine that lives counted, in the order of :attr:`workers`."""
        return [self._figures[id(worker)] for worker in self._ready if id(worker) in self._figures]

    def close(self) -> None:
        """End the workers."""
        workers = [*self._starting, *self._ready]
        self._starting, self._ready = [], []
        for worker in workers:
            worker.close()
