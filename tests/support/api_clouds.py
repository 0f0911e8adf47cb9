"""Anthropic's Messages at Amazon and Google: addresses, errors, and Amazon's binary event stream.

Formats: the API references of Bedrock's InvokeModel and of Vertex AI's rawPredict; the event stream is that of
https://smithy.io/2.0/aws/amazon-eventstream.html.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import unquote

__all__ = ["Cloud", "cloud_of", "event_frame", "exception_frame", "in_words_of", "unwrapped"]

Cloud = Literal["bedrock", "vertex"]

_BEDROCK = re.compile(r"/model/([^/]+)/(invoke|invoke-with-response-stream)")
_VERTEX = re.compile(
    r"/v1/projects/[^/]+/locations/[^/]+/publishers/anthropic/models/([^/]+):(rawPredict|streamRawPredict)"
)

_AMAZON = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_GOOGLE = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def cloud_of(path: str) -> Cloud | None:
    """The cloud of a Messages path, or None."""
    if _BEDROCK.fullmatch(path):
        return "bedrock"
    return "vertex" if _VERTEX.fullmatch(path) else None


def unwrapped(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body as Anthropic's own interface has it: with its model, and whether it is streamed.

    Raises:
        ValueError: what the clouds demand beside it is missing, or what they refuse is there.
    """
    match = _BEDROCK.fullmatch(path) or _VERTEX.fullmatch(path)
    assert match is not None
    if "anthropic_version" not in body:
        raise ValueError("anthropic_version: Field required")
    if "model" in body:
        raise ValueError("model: Extra inputs are not permitted")
    if _BEDROCK.fullmatch(path) and "stream" in body:
        raise ValueError("stream: Extra inputs are not permitted")
    return {**body, "model": unquote(match[1]), "stream": "tream" in match[2]}


def in_words_of(cloud: Cloud, status: int, body: bytes) -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers) of an error of Anthropic's in the cloud's own words."""
    if status == 529:
        status = 503
    message = json.loads(body)["error"]["message"]
    if cloud == "bedrock":
        kind = _AMAZON.get(status, "ValidationException")
        return status, json.dumps({"message": message}).encode(), {"x-amzn-errortype": f"{kind}:http://internal/"}
    error = {"code": status, "message": message, "status": _GOOGLE.get(status, "UNKNOWN")}
    return status, json.dumps({"error": error}).encode(), {}


def event_frame(event: bytes) -> bytes:
    """One server-sent event as a frame of Amazon's event stream."""
    data = event.partition(b"data: ")[2].strip()
    payload = json.dumps({"bytes": base64.b64encode(data).decode()}).encode()
    return _frame({":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}, payload)


def exception_frame(kind: str, message: str) -> bytes:
    """An error inside a stream."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return _frame(headers, json.dumps({"message": message}).encode())


def _frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    packed = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    start = struct.pack(">II", 16 + len(packed) + len(payload), len(packed))
    whole = start + struct.pack(">I", binascii.crc32(start)) + packed + payload
    return whole + struct.pack(">I", binascii.crc32(whole))
