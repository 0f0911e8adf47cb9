"""HTTP/1.1 connections for many requests at once, as a transport of ``httpx2``.

httpcore's pool iterates over all of its connections, with a system call per idle one, when a request starts or ends,
and its reads and writes pass through several layers with a lock and a timer each. Here a connection is a protocol of
asyncio whose bytes h11 parses, and idle connections are a stack. Errors, timeouts and their messages are httpx's.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from base64 import b64encode
from collections import defaultdict, deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from http.client import responses
from ipaddress import ip_address
from typing import Any, TypeVar

import h11
import httpx2

from swe_infer.providers.socks5 import connect_through

Headers = list[tuple[bytes, bytes]]

_MAX_HEAD_BYTES = 100 << 10
"""Maximum bytes of a response's status line and headers."""
_MAX_UNREAD_BYTES = 1 << 20
"""Maximum received bytes that are not parsed; above it the socket is not read."""
_EVENTS_AT_ONCE = 500
"""Events that are parsed before other tasks of the event loop run: a server may send chunks of one byte."""
_NEXT_ADDRESS_S = 0.25
"""Seconds until a host's next address is tried, too (RFC 8305)."""
_QUIET_S = 60
"""Idle seconds before TCP keep-alive probes: a model may reason for minutes without sending."""
_PORTS = {"http": 80, "https": 443}
_SOCKS_PORT = 1080

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


class Http11Transport(httpx2.AsyncBaseTransport):
    """Sends requests over reused connections, in one event loop.

    Args:
        max_connections: maximum number of connections; further requests wait.
        keep_alive_s: seconds after which an idle connection is not used again.
        context: for TLS, also to a proxy.
        proxy: an HTTP proxy, which opens a tunnel to an encrypted server and forwards the requests to another one; or
            a SOCKS5 proxy.
    """

    def __init__(
        self, max_connections: int, keep_alive_s: float, context: ssl.SSLContext, proxy: httpx2.Proxy | None = None
    ) -> None:
        self._free = asyncio.Semaphore(max_connections)
        self._keep_alive_s = keep_alive_s
        self._context = context
        self._context.set_alpn_protocols(["http/1.1"])
        self._proxy = proxy
        self._is_socks = proxy is not None and proxy.url.scheme.startswith("socks")
        self._proxy_headers: Headers = []
        if proxy is not None and proxy.raw_auth is not None:
            self._proxy_headers = [(b"Proxy-Authorization", b"Basic " + b64encode(b":".join(proxy.raw_auth)))]
        self._idle: dict[tuple[str, bytes, int | None], deque[_Connection]] = defaultdict(deque)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        method, timeouts = request.method.encode("ascii"), request.extensions.get("timeout", {})
        status, headers, body = await self.exchange(
            method, request.url, request.headers.raw, request.stream, timeouts
        )
        return httpx2.Response(status, headers=headers, stream=body)

    async def exchange(
        self,
        method: bytes,
        url: httpx2.URL,
        headers: Headers,
        content: AsyncIterable[bytes],
        timeouts: Mapping[str, float | None],
    ) -> tuple[int, Headers, httpx2.AsyncByteStream]:
        """Sends a request. Returns (status, headers, body); the connection is in use until the body is closed.

        Args:
            timeouts: seconds to ``connect``, ``read`` and ``write``, and to wait for a free connection (``pool``).

        Raises:
            httpx2.TransportError
        """
        if self._free.locked():
            await self._wait_for_another(timeouts.get("pool"))
        else:
            await self._free.acquire()
        try:
            connection = self._idle_connection(url) or await self._connect(url, timeouts)
        except BaseException:
            self._free.release()
            raise
        body = _Body(self, url, connection, timeouts.get("read"))
        target = url.raw_path
        if self._proxy is not None and not self._is_socks and url.scheme == "http":
            target, headers = b"http://" + url.netloc + target, [*self._proxy_headers, *headers]
        try:
            await connection.send(method, target, headers, content, timeouts.get("write"))
            return *await connection.head(timeouts.get("read")), body
        except BaseException:
            await body.aclose()
            raise

    async def aclose(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the event loop closes the sockets

    def release(self, url: httpx2.URL, connection: _Connection) -> None:
        """Keeps a connection for a later request if its response was read to the end, and closes it otherwise."""
        self._free.release()
        idle = self._idle[origin_of(url)]
        if connection.start_next_request():
            idle.append(connection)
        else:
            connection.close()
        if idle and not idle[0].is_fresh(self._keep_alive_s):  # the one that is idle for the longest time
            idle.popleft().close()

    async def _wait_for_another(self, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise httpx2.PoolTimeout("no free connection") from None

    def _idle_connection(self, url: httpx2.URL) -> _Connection | None:
        idle = self._idle[origin_of(url)]
        while idle:
            connection = idle.pop()
            if connection.is_fresh(self._keep_alive_s) and connection.is_open():
                return connection
            connection.close()
        return None

    async def _connect(self, url: httpx2.URL, timeouts: Mapping[str, float | None]) -> _Connection:
        if url.scheme not in _PORTS:
            raise httpx2.UnsupportedProtocol(f"the URL has the scheme {url.scheme!r}, not http or https")
        try:
            async with asyncio.timeout(timeouts.get("connect")):
                if self._proxy is None:
                    return await self._open(url)
                if self._is_socks:
                    return await self._open_through_socks(url, self._proxy)
                connection = await self._open(self._proxy.url)
                if url.scheme == "https":
                    await connection.tunnel(url, self._proxy_headers, self._context)
                return connection
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(str(error)) from error
        except (OSError, UnicodeError) as error:
            raise httpx2.ConnectError(str(error)) from error

    async def _open(self, url: httpx2.URL) -> _Connection:
        """A connection to the host of ``url``."""
        return (await self._create(_Connection, url))[1]

    async def _open_through_socks(self, url: httpx2.URL, proxy: httpx2.Proxy) -> _Connection:
        """A connection to the host of ``url`` through a SOCKS5 proxy."""
        host, answers, connection = url.raw_host.decode("ascii"), asyncio.StreamReader(), _Connection()
        transport, _ = await self._create(lambda: asyncio.StreamReaderProtocol(answers), proxy.url)
        try:
            await connect_through(transport, answers, host, url.port or _PORTS[url.scheme], proxy.raw_auth)
        except BaseException:
            transport.abort()
            raise
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if url.scheme == "https":
            await connection.encrypt(host, self._context)
        return connection

    async def _create(self, protocol: Callable[[], _P], url: httpx2.URL) -> tuple[asyncio.Transport, _P]:
        """A connection to the host of ``url``, and its protocol."""
        host, is_encrypted = url.raw_host.decode("ascii"), url.scheme == "https"
        transport, made = await asyncio.get_running_loop().create_connection(
            protocol,
            host,
            url.port or _PORTS.get(url.scheme, _SOCKS_PORT),
            ssl=self._context if is_encrypted else None,
            server_hostname=host if is_encrypted else None,
            # With a delay, Python 3.11 leaves the socket of a cancelled connection to the garbage collector.
            happy_eyeballs_delay=None if _is_address(host) else _NEXT_ADDRESS_S,
        )
        for option in _tcp_options():
            transport.get_extra_info("socket").setsockopt(*option)
        return transport, made


class _Connection(asyncio.Protocol):
    """One connection. It sends a request, and then parses the response as it is read."""

    def __init__(self) -> None:
        self._parser = _parser()
        self._transport: asyncio.Transport
        self._unread_bytes = self._events = 0
        self._is_reading = self._may_write = True
        self._has_ended = False
        self._error: Exception | None = None
        self._idle_since: float | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._early: h11.Response | None = None
        """The head of a response that came before the request was sent whole."""

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._idle_since is not None:  # nothing was requested
            self._transport.abort()
            return
        self._parser.receive_data(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_UNREAD_BYTES and self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._wake()

    def _end(self, error: Exception | None) -> None:
        if not self._has_ended:
            self._has_ended, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, timeout_s: float | None) -> None:
        """Waits until the event loop calls one of the methods above.

        Raises:
            TimeoutError
        """
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if timeout_s is None:
                await self._waiter
            else:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
        finally:
            self._waiter = None

    # Called for a request.

    def is_fresh(self, keep_alive_s: float) -> bool:
        """Whether a connection has been idle for less than ``keep_alive_s`` seconds."""
        return self._idle_since is not None and time.monotonic() < self._idle_since + keep_alive_s

    def is_open(self) -> bool:
        """Whether the server has neither closed an idle connection nor sent anything over it."""
        if self._has_ended or self._transport.is_closing():
            return False
        poll = select.poll()  # the event loop may not yet have seen that the server closed it
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)

    async def tunnel(self, url: httpx2.URL, headers: Headers, context: ssl.SSLContext) -> None:
        """Makes the proxy, to which this is a connection, connect it to the host of ``url``. It is encrypted then.

        Args:
            headers: for the proxy.

        Raises:
            ProxyError: the proxy refuses.
            OSError: the connection is lost, or cannot be encrypted.
        """
        host = url.raw_host.decode("ascii")
        name = b"[%b]" % url.raw_host if ":" in host else url.raw_host
        target = b"%b:%d" % (name, url.port or _PORTS[url.scheme])
        try:
            await self.send(b"CONNECT", target, [(b"Host", target), *headers], httpx2.ByteStream(b""), None)
            status, _ = await self.head(None)
            if not 200 <= status < 300:
                raise httpx2.ProxyError(f"{status} {responses.get(status, '')}")
            page, _ = self._parser.trailing_data  # a server sends nothing before the handshake
            if page:
                raise httpx2.ProxyError("it answers in place of the server")
        except (httpx2.ProtocolError, httpx2.NetworkError) as error:  # nothing of a request is sent yet
            self.close()
            raise httpx2.ProxyError(str(error)) from error
        except BaseException:
            self.close()
            raise
        await self.encrypt(host, context)

    async def encrypt(self, host: str, context: ssl.SSLContext) -> None:
        """Encrypts a connection through a proxy.

        Raises:
            OSError: it is lost, or cannot be encrypted.
        """
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self._transport, self, context, server_hostname=host
            )
            if transport is None:
                raise ConnectionError("the proxy closed the connection before it was encrypted")
        except TypeError as error:  # how some versions of Python 3.11 and 3.12 fail over an encrypted connection
            self.close()
            raise ConnectionError(str(error.__context__)) from error
        except BaseException:
            self.close()
            raise
        self._transport, self._parser = transport, _parser()

    async def send(
        self, method: bytes, target: bytes, headers: Headers, content: AsyncIterable[bytes], timeout_s: float | None
    ) -> None:
        """Sends a request. A broken connection is no error: the server may have responded before it closed it. A
        server that refuses a request before it has read all of it is sent no more.

        Raises:
            WriteTimeout, LocalProtocolError, RemoteProtocolError
        """
        self._idle_since = None
        try:
            head = self._parser.send(h11.Request(method=method, target=target, headers=headers))
            async for part in content:
                data = self._parser.send(h11.Data(data=part))
                self._transport.write(head + data if head else data)  # usually all of the request at once
                head = b""
                while not self._may_write and not self._has_ended and not self._is_refused():
                    await self._wait(timeout_s)
                if self._has_ended or self._is_refused():
                    return
            self._transport.write(head + (self._parser.send(h11.EndOfMessage()) or b""))
        except h11.LocalProtocolError as error:
            raise httpx2.LocalProtocolError(str(error)) from error
        except h11.RemoteProtocolError as error:
            raise httpx2.RemoteProtocolError(str(error)) from error
        except TimeoutError as error:
            raise httpx2.WriteTimeout(str(error)) from error

    def _is_refused(self) -> bool:
        """Whether the response has come already, and is an error. Raises h11.RemoteProtocolError."""
        while self._early is None and self._unread_bytes:
            event = self._parser.next_event()
            if isinstance(event, h11.Response):
                self._early = event
            elif not isinstance(event, h11.InformationalResponse):
                break
        return self._early is not None and self._early.status_code >= 300

    async def head(self, timeout_s: float | None) -> tuple[int, Headers]:
        """(status, headers) of the response. Raises the errors of :meth:`event`."""
        if (early := self._early) is not None:
            self._early = None
            return early.status_code, early.headers.raw_items()
        while not isinstance(event := await self.event(timeout_s), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise httpx2.RemoteProtocolError("Server disconnected without sending a response.")
        return event.status_code, event.headers.raw_items()

    async def event(self, timeout_s: float | None) -> Any:
        """The next event of h11.

        Raises:
            ReadTimeout, ReadError, RemoteProtocolError
        """
        self._events += 1
        if self._events % _EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            while (event := self._parser.next_event()) is h11.NEED_DATA:
                if self._error is not None:
                    raise httpx2.ReadError(str(self._error)) from self._error
                if self._has_ended:
                    if self._parser.their_state is h11.SEND_RESPONSE:
                        raise httpx2.RemoteProtocolError("Server disconnected without sending a response.")
                    self._parser.receive_data(b"")
                    continue
                self._unread_bytes = 0
                if not self._is_reading:
                    self._is_reading = True
                    self._transport.resume_reading()
                await self._wait(timeout_s)
        except h11.RemoteProtocolError as error:
            raise httpx2.RemoteProtocolError(str(error)) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error)) from error
        return event

    def start_next_request(self) -> bool:
        """Makes the connection idle; False if it cannot be used again."""
        if self._has_ended or self._parser.our_state is not h11.DONE or self._parser.their_state is not h11.DONE:
            return False
        if self._parser.trailing_data[0]:
            return False
        self._parser.start_next_cycle()
        self._idle_since = time.monotonic()
        return True

    def close(self) -> None:
        self._transport.abort()


class _Body(httpx2.AsyncByteStream):
    """The body of a response. Its connection is in use until the body is closed."""

    def __init__(
        self, transport: Http11Transport, url: httpx2.URL, connection: _Connection, timeout_s: float | None
    ) -> None:
        self._transport, self._url, self._timeout_s = transport, url, timeout_s
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None:
            event = await self._connection.event(self._timeout_s)
            if not isinstance(event, h11.Data):
                return
            yield bytes(event.data)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.release(self._url, connection)


def _parser() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)


def origin_of(url: httpx2.URL) -> tuple[str, bytes, int | None]:
    """Scheme, host and port."""
    return url.scheme, url.raw_host, url.port


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _tcp_options() -> list[tuple[int, int, int]]:
    """Socket options that make TCP probe idle connections."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", _QUIET_S), ("TCP_KEEPINTVL", _QUIET_S), ("TCP_KEEPCNT", 5)):
        if (option := getattr(socket, name, None)) is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    return options
