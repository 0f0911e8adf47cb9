"""A loopback server with hostile bodies: endless, compressed a thousandfold, with too many lines.

The first part of a request's path names the body: ``provider.base_url=URL/KIND/v1``.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import repeat
from queue import Queue
from typing import Any

from tests.support.api_http import HttpRequest, Peer, serving

__all__ = ["ENDLESS", "HostileServer", "chat", "hostile_server"]

_MIB = 1 << 20
ENDLESS = 1024
"""MiB of an endless body."""


def chat(**changes: Any) -> bytes:
    """The body of a chat completion, with changes."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "the answer"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps({"id": "x", "model": "gpt-test", "choices": [choice], "usage": usage, **changes}).encode()


@cache
def _bomb(mib: int) -> bytes:
    """A gzip file that is ``mib`` MiB long when decompressed. Its blocks are one block, repeated."""
    beginning, block = b'{"choices": "', b"A" * _MIB
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    parts = [packer.compress(beginning) + packer.flush(zlib.Z_FULL_FLUSH)]
    parts += [packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)] * mib
    checksum = zlib.crc32(beginning)
    for _ in range(mib):
        checksum = zlib.crc32(block, checksum)
    end = struct.pack("<II", checksum, len(beginning) + mib * _MIB)
    return b"".join([b"\x1f\x8b\x08\0\0\0\0\0\0\xff", *parts, packer.flush(), end])


@cache
def _zlib_beginning() -> bytes:
    """A MiB of zlib data that expands a thousandfold."""
    packer = zlib.compressobj()
    block = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return (block + again * (_MIB // len(again)))[:_MIB]


class HostileServer:
    """``sent`` counts the bytes of bodies by kind. ``bodies`` adds bodies, by kind."""

    def __init__(self) -> None:
        self.url = ""
        self.sent: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.bodies: dict[str, Callable[[HttpRequest], tuple[int, bytes]]] = {}

    async def handle(self, request: HttpRequest, peer: Peer) -> None:
        kind, _, path = request.path.strip("/").partition("/")
        self.asked[kind] = self.asked.get(kind, 0) + 1
        if kind in self.bodies:
            status, body = self.bodies[kind](request)
            peer.send(status, {"content-type": "application/json"}, body)
            return
        status, headers, parts = _shown(kind, path)
        peer.start(status, headers)
        for part in parts:
            if not await peer.chunk(part):
                return
            self.sent[kind] = self.sent.get(kind, 0) + len(part)
        peer.end()


def _shown(kind: str, path: str) -> tuple[int, dict[str, str], Iterator[bytes]]:
    """Status, headers and the parts of the body."""
    json_, events = {"content-type": "application/json"}, {"content-type": "text/event-stream"}
    filler = repeat(b" " * _MIB, ENDLESS)
    packed = {**json_, "content-encoding": "gzip"}
    match kind:
        case "endless":
            return 200, json_, _after(b'{"choices": ', filler)
        case "bomb":
            return 200, packed, iter([_bomb(512)])
        case "layers":
            return 200, {**json_, "content-encoding": "gzip, gzip"}, iter([gzip.compress(_bomb(512))])
        case "layers_error":
            return 429, {**json_, "content-encoding": "gzip, gzip"}, iter([gzip.compress(_bomb(512))])
        case "behind":
            return 200, packed, _after(gzip.compress(chat()), filler)
        case "error":
            return 429, json_, _after(b'{"error": {"message": "slow down', filler)
        case "error_bomb":
            return 500, packed, iter([_bomb(512)])
        case "values":
            return 200, json_, _after(b'{"choices": [[]', repeat(b",[]" * 100_000, 30))
        case "charset":
            return (
                500,
                {"content-type": "text/plain; charset=zlib"},
                iter([_zlib_beginning()]),
            )
        case "line":
            return 200, events, _after(b"event: message_start\ndata: {", filler)
        case "lines":
            return 200, events, repeat(b"data: {}\n" * 1000, ENDLESS * 100)
        case "comments":
            return 200, events, repeat(b": " + b"a" * (8 * _MIB) + b"\n\n", ENDLESS // 8)
        case "events":
            return 200, events, repeat(_event(b'{"choices": [], "x": "' + b"a" * _MIB + b'"}'), ENDLESS)
        case "results" if path.endswith(("content", "results")):
            long = [b'{"custom_id": "run-0", "response": {"body": "', *repeat(b"a" * _MIB, 64), b'"}}\n']
            return 200, {"content-type": "application/x-jsonl"}, iter([*long, *map(_result, ("run-1", "run-2"))])
        case "results":
            ended = {"id": "batch_1", "status": "completed", "output_file_id": "file-1"}
            return 200, json_, iter([json.dumps({**ended, "processing_status": "ended"}).encode()])
        case _:
            raise ValueError(kind)


def _after(beginning: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield beginning
    yield from rest


def _event(data: bytes) -> bytes:
    return b"event: message\ndata: " + data + b"\n\n"


def _result(custom_id: str) -> bytes:
    """A line of a file of results of either vendor. Its text holds what Unicode counts as ends of lines."""
    text = "one\u2028two\x85three"
    body = {**json.loads(chat()), "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    message = {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "model": "claude-test"}
    line = {
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "r", "body": body},
        "result": {"type": "succeeded", "message": message},
    }
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """Serve on an ephemeral port, in a thread, until the block ends."""
    started: Queue[tuple[HostileServer, Callable[[], object]]] = Queue()

    async def life() -> None:
        server = HostileServer()
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        async with serving(server.handle) as port:
            server.url = f"http://127.0.0.1:{port}"
            started.put((server, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(life()), name="hostile-server", daemon=True)
    thread.start()
    server, stop = started.get(timeout=60)
    try:
        yield server
    finally:
        stop()
        thread.join(10)
