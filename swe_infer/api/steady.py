"""An event loop that stays on time under a thousand requests: little garbage collection, little work in one turn."""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

_COLLECT_AFTER = (2_000, 5, 1_000)
"""Thresholds of :func:`gc.set_threshold`: few objects at a time, and all of them after ten million new ones."""
_EVENTS_IN_A_TURN = 8


def run_steadily(main: Coroutine[Any, Any, None]) -> None:
    """As :func:`asyncio.run`. Where many answers have come at once, timers get their turn between them."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_FewAtOnce())) as runner:
        runner.run(main)


@contextmanager
def collected_seldom() -> Iterator[None]:
    """Keep the garbage collector from going through everything while answers wait.

    A full collection holds the event loop for a quarter of a second where a thousand requests are in flight, and came
    every few hundred answers. What was imported and made so far is taken out of its sight. What a request makes is
    freed by its reference counts, but for what hangs on an error: that dies young.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class _FewAtOnce(selectors.DefaultSelector):
    """Tells of few files at a time. What is left out is still ready at the next look, and ahead of what comes later.

    A process that was given no processor for a while finds hundreds of answers; in one turn of the loop they would
    keep it from its timers for a second.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout)[:_EVENTS_IN_A_TURN]
