"""Connections over several pools, where a provider is asked by many requests at once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.pools import transport_settings
from swe_infer.types import ApiModel, Decoding, Prompt, Request
from tests.support.api_server import ApiServer

BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Fix it."}], "stream": True}


def test_an_answer_that_is_still_being_read_counts_where_the_next_request_is_sent(server: ApiServer) -> None:
    """A streamed answer's headers come at once, but its connection is taken until the last piece is there."""

    async def open_answers() -> list[list[int]]:
        settings = transport_settings(max_concurrency=66, keep_alive_s=60)
        async with httpx2.AsyncClient(**settings) as client:
            return [await at_once(client, 34, settings["transport"]) for _ in range(2)]

    async def at_once(client: httpx2.AsyncClient, count: int, transport: Any) -> list[int]:
        async with AsyncExitStack() as stack:
            for _ in range(count):
                url = f"{server.openai_url}/chat/completions"
                response = await stack.enter_async_context(client.stream("POST", url, json=BODY))
                assert response.status_code == 200
            return [len(pool._pool.connections) for pool in transport._pools]

    assert asyncio.run(open_answers()) == [[2] * 17, [2] * 17]


def test_the_sdk_prepares_one_request_of_many(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    """Also before it is answered: a run begins with as many requests as there may be at once."""
    server.latency_s = 0.2
    provider = OpenAIChat(base_url=server.openai_url, api_key_env=None, pricing_id="free")

    async def answer(number: int) -> str:
        request = Request(f"i-{number}", 0, Prompt(None, f"Fix {number}."), Decoding())
        return (await provider.complete(request, ApiModel(name="gpt-4o"), timeout_s=60.0)).text

    async def answers() -> list[str]:
        await provider.open()
        first = asyncio.create_task(answer(0))
        while not server.in_flight:  # noqa: ASYNC110 - set in the server's thread
            await asyncio.sleep(0.001)
        found = await asyncio.gather(first, *map(answer, range(1, 8)))
        await provider.close()
        return found

    with caplog.at_level(logging.DEBUG, "openai"):
        assert all(asyncio.run(answers()))
    assert sum(record.message.startswith("Building HTTP request") for record in caplog.records) == 1
    assert len({str(sorted(exchange.headers)) for exchange in server.log.exchanges[-8:]}) == 1
