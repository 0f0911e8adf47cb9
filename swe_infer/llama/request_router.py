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
    load: int = 0
    """Prompt tokens and maximum output tokens of outstanding requests."""
    alone: bool = False
    """Whether its request must not share it."""
    done: int = 0
    prompt: tuple[int, ...] = ()
    source: DraftSource | None = None
    """The source of the last request that uses one."""

    def has_prompt(self, prompt: tuple[int, ...]) -> bool:
        """Whether the last request had this prompt. Most prompts begin alike, so lengths are compared first."""
        return len(self.prompt) == len(prompt) and self.prompt == prompt


class RequestRouter(Generic[W]):
    """Tracks the requests of each engine and chooses an engine for the next one.

    Args:
        max_sequences: sequences that an engine decodes concurrently.
        max_batch_tokens: tokens of a step.
    """

    def __init__(self, max_sequences: int, max_batch_tokens: int) -> None:
        self._max_sequences = max_sequences
        self._max_queued_tokens = _STEPS_AHEAD * max_batch_tokens
        self.workers: dict[W, _WorkerState] = {}

    def add_worker(self, worker: W) -> None:
        self.workers[worker] = _WorkerState()

    def remove_worker(self, worker: W) -> list[GenerationRequest]:
        """Remove a worker. Returns its unanswered requests, for the others."""
        return list(self.workers.pop(worker, _WorkerState()).outstanding.values())

    def busy_workers(self) -> list[W]:
        """The workers with outstanding requests."""
        return [worker for worker, state in self.workers.items() if state.outstanding]

    def choose(self, request: GenerationRequest, *, alone: bool = False) -> W | None:
        """Return the worker for ``request``; None if no worker has capacity yet.

        Samples of a prompt go to the worker of the first one, whose prefix cache has the prompt, unless that worker
        is full while another is idle. Otherwise the worker with the least outstanding tokens is chosen. A request
        that runs ``alone`` gets an idle worker, preferably one that has completed others.
        """
        states = self.workers
        idle = [worker for worker, state in states.items() if not state.outstanding]
        if alone:
            return max(idle, key=lambda worker: states[worker].done, default=None)
        limits = {worker: 1 if state.alone else self._max_sequences for worker, state in states.items()}
        available = [worker for worker, limit in limits.items() if len(states[worker].outstanding) < limit]
        same_prompt = [worker for worker, state in states.items() if state.has_prompt(request.prompt_ids)]
        if same_prompt:
            return next((worker for worker in same_prompt if worker in available), next(iter(idle), None))
        free = [worker for worker in available if sum(states[worker].queued.values()) < self._max_queued_tokens]
        return min(free, key=lambda worker: states[worker].load, default=None)

    def assign(self, request: GenerationRequest, worker: W, *, alone: bool = False) -> bool:
        """Assign ``request`` to ``worker``. Returns whether its source must be sent, which samples of a prompt
        share."""
        state = self.workers[worker]
        state.outstanding[request.key] = request
        state.queued[request.key] = 1 if state.has_prompt(request.prompt_ids) else len(request.prompt_ids)
        state.load += _tokens(request)
        state.alone = alone
        state.prompt = request.prompt_ids
        if not request.uses_source or state.source is request.source:
            return False
        state.source = request.source
        return True

    def mark_started(self, worker: W, keys: Iterable[Hashable]) -> None:
        """Mark requests as started, which frees queue capacity of ``worker``."""
        for key in keys:
            self.workers[worker].queued.pop(key, None)

    def mark_done(self, worker: W, key: Hashable) -> GenerationRequest | None:
        """Remove a request that ``worker`` has answered, rejected or dropped. Returns None if it was abandoned."""
        self.mark_started(worker, [key])
        state = self.workers[worker]
        request = state.outstanding.pop(key, None)
        if request is not None:
            state.load -= _tokens(request)
            state.done += 1
        return request

    def clear(self) -> None:
        """Forget all requests."""
        self.workers = {worker: _WorkerState() for worker in self.workers}


def _tokens(request: GenerationRequest) -> int:
    return len(request.prompt_ids) + request.stop_params.max_new_tokens
