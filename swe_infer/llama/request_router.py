"""Routes requests to engines of unequal speed.

An engine gets only requests that it can start soon: those it runs, and queued prompts for about its next steps. All
others wait here for the first engine with capacity, so that a slow engine delays nothing that another could do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from swe_infer.llama.drafting import DraftSource
from swe_infer.llama.sequence import GenerationRequest

W = TypeVar("W")

_STEPS_AHEAD = 2
"""Steps for which an engine queues prompts in advance: while one runs, the next is in transit."""


@dataclass(slots=True)
class _WorkerState:
    outstanding: dict[Hashable, GenerationRequest] = field(default_factory=dict)
    queued: dict[Hashable, int] = field(default_factory=dict)
    """Prompt tokens of requests that are assigned and not started."""
    prompt: tuple[int, ...] | None = None
    source: DraftSource | None = None
    """The source of the last request with a drafter."""

    @property
    def load(self) -> int:
        """Prompt tokens and maximum output tokens of outstanding requests."""
        return sum(len(r.prompt_ids) + r.stop_params.max_new_tokens for r in self.outstanding.values())


class RequestRouter(Generic[W]):
    """Tracks the requests of each engine and chooses an engine for the next one.

    Args:
        max_sequences: sequences that an engine decodes concurrently.
        max_batch_tokens: tokens of a step.
    """

    def __init__(self, max_sequences: int, max_batch_tokens: int) -> None:
        self._max_sequences = max_sequences
        self._max_queued_tokens = _STEPS_AHEAD * max_batch_tokens
        self._workers: dict[W, _WorkerState] = {}

    def add_worker(self, worker: W) -> None:
        """Add a worker that accepts requests."""
        self._workers[worker] = _WorkerState()

    def remove_worker(self, worker: W) -> list[GenerationRequest]:
        """Remove a worker. Returns its unanswered requests, for the others."""
        state = self._workers.pop(worker, None)
        return list(state.outstanding.values()) if state else []

    def busy_workers(self) -> list[W]:
        """The workers with outstanding requests."""
        return [worker for worker, state in self._workers.items() if state.outstanding]

    def outstanding_keys(self) -> list[Hashable]:
        """The keys of all outstanding requests."""
        return [key for state in self._workers.values() for key in state.outstanding]

    def choose(self, request: GenerationRequest) -> W | None:
        """Return the worker for ``request``; None if no worker has capacity yet.

        Samples of a prompt go to the worker of the first one, whose prefix cache has the prompt, unless that worker
        is full while another is idle. Otherwise the worker with the least outstanding tokens is chosen.
        """
        workers = self._workers
        available = [worker for worker, state in workers.items() if len(state.outstanding) < self._max_sequences]
        same_prompt = [worker for worker, state in workers.items() if state.prompt == request.prompt_ids]
        if same_prompt:
            idle = (worker for worker in available if not workers[worker].outstanding)
            return next((worker for worker in same_prompt if worker in available), next(idle, None))
        free = [worker for worker in available if sum(workers[worker].queued.values()) < self._max_queued_tokens]
        return min(free, key=lambda worker: workers[worker].load, default=None)

    def assign(self, request: GenerationRequest, worker: W) -> bool:
        """Assign ``request`` to ``worker``. Returns whether its source must be sent, which samples of a prompt
        share."""
        state = self._workers[worker]
        state.outstanding[request.key] = request
        state.queued[request.key] = 1 if state.prompt == request.prompt_ids else len(request.prompt_ids)
        state.prompt = request.prompt_ids
        if request.drafter == "none" or state.source is request.source:
            return False
        state.source = request.source
        return True

    def mark_started(self, worker: W, keys: Iterable[Hashable]) -> None:
        """Mark requests as started, which frees queue capacity of ``worker``."""
        for key in keys:
            self._workers[worker].queued.pop(key, None)

    def mark_done(self, worker: W, key: Hashable) -> None:
        """Mark a request as answered, rejected or dropped by ``worker``."""
        self.mark_started(worker, [key])
        self._workers[worker].outstanding.pop(key, None)

    def clear(self) -> None:
        """Forget all requests."""
        for worker in self._workers:
            self._workers[worker] = _WorkerState()
