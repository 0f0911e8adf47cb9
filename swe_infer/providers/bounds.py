"""Bounds on what a server may send: bytes are counted while they are read, and after they are decompressed.

An answer is read whole, an error's body is cut, a stream is bounded by each of its events and in all, and a file of a
batch's results is read line by line. ``docs/faults.md`` says what becomes of a request whose answer passes a bound.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

_MIB = 1 << 20

WHOLE_BYTES = 32 * _MIB
"""Of a body that is read as a whole: an answer, a batch, a page of a list. 128,000 tokens take less than one MiB."""
ERROR_BYTES = _MIB
"""Of the body of an HTTP error, which is read no further: its status counts."""
STREAM_BYTES = 128 * _MIB
"""Of a streamed answer in all. An event of one token takes some 350 bytes, and 128,000 of them 45 MB."""
EVENT_BYTES = 32 * _MIB
"""Of one event of a stream: the last one may hold the whole answer."""
EVENT_LINES = 1000
"""Of one event of a stream. Vendors send two or three."""
MOST_VALUES = 2_000_000
"""In one body, event or line of JSON, by its brackets and commas: an empty list of two bytes takes 64 in memory."""
LINE_BYTES = 32 * _MIB
"""Of one line of a batch's results, which holds one answer."""
FILE_BYTES = 64 << 30
"""Of a file of a batch's results, of which one line is held at a time."""

_LARGE_BYTES = _MIB
_LARGE_AT_ONCE = 4
"""So many bodies may be longer than ``_LARGE_BYTES`` at once; others wait, and with them their servers."""
_BEGINNING = 4096
"""Bytes of a line that passes its bound that are kept."""
_OF_BODIES = ("content-encoding", "content-length", "transfer-encoding")
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class BodyTooLarge(Exception):
    """A body passes a bound, which the message names."""


def bounded(transport: Any) -> Any:
    """An ``httpx2`` transport that sends through ``transport``, and whose responses bound what is read of them.

    A response is read whole, up to ``WHOLE_BYTES``; whoever reads it in parts says so by its ``read_in_parts``.
    Reading on raises BodyTooLarge. The body of an error ends at ``ERROR_BYTES`` instead.
    """
    import httpx2

    large = asyncio.Semaphore(_LARGE_AT_ONCE)

    class Response(httpx2.Response):
        _bound = WHOLE_BYTES
        _is_whole = True
        _has_events = False
        _received = 0

        def read_in_parts(self, bound: int, *, has_events: bool = False) -> None:
            """Bound it by ``bound`` bytes, of which the reader holds a part at a time.

            Args:
                has_events: it consists of server-sent events, which are bounded one by one.
            """
            self._bound, self._is_whole, self._has_events = bound, False, has_events

        @property
        def charset_encoding(self) -> None:
            """None, which stands for UTF-8: a server could name a codec that makes no text."""

        async def aiter_raw(self, chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
            # What the decoder drops, such as bytes behind the end of a compressed body, counts here alone.
            async with aclosing(super().aiter_raw(chunk_size)) as parts:
                async for part in parts:
                    self._received += len(part)
                    if self._received > self._limit():
                        if self.is_success:
                            raise BodyTooLarge(_told(self._limit()))
                        return
                    yield part

        async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
            total, is_large = 0, False
            events = _Events() if self._has_events else None
            try:
                async with aclosing(super().aiter_bytes(chunk_size)) as parts:
                    async for part in parts:
                        total += len(part)
                        if total > self._limit():
                            if self.is_success:
                                raise BodyTooLarge(_told(self._limit()))
                            yield part[: len(part) - (total - self._limit())]
                            return
                        if events is not None:
                            events.add(part)
                        if self._is_whole and not is_large and total > _LARGE_BYTES:
                            await large.acquire()
                            is_large = True
                        yield part
            finally:
                if is_large:
                    large.release()

        def _limit(self) -> int:
            return self._bound if self.is_success else min(self._bound, ERROR_BYTES)

    class Transport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            request.headers["accept-encoding"] = "gzip, deflate"
            given = await transport.handle_async_request(request)
            if "," not in given.headers.get("content-encoding", ""):
                return Response(
                    given.status_code, headers=given.headers, stream=given.stream, extensions=given.extensions
                )
            # Several layers multiply: a megabyte may come to a terabyte before the last one ends.
            await given.aclose()
            if given.is_success:
                raise BodyTooLarge("it is compressed more than once")
            headers = [(name, value) for name, value in given.headers.items() if name not in _OF_BODIES]
            return httpx2.Response(given.status_code, headers=headers, content=b"")

        async def aclose(self) -> None:
            await transport.aclose()

    return Transport()


def check_values(raw: bytes) -> None:
    """
    Raises:
        BodyTooLarge: JSON text of more than ``MOST_VALUES`` values.
    """
    if _values(raw) > MOST_VALUES:
        raise BodyTooLarge(f"it has more than {MOST_VALUES:,} values")


def _values(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{") + raw.count(b",")


async def lines(parts: AsyncIterator[bytes], longest: int = LINE_BYTES) -> AsyncIterator[tuple[bytes, bool]]:
    """The lines of a body, without their ends and without empty ones: (line, True), or (its first bytes, False) for
    one of more than ``longest`` bytes, of which no more is held.

    Lines end with a line feed alone: text in JSON may hold any other of the characters that Unicode counts as one.
    """
    held, length = bytearray(), 0
    async for part in parts:
        *ended, rest = part.split(b"\n")
        for piece in ended:
            length = _hold(held, piece, length, longest)
            if length:
                yield bytes(held), length <= longest
            held.clear()
            length = 0
        length = _hold(held, rest, length, longest)
    if length:
        yield bytes(held), length <= longest


def _hold(held: bytearray, piece: bytes, length: int, longest: int) -> int:
    """Add ``piece`` to a line of ``length`` bytes; returns its new length."""
    length += len(piece)
    if length <= longest:
        held += piece
    else:
        held += piece[:_BEGINNING]
        del held[_BEGINNING:]
    return length


class _Events:
    """Bounds the single events of a stream. The SDKs' readers take time with the square of an event's lines."""

    def __init__(self) -> None:
        self._bytes = self._lines = self._values = 0
        self._tail = b""

    def add(self, part: bytes) -> None:
        """
        Raises:
            BodyTooLarge: an event passes a bound.
        """
        pieces = _BLANK_LINE.split(self._tail + part)
        self._tail = (self._tail + part)[-3:]
        for number, piece in enumerate(pieces):
            if number:
                self._bytes = self._lines = self._values = 0
            self._bytes += len(piece)
            self._lines += piece.count(b"\n") or piece.count(b"\r")
            self._values += _values(piece)
            if self._values > MOST_VALUES:
                raise BodyTooLarge(f"an event of the stream has more than {MOST_VALUES:,} values")
            if self._bytes > EVENT_BYTES:
                raise BodyTooLarge(f"an event of the stream is longer than {_shown(EVENT_BYTES)}")
            if self._lines > EVENT_LINES:
                raise BodyTooLarge(f"an event of the stream has more than {EVENT_LINES} lines")


def _told(limit: int) -> str:
    return f"it is longer than {_shown(limit)} (after decompression)"


def _shown(limit: int) -> str:
    return f"{limit // _MIB} MiB"
