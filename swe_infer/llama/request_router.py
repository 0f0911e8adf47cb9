"""Who gets the next request, among engines that work at paces of their own.

Nothing is dealt out ahead: an engine holds what it is answering, and besides it about as many tokens of prompts as
its next passes take. Everything else waits here for whoever has room first, so one engine's long answers, or its slow
machine, hold nothing up that another could do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from swe_infer.llama.drafting import DraftSource
from swe_infer.llama.sequence import GenerationRequest

W = TypeVar("W")

_STEPS_AHEAD = 2
"""Passes for which an engine holds prompts that it has not begun: while one runs, the next is on its way."""


@dataclass(slots=True)
class _WorkerState:
    outstanding: dict[Hashable, GenerationRequest] = field(default_factory=dict)
    queued: dict[Hashable, int] = field(default_factory=dict)
    """Tokens of prompts that are handed over and not begun."""
    queued_tokens: int = 0
    load: int = 0
    """Tokens of the prompts and outputs that are outstanding."""
    prompt: tuple[int, ...] | None = None
    source: DraftSource | None = None
    """That of the last request with a drafter."""


class RequestRouter(Generic[W]):
    """The requests that each engine has, and who gets the next one.

    Args:
        max_sequences: answers that an engine has in the making at once.
        max_batch_tokens: tokens of one of its passes.
    """

    def __init__(self, max_sequences: int, max_batch_tokens: int) -> None:
        self._max_sequences = max_sequences
        self._max_queued_tokens = _STEPS_AHEAD * max_batch_tokens
        self._workers: dict[W, _WorkerState] = {}

    def add_worker(self, worker: W) -> None:
        """From now on ``worker`` is handed requests."""
        self._workers[worker] = _WorkerState()

    def remove_worker(self, worker: W) -> list[GenerationRequest]:
        """``worker`` is gone. Returns what it has not answered, which is for the others."""
        state = self._workers.pop(worker, None)
        return list(state.outstanding.values()) if state else []

    def busy_workers(self) -> list[W]:
        """Who has something to answer."""
        return [worker for worker, state in self._workers.items() if state.outstanding]

    def outstanding_keys(self) -> list[Hashable]:
        """The keys of what was handed out and is not done."""
        return [key for state in self._workers.values() for key in state.outstanding]

    def choose(self, request: GenerationRequest) -> W | None:
        """Who should have ``request``; None: nobody has room for it yet.

        The samples of a prompt go where its first one went, so that the prefix cache there serves them, unless that
        engine is full while another has nothing to do. Otherwise the one with the least outstanding tokens gets it.
        """
        available = {worker: state for worker, state in self._workers.items() if self._has_slot(state)}
        same_prompt = [worker for worker, state in self._workers.items() if state.prompt == request.prompt_ids]
        for worker in same_prompt:
            if worker in available:
                return worker
        if same_prompt:
            return next((worker for worker, state in available.items() if not state.outstanding), None)
        free = [worker for worker, state in available.items() if state.queued_tokens < self._max_queued_tokens]
        return min(free, key=lambda worker: self._workers[worker].load, default=None)

    def assign(self, request: GenerationRequest, worker: W) -> bool:
        """``worker`` has it. Returns whether the request's source must be sent, which samples of a prompt share."""
        state = self._workers[worker]
        tokens = 1 if state.prompt == request.prompt_ids else len(request.prompt_ids)
        state.outstanding[request.key] = request
        state.queued[request.key] = tokens
        state.queued_tokens += tokens
        state.load += _size(request)
        state.prompt = request.prompt_ids
        if request.drafter == "none" or state.source is request.source:
            return False
        state.source = request.source
        return True

    def mark_started(self, worker: W, keys: Iterable[Hashable]) -> None:
        """``worker`` has begun these, so that it has room for others."""
        state = self._workers[worker]
        for key in keys:
            state.queued_tokens -= state.queued.pop(key, 0)

    def mark_done(self, worker: W, key: Hashable) -> None:
        """``worker`` has answered or refused it, or will not begin it."""
        state = self._workers[worker]
        self.mark_started(worker, [key])
        request = state.outstanding.pop(key, None)
        if request is not None:
            state.load -= _size(request)

    def clear(self) -> None:
        """Nobody has anything any more."""
        for worker in self._workers:
            self._workers[worker] = _WorkerState()

    def _has_slot(self, state: _WorkerState) -> bool:
        return len(state.outstanding) < self._max_sequences


def _size(request: GenerationRequest) -> int:
    return len(request.prompt_ids) + request.stop_params.max_new_tokens
