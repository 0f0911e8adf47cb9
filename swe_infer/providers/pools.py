"""Several small connection pools instead of a large one.

httpcore's pool iterates over all of its connections, with a system call per idle one, when a request starts or ends.
At 1,000 connections this costs milliseconds of processor time per request.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

from swe_infer.providers.environment import Proxy

_ONE_POOL = 64
"""Up to this many connections, one pool is used."""
_POOL = 4
"""Connections per pool above that."""
_MAX_POOLS = 1024
"""Above this number of pools, each has more connections: the file descriptors of a process are limited."""

_QUIET_S = 60
"""Idle seconds before TCP keep-alive probes: models may think for long without sending."""


def transport_settings(
    max_concurrency: int, keep_alive_s: float, context: ssl.SSLContext | None = None, proxy: Proxy | None = None
) -> dict[str, Any]:
    """Settings of an ``httpx2.AsyncClient`` for ``max_concurrency`` requests at once.

    Args:
        context: for TLS; None: the system's.
        proxy: used with one pool; None: no proxy. The client does not read proxies from the environment, because it
            would refuse an invalid one that this address does not use.
    """
    import httpx2

    verify = context or httpx2.create_ssl_context()
    if max_concurrency <= _ONE_POOL or proxy is not None:
        through = None
        if proxy is not None:
            own = verify if proxy.scheme == "https" else None
            through = httpx2.Proxy(proxy.url, ssl_context=own)
        transport = httpx2.AsyncHTTPTransport(
            limits=_limits(max_concurrency, keep_alive_s),
            verify=verify,
            proxy=through,
            socket_options=_socket_options(),
        )
        return {"transport": transport, "trust_env": False}

    class Counted(httpx2.AsyncByteStream):
        """A response body that calls ``done`` when it is closed: until then its connection is in use."""

        def __init__(self, stream: httpx2.AsyncByteStream, done: Callable[[], None]) -> None:
            self._stream, self._done = stream, done

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self._stream:
                yield part

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                self._done()

    class Pools(httpx2.AsyncBaseTransport):
        """Sends each request through the pool with the fewest in flight."""

        def __init__(self, count: int) -> None:
            # No pool has a smaller limit, so that a request never waits for one while others are idle.
            limits = _limits(max_concurrency, keep_alive_s)
            self._pools = [
                httpx2.AsyncHTTPTransport(limits=limits, verify=verify, socket_options=_socket_options())
                for _ in range(count)
            ]
            self._in_flight = [0] * count

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            index = min(range(len(self._pools)), key=self._in_flight.__getitem__)
            self._in_flight[index] += 1
            is_done = False

            def done() -> None:
                nonlocal is_done
                self._in_flight[index] -= not is_done
                is_done = True

            try:
                response = await self._pools[index].handle_async_request(request)
            except BaseException:
                done()
                raise
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = Counted(response.stream, done)
            return response

        async def aclose(self) -> None:
            for pool in self._pools:
                await pool.aclose()

    return {"transport": Pools(min(-(-max_concurrency // _POOL), _MAX_POOLS)), "trust_env": False}


def _limits(connections: int, keep_alive_s: float) -> Any:
    import httpx2

    return httpx2.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=keep_alive_s
    )


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", _QUIET_S), ("TCP_KEEPINTVL", _QUIET_S), ("TCP_KEEPCNT", 5)):
        if (option := getattr(socket, name, None)) is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    return options
