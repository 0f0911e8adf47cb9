"""The framing of an answer: one JSON value, or server-sent events.

Not every server answers in the form that was requested, so the reader is chosen by the answer.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

DONE = "[DONE]"
"""The data of the event that ends a stream of OpenAI's chat format."""
CLOSED = "[CLOSED]"
"""In place of an event: the server has closed the stream properly."""

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_BOM = b"\xef\xbb\xbf"
_FIELD = re.compile(rb"(data|event|id|retry)?:")
_BLANK = b" \t\r\n"
_SNIFFED_BYTES = 8


def is_event_stream(beginning: bytes, content_type: str) -> bool:
    """Whether a body consists of server-sent events. Its first bytes decide, then its content type: servers and
    gateways mislabel both forms."""
    beginning = beginning.removeprefix(_BOM).lstrip(_BLANK)
    if beginning[:1] in (b"{", b"["):
        return False
    return _FIELD.match(beginning) is not None or "event-stream" in content_type.lower()


async def beginning_of(parts: AsyncIterator[bytes]) -> bytes:
    """The first parts of a body without leading blanks, as many as :func:`is_event_stream` needs; all of it if it is
    shorter."""
    read = b""
    async for part in parts:
        read = (read + part).lstrip(_BLANK)
        shown = read.removeprefix(_BOM).lstrip(_BLANK)
        if len(shown) >= _SNIFFED_BYTES or shown[:1] in (b"{", b"[", b":"):
            break
    return read


GRACE_S = 3.0
"""Seconds to wait for the usage after the end of an answer."""
DOUBTFUL_GRACE_S = 60.0
"""Seconds to wait for more of an answer after an end that may not be one."""


async def until_complete(
    events: AsyncIterator[Any], end: Callable[[], tuple[int, float] | None]
) -> AsyncGenerator[Any, None]:
    """Yields ``events`` until their end, or for some seconds after the end of the answer: not every server ends its
    stream or closes the connection.

    Args:
        end: if the events so far state the end of the answer, its size in any unit and the seconds to wait; else
            None. The seconds start again when the size changes: some servers state the end in each event.
    """
    until: float | None = None
    ended: tuple[int, float] | None = None
    while True:
        try:
            if until is None:
                event = await anext(events)
            else:
                async with asyncio.timeout_at(until):
                    event = await anext(events)
        except (StopAsyncIteration, TimeoutError):
            return
        yield event
        before, ended = ended, end()
        if ended is not None and ended != before:
            until = asyncio.get_running_loop().time() + ended[1]


def joined_text(parts: Iterable[str]) -> str:
    """The text of a stream's parts. Servers that count in UTF-16 may divide one character between two parts."""
    return _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), "".join(parts))


async def server_sent_events(beginning: bytes, parts: AsyncIterator[bytes]) -> AsyncGenerator[tuple[str, str], None]:
    """Yields (type, data) of each event with data; the type is empty if the event has none. Bytes that are not UTF-8
    become replacement characters. Some servers leave out the blank lines between JSON objects.

    Args:
        beginning: bytes before ``parts``.
    """
    kind, data = "", list[str]()
    kind_after_data: str | None = None
    async for line in _lines(beginning, parts):
        field, _, value = line.partition(b":")
        if not line:
            if data:
                yield kind_after_data or kind, "\n".join(data)
            kind, kind_after_data, data = "", None, []
        elif field == b"data":
            text = _text(value)
            if data and data[-1].endswith("}") and text.startswith(("{", DONE)):  # no JSON has both lines
                yield kind, "\n".join(data)
                kind, kind_after_data, data = kind_after_data or "", None, []
            data.append(text)
        elif field == b"event" and data:
            kind_after_data = _text(value)
        elif field == b"event":
            kind = _text(value)
    if data:  # without the blank line at its end
        yield kind_after_data or kind, "\n".join(data)


def _text(value: bytes) -> str:
    return value.removeprefix(b" ").decode("utf-8", "replace")


async def _lines(beginning: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines, blank ones included, without their ends: a line feed, a carriage return, or both."""
    held = bytearray()
    pending = beginning.removeprefix(_BOM).lstrip(_BLANK)
    ended = False
    while True:
        carriage = not ended and pending.endswith(b"\r")  # a line feed may follow
        *whole, rest = _unix(pending[:-1] if carriage else pending).split(b"\n")
        for piece in whole:
            held += piece
            yield bytes(held)
            held.clear()
        held += rest
        if ended:
            break
        part = await anext(parts, None)
        ended = part is None
        pending = (b"\r" if carriage else b"") + (part or b"")
    if held:
        yield bytes(held)


def _unix(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text
