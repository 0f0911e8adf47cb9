"""The event loop of a run, when many answers have come at once."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

from swe_infer.api.dispatch import run_fairly


def test_a_timer_does_not_wait_for_all_answers_that_have_come_and_none_of_them_is_missed() -> None:
    order: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            for _ in range(50):
                here, there = (stack.enter_context(end) for end in socket.socketpair())
                there.send(b"x")
                loop.add_reader(here, answered, loop, here)
            loop.call_later(0.0, order.append, "timer")
            while len(order) < 51:  # noqa: ASYNC110 - a turn of the loop each
                await asyncio.sleep(0)

    def answered(loop: asyncio.AbstractEventLoop, end: socket.socket) -> None:
        loop.remove_reader(end)
        order.append("answer")

    run_fairly(main())
    assert order.index("timer") < 40
    assert order.count("answer") == 50


def test_the_requests_that_wait_for_the_places_of_answers_are_sent_before_further_answers_are_read() -> None:
    order: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            for _ in range(50):
                here, there = (stack.enter_context(end) for end in socket.socketpair())
                there.send(b"x")
                loop.add_reader(here, answered, loop, here)
            while len(order) < 100:  # noqa: ASYNC110 - a turn of the loop each
                await asyncio.sleep(0)

    def answered(loop: asyncio.AbstractEventLoop, end: socket.socket) -> None:
        loop.remove_reader(end)
        order.append("answer")
        loop.call_soon(loop.call_soon, loop.call_soon, order.append, "request")

    run_fairly(main())
    answers = [index for index, what in enumerate(order) if what == "answer"]
    ahead = [order[:index].count("answer") - order[:index].count("request") for index in answers]
    assert max(ahead) < 8


def test_connections_that_always_have_data_do_not_keep_others_from_being_read() -> None:
    read: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            for number in range(20):
                here, there = (stack.enter_context(end) for end in socket.socketpair())
                there.send(b"x")
                loop.add_reader(here, read.append, number)  # its byte stays there
            for _ in range(100):
                await asyncio.sleep(0)

    run_fairly(main())
    assert set(read) == set(range(20))
