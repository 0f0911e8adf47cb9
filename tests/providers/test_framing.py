"""Bodies whose framing, encoding or end is not as a client expects: an answer that can be read is kept, and a stream
that ends within one is not recorded as finished."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from swe_infer.errors import RateLimited, TransientError
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
