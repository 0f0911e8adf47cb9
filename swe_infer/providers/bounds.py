"""Limits on what a server may send, counted while reading, before and after decompression.

An answer is read whole, an error body is truncated, a stream is limited per event and in total, and a file of batch
results is read line by line. ``docs/faults.md`` describes how a request is handled whose answer exceeds a limit.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from swe_infer.providers.untrusted_json import decoded_json

_MIB = 1 << 20

WHOLE_BYTES = 32 * _MIB
"""Maximum bytes of a body that is read whole: an answer, a batch, a page of a list. 128,000 tokens are less than one
MiB.
"""
ERROR_BYTES = _MIB
"""Maximum bytes of the body of an HTTP error; the rest is not read."""
STREAM_BYTES = 128 * _MIB
"""Maximum bytes of a streamed answer. An event with one token has about 350 bytes; 128,000 of them 45 MB."""
EVENT_BYTES = 32 * _MIB
"""Maximum bytes of one event of a stream; the last one may contain the whole answer."""
EVENT_LINES = 200_000
"""Maximum lines of one event of a stream. Vendors send two or three, but some servers send no blank lines."""
MAX_VALUES = 2_000_000
"""Maximum brackets and commas in one body, event or line of JSON: an empty list of two bytes uses 64 in memory."""
LINE_BYTES = 32 * _MIB
"""Maximum bytes of one line of batch results, which has one answer."""
FILE_BYTES = 64 << 30
"""Maximum bytes of a file of batch results, which is read line by line."""

ENCODINGS = "gzip, deflate"
"""The compressions that responses may have."""

_LARGE_BYTES = _MIB
_LARGE_AT_ONCE = 4
"""How many bodies longer than ``_LARGE_BYTES`` are read at once; the others wait."""
_MOST_MEMBERS = 16
"""How many members of a gzip body are read at once; compressors that write at intervals begin a new one each time."""
_GZIP = zlib.MAX_WBITS | 16
_GZIP_BEGINNING = b"\x1f"
_PIECE_BYTES = 1 << 16
"""What follows a member is copied, so that the time for many small members is quadratic in this."""
_PREFIX_BYTES = 4096
"""Bytes that are kept of a line that exceeds its limit."""
_OF_BODIES = ("content-encoding", "content-length", "transfer-encoding")
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@dataclass(frozen=True, slots=True)
class Received:
    """The headers, by their names in lower case, and the body of a response with status 200."""

    headers: Mapping[str, str]
    content: bytes


class BodyTooLarge(Exception):
    """A body exceeds a limit, which the message names."""


def bounded(transport: Any) -> Any:
    """An ``httpx2`` transport that sends through ``transport`` and limits the size of responses.

    A response is read whole, up to ``WHOLE_BYTES``, unless ``read_in_parts`` is called. Reading more raises
    BodyTooLarge. The body of an error is truncated at ``ERROR_BYTES`` instead. If the connection breaks before the
    stated end of a body, the body of an error is truncated there, and a complete JSON object is kept.
    """
    import httpx2

    from swe_infer.providers.http11 import Http11Transport

    large = asyncio.Semaphore(_LARGE_AT_ONCE)
    broken = (httpx2.RemoteProtocolError, httpx2.ReadError)

    class Response(httpx2.Response):
        _bound = WHOLE_BYTES
        _is_whole = True
        _has_events = False
        _received = 0

        def read_in_parts(self, bound: int, *, has_events: bool = False) -> None:
            """Sets the limit to ``bound`` bytes for a reader that keeps only a part at a time.

            Args:
                has_events: the body consists of server-sent events, which are limited one by one.
            """
            self._bound, self._is_whole, self._has_events = bound, False, has_events

        def read_whole_events(self) -> None:
            """Limits a body that is read whole as a stream of events."""
            self._bound, self._has_events = STREAM_BYTES, True

        @property
        def charset_encoding(self) -> None:
            """None, which means UTF-8: a server could name a codec that does not decode to text."""

        async def aread(self) -> bytes:
            if self.is_stream_consumed:
                return await super().aread()
            parts: list[bytes] = []
            try:
                async for part in self.aiter_bytes():
                    parts.append(part)
            except broken:
                if self.is_success and not is_whole_object(b"".join(parts)):
                    raise
                await self.aclose()
            except BodyTooLarge:
                parts.clear()  # the error refers to this frame
                raise
            self._content = b"".join(parts)
            return self._content

        async def aiter_raw(self, chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
            # Bytes that the decoder drops, such as those after the end of a compressed body, count only here.
            async with aclosing(super().aiter_raw(chunk_size)) as parts:
                async for part in parts:
                    self._received += len(part)
                    if (excess := self._received - self._limit()) > 0:
                        if self.is_success:
                            raise BodyTooLarge(_describe(self._limit()))
                        yield part[: len(part) - excess]
                        return
                    yield part

        async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
            total, is_large = 0, False
            events = _Events() if self._has_events else None
            try:
                async with aclosing(self._plain_parts(chunk_size)) as parts:
                    async for part in parts:
                        total += len(part)
                        if (excess := total - self._limit()) > 0:
                            if self.is_success:
                                raise BodyTooLarge(_describe(self._limit()))
                            yield part[: len(part) - excess]
                            return
                        if events is not None and self.is_success:
                            events.add(part)
                        if self._is_whole and not is_large and total > _LARGE_BYTES:
                            await large.acquire()
                            is_large = True
                        yield part
            finally:
                if is_large:
                    large.release()

        async def _plain_parts(self, chunk_size: int | None) -> AsyncGenerator[bytes, None]:
            if self.is_stream_consumed or _encoding(self.headers.get("content-encoding", "")) != "gzip":
                async with aclosing(super().aiter_bytes(chunk_size)) as parts:
                    async for part in parts:
                        yield part
                return
            async with aclosing(self.aiter_raw(chunk_size)) as raw:
                try:  # httpx2 itself reads the first member of a gzip body only
                    async with aclosing(_gunzipped(raw)) as parts:
                        async for part in parts:
                            yield part
                except zlib.error as error:
                    raise httpx2.DecodingError(str(error)) from error

        def _limit(self) -> int:
            return self._bound if self.is_success else min(self._bound, ERROR_BYTES)

    class Continued(httpx2.AsyncByteStream):
        """A body whose first bytes were read, before ``error`` if there was one."""

        def __init__(
            self,
            beginning: bytes,
            rest: AsyncIterator[bytes],
            body: httpx2.AsyncByteStream,
            error: Exception | None,
        ) -> None:
            self._beginning, self._rest, self._body, self._error = beginning, rest, body, error

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield self._beginning
            if self._error is not None:
                raise self._error
            async for part in self._rest:
                yield part

        async def aclose(self) -> None:
            await self._body.aclose()

    async def whole(response: httpx2.Response) -> httpx2.Response:
        try:
            await response.aread()
        except BaseException:
            await response.aclose()
            raise
        return response

    class Transport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            request.headers["accept-encoding"] = ENCODINGS
            return await self._limited(await transport.handle_async_request(request))

        async def post(
            self,
            url: httpx2.URL,
            headers: list[tuple[bytes, bytes]],
            content: bytes,
            timeouts: Mapping[str, float | None],
        ) -> Received | httpx2.Response:
            """The response to a POST request, read whole. A usual one is returned without creating httpx objects."""
            stream = httpx2.ByteStream(content)
            if not isinstance(transport, Http11Transport):
                extensions = {"timeout": timeouts}
                request = httpx2.Request("POST", url, headers=headers, stream=stream, extensions=extensions)
                return await whole(await self._limited(await transport.handle_async_request(request)))
            status, raw, body = await transport.exchange(b"POST", url, headers, stream, timeouts)
            parts = aiter(body)
            found: list[bytes] = []
            error: Exception | None = None
            try:
                is_whole = await _read_beginning(parts, found, _LARGE_BYTES)
            except broken as raised:
                is_whole, error = False, raised
            except BaseException:
                await body.aclose()
                raise
            beginning = b"".join(found)
            fields = _fields(raw)
            if is_whole and status == 200 and "event-stream" not in fields.get("content-type", ""):
                await body.aclose()
                plain = _decompressed(beginning, fields.get("content-encoding", ""))
                if plain is not None:
                    return Received(fields, plain)
            given = httpx2.Response(status, headers=raw, stream=Continued(beginning, parts, body, error))
            return await whole(await self._limited(given))

        async def _limited(self, given: httpx2.Response) -> httpx2.Response:
            encoding = _encoding(given.headers.get("content-encoding", ""))
            if "," not in encoding:
                headers = httpx2.Headers(given.headers)
                if encoding:
                    headers["content-encoding"] = encoding
                else:
                    headers.pop("content-encoding", None)
                response = Response(
                    given.status_code, headers=headers, stream=given.stream, extensions=given.extensions
                )
                if "event-stream" in given.headers.get("content-type", ""):  # even if no stream was requested
                    response.read_whole_events()
                return response
            # Several layers multiply: a megabyte may decompress to a terabyte.
            await given.aclose()
            if given.is_success:
                raise BodyTooLarge("it is compressed more than once")
            kept = [(name, value) for name, value in given.headers.items() if name not in _OF_BODIES]
            return httpx2.Response(given.status_code, headers=kept, content=b"")

        async def aclose(self) -> None:
            await transport.aclose()

    return Transport()


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by their names in lower case; the values of repeated ones are joined."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


async def _read_beginning(parts: AsyncIterator[bytes], found: list[bytes], most: int) -> bool:
    """Adds at most ``most`` bytes of a body and the part that follows to ``found``. Returns whether that is all."""
    total = 0
    async for part in parts:
        found.append(part)
        total += len(part)
        if total > most:
            return False
    return True


def _encoding(stated: str) -> str:
    """The compressions in a ``Content-Encoding`` (RFC 9110, section 8.4.1), without those that change nothing."""
    if not stated:
        return ""
    names = (name.strip().lower().removeprefix("x-") for name in stated.split(","))
    return ",".join(name for name in names if name not in ("", "identity"))


def _decompressed(body: bytes, stated: str) -> bytes | None:
    """The decompressed body; None for encodings other than gzip, long bodies and damaged ones."""
    encoding = _encoding(stated)
    if not encoding or (encoding == "gzip" and not body.startswith(_GZIP_BEGINNING)):
        return body
    if encoding != "gzip":
        return None
    content = b""
    for _ in range(_MOST_MEMBERS):
        decoder = zlib.decompressobj(_GZIP)
        try:
            content += decoder.decompress(body, _LARGE_BYTES + 1 - len(content))
        except zlib.error:
            return None
        if not decoder.eof or len(content) > _LARGE_BYTES:
            return None
        body = decoder.unused_data
        if not body:
            return content
    return None


async def _gunzipped(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The content of a gzip body with any number of members. What follows the last one is dropped. Some proxies
    decompress a body and leave the header, so one that is not gzip is passed on as it is.

    Raises:
        zlib.error: a member is damaged.
    """
    decoder, is_first, has_content = zlib.decompressobj(_GZIP), True, False
    is_plain: bool | None = None
    async for part in parts:
        if is_plain is None and part:
            is_plain = not part.startswith(_GZIP_BEGINNING)
        if is_plain:
            yield part
            continue
        for start in range(0, len(part), _PIECE_BYTES):
            piece = part[start : start + _PIECE_BYTES]
            while piece:
                try:
                    content = decoder.decompress(piece, _LARGE_BYTES)
                except zlib.error:
                    if is_first or has_content:
                        raise
                    return
                if content:
                    has_content = True
                    yield content
                piece = decoder.unconsumed_tail
                if decoder.eof:
                    piece = decoder.unused_data
                    decoder, is_first, has_content = zlib.decompressobj(_GZIP), False, False


def check_values(raw: bytes | str) -> None:
    """
    Raises:
        BodyTooLarge: JSON text of more than ``MAX_VALUES`` values.
    """
    if _values(raw) > MAX_VALUES:
        raise BodyTooLarge(f"it has more than {MAX_VALUES:,} values")


def is_whole_object(body: bytes) -> bool:
    """Whether a body is one JSON object, to its end. Raises BodyTooLarge."""
    check_values(body)
    try:
        return isinstance(decoded_json(body), dict)
    except ValueError:
        return False


def _values(raw: bytes | str) -> int:
    if isinstance(raw, str):
        return raw.count("[") + raw.count("{") + raw.count(",")
    return raw.count(b"[") + raw.count(b"{") + raw.count(b",")


async def lines(parts: AsyncIterator[bytes], longest: int = LINE_BYTES) -> AsyncIterator[tuple[bytes, bool]]:
    """Yields the lines of a body without line ends, except empty ones: (line, True), or (its first bytes, False) for
    a line of more than ``longest`` bytes.

    Only a line feed ends a line: JSON text may contain Unicode's other line separators.
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
    """Adds ``piece`` to a line of ``length`` bytes. Returns its new length."""
    length += len(piece)
    if length <= longest:
        held += piece
    else:
        held += piece[:_PREFIX_BYTES]
        del held[_PREFIX_BYTES:]
    return length


class _Events:
    """Limits the size of each event of a stream. Each line takes memory."""

    def __init__(self) -> None:
        self._bytes = self._lines = self._values = 0
        self._tail = b""

    def add(self, part: bytes) -> None:
        """
        Raises:
            BodyTooLarge: an event exceeds a limit.
        """
        pieces = _BLANK_LINE.split(self._tail + part)
        self._tail = (self._tail + part)[-3:]
        for number, piece in enumerate(pieces):
            if number:
                self._bytes = self._lines = self._values = 0
            self._bytes += len(piece)
            self._lines += piece.count(b"\n") or piece.count(b"\r")
            self._values += _values(piece)
            if self._values > MAX_VALUES:
                raise BodyTooLarge(f"an event of the stream has more than {MAX_VALUES:,} values")
            if self._bytes > EVENT_BYTES:
                raise BodyTooLarge(f"an event of the stream is longer than {_shown(EVENT_BYTES)}")
            if self._lines > EVENT_LINES:
                raise BodyTooLarge(f"an event of the stream has more than {EVENT_LINES:,} lines")


def _describe(limit: int) -> str:
    return f"it is longer than {_shown(limit)} (after decompression)"


def _shown(limit: int) -> str:
    return f"{limit // _MIB} MiB"
