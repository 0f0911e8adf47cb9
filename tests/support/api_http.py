"""A small HTTP/1.1 server core for the loopback API server: keep-alive, chunked bodies, and control over the socket.

A general web framework would hide what the tests need most: a connection reset in mid-answer, a body cut in half, and
thousands of requests a second on one core.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

__all__ = ["Handler", "HttpRequest", "Peer", "serving"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request as received; header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Peer:
    """The client's side of one request: the handler answers through it, in whole, in chunks, or not at all."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.gone = asyncio.Event()
        """Set when the client has closed the connection."""
        self.answered = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    def send(self, status: int, headers: Mapping[str, str], body: bytes) -> bool:
        """Send a whole answer. Returns whether the connection was still open."""
        if self.gone.is_set() or self._transport.is_closing():
            return False
        self._transport.write(_head(status, {**headers, "content-length": str(len(body))}) + body)
        self.answered.set()
        return True

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer that is sent in chunks."""
        if not self.gone.is_set():
            self._transport.write(_head(status, {**headers, "transfer-encoding": "chunked"}))

    async def chunk(self, data: bytes) -> bool:
        if self.gone.is_set() or self._transport.is_closing():
            return False
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._drained.wait()
        return True

    def end(self) -> bool:
        if self.gone.is_set() or self._transport.is_closing():
            return False
        self._transport.write(b"0\r\n\r\n")
        self.answered.set()
        return True

    def cut(self, status: int, headers: Mapping[str, str], body: bytes, *, promised: int) -> None:
        """Send part of an answer that promises ``promised`` bytes, then close."""
        if not self.gone.is_set():
            self._transport.write(_head(status, {**headers, "content-length": str(promised)}) + body)
        self._transport.close()

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        """Break the connection with a TCP reset instead of an orderly close."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def pause(self) -> None:
        self._drained.clear()

    def resume(self) -> None:
        self._drained.set()


Handler = Callable[[HttpRequest, Peer], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    """Listen on loopback within the block, which gets the port; requests in progress are cancelled at its end."""
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(handler, tasks), "127.0.0.1", port, backlog=4096)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Connection(asyncio.Protocol):
    """One connection. Requests on it are answered one after the other, as HTTP/1.1 requires."""

    def __init__(self, handler: Handler, tasks: set[asyncio.Task[None]]) -> None:
        self._handler = handler
        self._tasks = tasks
        self._buffer = bytearray()
        self._busy = False
        self._peer: Peer | None = None
        self._transport: asyncio.Transport | None = None
        self._wanted = 0  # bytes that must arrive before the next attempt to parse

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer is not None:
            self._peer.gone.set()
            self._peer.resume()

    def pause_writing(self) -> None:
        if self._peer is not None:
            self._peer.pause()

    def resume_writing(self) -> None:
        if self._peer is not None:
            self._peer.resume()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy and len(self._buffer) >= self._wanted:
            self._next()

    def _next(self) -> None:
        assert self._transport is not None
        request = self._parse()
        if request is None or self._transport.is_closing():
            return
        self._busy = True
        self._wanted = 0
        self._peer = Peer(self._transport)
        task = asyncio.get_running_loop().create_task(self._run(request, self._peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, request: HttpRequest, peer: Peer) -> None:
        assert self._transport is not None
        try:
            await self._handler(request, peer)
        except BaseException:
            self._transport.abort()  # a bug of the server: do not leave the client waiting
            raise
        if not peer.answered.is_set() or request.headers.get("connection", "").lower() == "close":
            self._transport.close()
            return
        self._busy = False
        if self._buffer:
            self._next()

    def _parse(self) -> HttpRequest | None:
        """The next request in the buffer, or None while it is incomplete."""
        assert self._transport is not None
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        lines = self._buffer[:head_end].decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        start = head_end + 4
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parsed = _dechunk(self._buffer, start)
            if parsed is None:
                return None
            body, end = parsed
        else:
            end = start + int(headers.get("content-length", "0"))
            if len(self._buffer) < end:
                self._wanted = end
                if headers.get("expect", "").lower() == "100-continue":
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return None
            body = bytes(self._buffer[start:end])
        del self._buffer[:end]
        path, _, query = target.partition("?")
        return HttpRequest(method, unquote(path), dict(parse_qsl(query)), headers, body)


def _dechunk(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    body = bytearray()
    position = start
    while True:
        line_end = buffer.find(b"\r\n", position)
        if line_end < 0:
            return None
        size = int(buffer[position:line_end].split(b";")[0], 16)
        data_start = line_end + 2
        if len(buffer) < data_start + size + 2:
            return None
        if size == 0:
            return bytes(body), data_start + 2
        body += buffer[data_start : data_start + size]
        position = data_start + size + 2


_KNOWN = frozenset(HTTPStatus)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    phrase = HTTPStatus(status).phrase if status in _KNOWN else "Of the vendor's own"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")
