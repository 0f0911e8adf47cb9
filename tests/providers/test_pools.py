"""Connections over several pools, where a provider is asked by many requests at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx2

from swe_infer.providers.pools import transport_settings
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
