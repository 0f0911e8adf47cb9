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

_PASSES_AHEAD = 2
"""Passes for which an engine holds prompts that it has not begun: while one runs, the next is on its way."""


@dataclass(slots=True)
class _WorkerState:
    outstanding: dict[Hashable, GenerationRequest] = field(default_factory=dict)
    ahead: dict[Hashable, int] = field(default_factory=dict)
    """Tokens of prompts that are handed over and not begun."""
    ahead_tokens: int = 0
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
        self._most_ahead = _PASSES_AHEAD * max_batch_tokens
        self._seats: dict[W, _WorkerState] = {}

    def join(self, worker: W) -> None:
        """From now on ``worker`` is handed requests."""
        self._seats[worker] = _WorkerState()

    def leave(self, worker: W) -> list[GenerationRequest]:
        """``worker`` is gone. Returns what it has not answered, which is for the others."""
        seat = self._seats.pop(worker, None)
        return list(seat.outstanding.values()) if seat else []

    def busy(self) -> list[W]:
        """Who has something to answer."""
        return [worker for worker, seat in self._seats.items() if seat.outstanding]

    def outstanding(self) -> list[Hashable]:
        """The keys of what was handed out and is not done."""
        return [key for seat in self._seats.values() for key in seat.outstanding]

    def choose(self, request: GenerationRequest) -> W | None:
        """Who should have ``request``; None: nobody has room for it yet.

        The samples of a prompt go where its first one went, so that the prefix cache there serves them, unless that
        engine is full while another has nothing to do. Otherwise the one with the least outstanding tokens gets it.
        """
        open_seats = {worker: seat for worker, seat in self._seats.items() if self._has_slot(seat)}
        alike = [worker for worker, seat in self._seats.items() if seat.prompt == request.prompt_ids]
        for worker in alike:
            if worker in open_seats:
                return worker
        if alike:
            return next((worker for worker, seat in open_seats.items() if not seat.outstanding), None)
        free = [worker for worker, seat in open_seats.items() if seat.ahead_tokens < self._most_ahead]
        return min(free, key=lambda worker: self._seats[worker].load, default=None)

    def hand(self, request: GenerationRequest, worker: W) -> bool:
        """``worker`` has it. Returns whether the request's source must be sent, which samples of a prompt share."""
        seat = self._seats[worker]
        tokens = 1 if seat.prompt == request.prompt_ids else len(request.prompt_ids)
        seat.outstanding[request.key] = request
        seat.ahead[request.key] = tokens
        seat.ahead_tokens += tokens
        seat.load += _size(request)
        seat.prompt = request.prompt_ids
        if request.drafter == "none" or seat.source is request.source:
            return False
        seat.source = request.source
        return True

    def begun(self, worker: W, keys: Iterable[Hashable]) -> None:
        """``worker`` has begun these, so that it has room for others."""
        seat = self._seats[worker]
        for key in keys:
            seat.ahead_tokens -= seat.ahead.pop(key, 0)

    def done(self, worker: W, key: Hashable) -> None:
        """``worker`` has answered or refused it, or will not begin it."""
        seat = self._seats[worker]
        self.begun(worker, [key])
        request = seat.outstanding.pop(key, None)
        if request is not None:
            seat.load -= _size(request)

    def clear(self) -> None:
        """Nobody has anything any more."""
        for worker in self._seats:
            self._seats[worker] = _WorkerState()

    def _has_slot(self, seat: _WorkerState) -> bool:
        return len(seat.outstanding) < self._max_sequences


def _size(request: GenerationRequest) -> int:
    return len(request.prompt_ids) + request.rules.max_new_tokens
