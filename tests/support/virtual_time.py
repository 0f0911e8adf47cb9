"""An event loop whose clock moves only when nothing is left to do: what takes minutes is over at once, and nothing
depends on how busy the machine is."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["VirtualLoop", "run_virtual"]

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Real callbacks, tasks and timers under a clock that begins at 1,000 s and jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Skipping(self))

    def time(self) -> float:
        return self.now


class _Skipping(selectors.SelectSelector):
    """Where the loop would wait for so many seconds, its clock moves on by them."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("everything waits for something that never comes")
            self._loop.now += timeout
        return events


def run_virtual(scenario: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)
