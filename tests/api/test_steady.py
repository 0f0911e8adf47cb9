"""The event loop of a run, when many answers have come at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from swe_infer.api.dispatch import run_fairly


@contextmanager
def ready_connections(count: int, on_data: Callable[[socket.socket], None]) -> Iterator[None]:
    """Connections that have data. The event loop calls ``on_data`` for each, until its reader is removed."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for _ in range(count):
            here, there = (stack.enter_context(end) for end in socket.socketpair())
            there.send(b"x")
            loop.add_reader(here, on_data, here)
        yield


def read_answer(order: list[str], end: socket.socket) -> None:
    asyncio.get_running_loop().remove_reader(end)
    order.append("answer")


def test_a_timer_does_not_wait_for_all_answers_that_have_come_and_none_of_them_is_missed() -> None:
    order: list[str] = []

    async def main() -> None:
        with ready_connections(50, partial(read_answer, order)):
            asyncio.get_running_loop().call_later(0.0, order.append, "timer")
            while len(order) < 51:  # noqa: ASYNC110 - a turn of the loop each
                await asyncio.sleep(0)

    run_fairly(main())
    assert order.index("timer") < 40
    assert order.count("answer") == 50


def test_the_requests_that_wait_for_the_places_of_answers_are_sent_before_further_answers_are_read() -> None:
    order: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def answered(end: socket.socket) -> None:
            read_answer(order, end)
            loop.call_soon(loop.call_soon, loop.call_soon, order.append, "request")

        with ready_connections(50, answered):
            while len(order) < 100:  # noqa: ASYNC110 - a turn of the loop each
                await asyncio.sleep(0)

    run_fairly(main())
    answers = [index for index, what in enumerate(order) if what == "answer"]
    ahead = [order[:index].count("answer") - order[:index].count("request") for index in answers]
    assert max(ahead) < 8


def test_connections_that_always_have_data_do_not_keep_others_from_being_read() -> None:
    read: list[int] = []

    async def main() -> None:
        with ready_connections(20, lambda end: read.append(end.fileno())):  # the data stays there
            for _ in range(100):
                await asyncio.sleep(0)

    run_fairly(main())
    assert len(set(read)) == 20
