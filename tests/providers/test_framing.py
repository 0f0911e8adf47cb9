"""Bodies whose framing, encoding or end is not as a client expects: an answer that can be read is kept, and a stream
that ends within one is not recorded as finished."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swe_infer.errors import RateLimited, TransientError
from swe_infer.providers.framing import beginning_of
from tests.providers.test_dialects import (
    CHAT,
    CHAT_EVENTS,
    JSON,
    MESSAGE,
    MESSAGE_EVENTS,
    RESPONSE,
    RESPONSE_EVENTS,
    SSE,
    Recorded,
    ask,
    delta,
    sse,
    without_output,
)
from tests.support.api_http import HttpRequest, Peer

APIS = [
    ("openai_compatible", CHAT, CHAT_EVENTS),
    ("openai_responses", RESPONSE, RESPONSE_EVENTS),
    ("anthropic", MESSAGE, MESSAGE_EVENTS),
]
STREAM = ("never", "always")


class Cut(Recorded):
    """Closes the connection before the end that ``Content-Length`` states."""

    async def __call__(self, request: HttpRequest, peer: Peer) -> None:
        self.asked.append(json.loads(request.body))
        peer.cut(self.status, {"content-type": self.kind, **self.headers}, self.body, promised=len(self.body) + 9)


@pytest.mark.parametrize(("name", "whole", "events"), APIS)
@pytest.mark.parametrize("stream", STREAM)
def test_encodings_that_change_nothing_or_are_not_there_do_not_cost_the_answer(
    name: str, whole: dict[str, Any], events: bytes, stream: str
) -> None:
    for body, kind in ((json.dumps(whole).encode(), JSON), (events, SSE)):
        for encoding, sent in (
            # RFC 9110, section 8.4.1.3: x-gzip is gzip
            ("x-gzip", gzip.compress(body)),
            ("identity, gzip", gzip.compress(body)),
            ("gzip, identity", gzip.compress(body)),
            # qualixar/superlocalmemory #79: a proxy that decompresses and leaves the header
            ("gzip", body),
        ):
            answer = ask(Recorded(sent, kind, headers={"content-encoding": encoding}), name, stream=stream)
            assert (answer.text, answer.finish_reason) == ("PATCH", "stop"), (encoding, kind)


@pytest.mark.parametrize(("name", "whole", "events"), APIS)
@pytest.mark.parametrize("stream", STREAM)
def test_objects_without_the_framing_of_events_are_read(
    name: str, whole: dict[str, Any], events: bytes, stream: str
) -> None:
    bare = events.replace(b"data: ", b"").replace(b"event: ", b": ").replace(b"[DONE]", b"")
    lines = b"\n".join(line for line in bare.split(b"\n") if line.startswith(b"{"))
    one = json.dumps(whole).encode()
    for body, kind in (
        (lines, "application/x-ndjson"),
        (lines, SSE),
        (b" \n  " + events, SSE),
        (events.replace(b"\n\n", b"\n"), SSE),  # without the blank lines between events
        (one + b"\n\ndata: [DONE]\n\n", SSE),  # decolua/9router #3492
        (one + b"\0", JSON),
        (one + one, JSON),
        (b"data: " + one + b"\n\ndata: [DONE]\n\n", SSE),  # a whole answer as one event
        (events + events, SSE),
    ):
        answer = ask(Recorded(body, kind), name, stream=stream)
        assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("PATCH", "stop", 2), body


def test_control_characters_in_json_are_part_of_the_text() -> None:
    # strings with raw line feeds and tabs, as servers write them that make JSON by hand
    for body, kind in (
        (json.dumps(CHAT).encode().replace(b"PATCH", b"PA\n\tTCH"), JSON),
        (CHAT_EVENTS.replace(b'"CH"', b'"\tCH"').replace(b'"PAT"', b'"PA"'), SSE),
    ):
        assert ask(Recorded(body, kind)).text.split() == ["PA", "TCH" if kind == JSON else "CH"]


@pytest.mark.parametrize(("name", "whole", "events"), APIS)
@pytest.mark.parametrize("stream", STREAM)
def test_a_whole_answer_is_kept_if_its_connection_breaks_and_a_part_of_one_is_not(
    name: str, whole: dict[str, Any], events: bytes, stream: str
) -> None:
    body = json.dumps(whole).encode()
    assert ask(Cut(body), name, stream=stream).text == "PATCH"
    for torn, kind in ((body[:-1], JSON), (events[: len(events) // 3], SSE)):
        with pytest.raises(TransientError, match="peer closed connection"):
            ask(Cut(torn, kind), name, stream=stream)


def test_the_status_of_a_refusal_counts_if_its_connection_breaks() -> None:
    body = json.dumps({"error": {"message": "slow down", "type": "requests"}}).encode()
    for stream in STREAM:
        for part in (body, body[:30], b""):
            with pytest.raises(RateLimited) as caught:
                ask(Cut(part, status=429, headers={"retry-after": "7"}), stream=stream)
            assert caught.value.retry_after_s == 7
            assert not caught.value.in_answer


@pytest.mark.parametrize(("name", "whole", "events"), APIS)
def test_a_stream_that_was_not_requested_and_is_cut_is_tried_again(
    name: str, whole: dict[str, Any], events: bytes
) -> None:
    *first, _ = events.split(b"\n\n")[:2]
    for body in (b"\n\n".join(first) + b"\n\n", b"", b": keep-alive\n\n"):
        with pytest.raises(TransientError, match="stream") as caught:
            ask(Recorded(body, SSE), name)
        assert not caught.value.is_final
    with pytest.raises(TransientError, match="stream") as caught:
        ask(Recorded(sse({"type": "unheard_of"}), SSE), name)
    assert caught.value.is_final


def test_events_of_a_text_completion_are_read_although_none_are_requested() -> None:
    # docs.anthropic.com/en/api/versioning: events of anthropic-version 2023-06-01 have the new text alone
    events = [{"completion": text, "stop_reason": None, "model": "claude-2"} for text in (" PAT", "CH")]
    end = {"completion": "", "stop_reason": "stop_sequence", "model": "claude-2"}
    answer = ask(Recorded(sse(*events, end), SSE), "anthropic_text")
    assert (answer.text, answer.finish_reason) == ("PATCH", "stop")
    assert ask(Recorded(sse(*events, {**end, "stop_reason": "max_tokens"}), SSE), "anthropic_text").finish_reason == (
        "length"
    )
    with pytest.raises(TransientError, match="ends before its answer"):
        ask(Recorded(sse(*events), SSE), "anthropic_text")
    with pytest.raises(TransientError, match="without a stop reason"):
        ask(Recorded(json.dumps(events[0]).encode()), "anthropic_text")


def test_a_character_that_is_divided_between_two_events_is_put_together() -> None:
    # servers in JavaScript cut a text by UTF-16 units (the option --chunk-size of @copilotkit/aimock)
    for name, events in (
        ("openai_compatible", CHAT_EVENTS.replace(b'"PAT"', b'"PAT\\ud83d"').replace(b'"CH"', b'"\\ude00CH"')),
        ("anthropic", _divided(MESSAGE_EVENTS, b"content_block_delta")),
        ("openai_responses", _divided(without_output(RESPONSE_EVENTS, items=True), b"response.output_text.delta")),
    ):
        assert ask(Recorded(events, SSE), name, stream="always").text == "PAT\U0001f600CH", name


def _divided(events: bytes, kind: bytes) -> bytes:
    """The event with the text as two."""
    (event,) = (event for event in events.split(b"\n\n") if event.startswith(b"event: " + kind))
    parts = (event.replace(b"PATCH", text) for text in (b"PAT\\ud83d", b"\\ude00CH"))
    return events.replace(event, b"\n\n".join(parts))


def test_blanks_before_an_answer_are_not_kept() -> None:
    # DeepSeek sends blank lines while a request waits; kept ones would be copied with each further part
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100_000):
            yield b" "
        yield b"\r\ndata: {}"

    async def read() -> bytes:
        return await beginning_of(parts())

    assert asyncio.run(read()) == b"data: {}"


def test_text_after_a_premature_end_is_part_of_the_answer() -> None:
    early = sse(delta("PAT"), "[DONE]", delta("CH"), delta(finish="stop"), done=True)
    answer = ask(Recorded(early, SSE), stream="always")
    assert (answer.text, answer.finish_reason) == ("PATCH", "stop")
    # an end without any part of an answer is not a finished one (a gateway whose upstream server has gone)
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    with pytest.raises(TransientError, match="ends before its answer"):
        ask(Recorded(sse(opening, done=True), SSE), stream="always")
