"""Several small connection pools instead of a large one, whose upkeep costs every request a look at each of them.

httpcore's pool goes through all of its connections, and asks the kernel about each idle one, when a request begins or
ends. At 1,000 connections that is milliseconds of processor time for one request.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

from swe_infer.providers.environment import Proxy

_ONE_POOL = 64
"""So many connections are kept in one pool."""
_POOL = 4
"""Connections of one pool, where there are more."""
_MOST_POOLS = 1024
"""Above that, pools take more connections each: a process has files for no more."""

_QUIET_S = 60
"""Seconds without a byte after which the kernel asks whether the other side is still there: models think for long."""


def transport_settings(
    max_concurrency: int, keep_alive_s: float, context: ssl.SSLContext | None = None, proxy: Proxy | None = None
) -> dict[str, Any]:
    """Settings of an ``httpx2.AsyncClient`` for so many requests at once.

    Args:
        context: for TLS; None: the system's.
        proxy: through which requests go, with one pool; None: straight. The client itself looks for none in the
            environment: it would refuse one that this address has no use for.
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
        """An answer's body, and what is to be done when it has been read: until then its connection is taken."""

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
        """Sends each request through the pool that has the fewest under way."""

        def __init__(self, count: int) -> None:
            # Any pool may take more than its share, so that none makes a request wait while others have room.
            limits = _limits(max_concurrency, keep_alive_s)
            self._pools = [
                httpx2.AsyncHTTPTransport(limits=limits, verify=verify, socket_options=_socket_options())
                for _ in range(count)
            ]
            self._under_way = [0] * count

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            index = min(range(len(self._pools)), key=self._under_way.__getitem__)
            self._under_way[index] += 1
            over = False

            def done() -> None:
                nonlocal over
                self._under_way[index] -= not over
                over = True

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

    return {"transport": Pools(min(-(-max_concurrency // _POOL), _MOST_POOLS)), "trust_env": False}


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
