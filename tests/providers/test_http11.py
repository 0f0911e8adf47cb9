"""The connections of providers, against servers of a few lines that send what a test says, byte by byte."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from swe_infer.api.retry import may_have_been_billed
from swe_infer.errors import ContextOverflow, RequestError
from swe_infer.providers.bounds import ERROR_BYTES, WHOLE_BYTES
from swe_infer.providers.environment import REFUSED_CREDENTIALS, Proxy
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.transport import http_transport
from swe_infer.types import ApiModel, Decoding, Prompt, Request
from tests.providers.conftest import server_context
from tests.support.api_server import ApiServer

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
WHOLE = (
    ANSWER,
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nx-trailer: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nhello",
    b"HTTP/1.1 200\r\nconnection: close\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + ANSWER,
)
BROKEN = {
    b"": "Server disconnected without sending a response",
    b"HTTP/1.1 20": "Server disconnected without sending a response",
    b"SSH-2.0-OpenSSH\r\n\r\n": "illegal status line",
    ANSWER[:-1]: "peer closed connection without sending complete message body",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\nhel": "peer closed connection without",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n": "illegal chunk header",
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000: "Receive buffer too long",
}


@asynccontextmanager
async def serving(handle: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The address of a server whose connections ``handle`` answers."""

    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        try:
            yield f"{'http' if context is None else 'https'}://127.0.0.1:{port}/"
        finally:
            for writer in writers:  # the listener of Python 3.12 and later waits for open connections
                writer.transport.abort()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + await reader.readexactly(length)


def client(
    max_concurrency: int = 4, proxy: str | None = None, certificate: Path | None = None, **timeouts: float | None
) -> httpx2.AsyncClient:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's certificates take 20 ms to load
    if certificate is not None:
        context.load_verify_locations(certificate)
    through = None if proxy is None else Proxy("HTTP_PROXY", proxy)
    transport = http_transport(max_concurrency, 60, context, through)
    return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=httpx2.Timeout(30, **timeouts))


def test_every_framing_of_an_answer_is_read_however_its_bytes_arrive() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, *pause = (await read_request(reader)).rpartition(b"\r\n\r\n")[2].decode().split()
        for byte in WHOLE[int(number)] if pause else [WHOLE[int(number)]]:
            writer.write(bytes([byte]) if isinstance(byte, int) else byte)
            await writer.drain()

    async def answers() -> list[tuple[int, str]]:
        async with serving(handle) as url, client() as http:
            asked = [f"{number}{pause}" for number in range(len(WHOLE)) for pause in ("", " pause")]
            found = [await http.post(url, content=one) for one in asked]
            return [(response.status_code, response.text) for response in found]

    assert asyncio.run(answers()) == [(200, "hello")] * 2 * len(WHOLE)


def test_a_broken_answer_is_an_error_that_says_how() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = (await read_request(reader)).rpartition(b"\r\n\r\n")[2]
        writer.write(list(BROKEN)[int(number)])
        await writer.drain()

    async def errors() -> list[str]:
        found = []
        async with serving(handle) as url, client() as http:
            for number in range(len(BROKEN)):
                with pytest.raises(httpx2.RemoteProtocolError) as caught:
                    await http.post(url, content=str(number))
                found.append(str(caught.value))
        return found

    for message, expected in zip(asyncio.run(errors()), BROKEN.values(), strict=True):
        assert expected in message


def test_connections_are_used_again_until_the_server_closes_them_or_says_anything() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await read_request(reader)
            writer.write(ANSWER)
        if connections == 2:  # some load balancers say so before they close an idle connection
            writer.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
            await reader.read()

    async def answers() -> list[int]:
        statuses = []
        async with serving(handle) as url, client() as http:
            for _ in range(6):
                statuses.append((await http.post(url, content="x")).status_code)
                await asyncio.sleep(0.05)
        return statuses

    assert asyncio.run(answers()) == [200] * 6
    assert connections == 3


def test_many_small_parts_of_an_answer_do_not_keep_other_tasks_waiting() -> None:
    parts, turns, longest = 20_000, 0, 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * parts + b"0\r\n\r\n")
        await writer.drain()

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def read() -> int:
        nonlocal longest
        async with serving(handle) as url, client() as http, http.stream("POST", url, content="x") as response:
            await asyncio.sleep(0.3)  # all of the answer has arrived
            others = asyncio.create_task(count_turns())
            received = in_turn = last = 0
            async for part in response.aiter_raw():
                received += len(part)
                in_turn = in_turn + 1 if turns == last else 0
                last, longest = turns, max(longest, in_turn)
            others.cancel()
            return received

    assert asyncio.run(read()) == parts
    assert longest <= 1000


def test_no_more_connections_than_requests_at_once_and_each_until_its_answer_is_read() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await read_request(reader)
            writer.write(ANSWER)

    async def answers() -> None:
        async with serving(handle) as url, client(2, pool=0.2) as http:
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    await stack.enter_async_context(http.stream("POST", url, content="x"))
                with pytest.raises(httpx2.PoolTimeout):
                    await http.post(url, content="x")
                assert connections == 2
            # What was not read of the two answers is not taken for a later one.
            found = await asyncio.gather(*(http.post(url, content="x") for _ in range(20)))
            assert [response.text for response in found] == ["hello"] * 20

    asyncio.run(answers())
    assert connections == 4


def test_timeouts_and_cancellation_leave_no_connection_behind() -> None:
    waiting = closed = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting, closed
        await read_request(reader)
        waiting += 1
        await reader.read()
        closed += 1

    async def give_up() -> None:
        async with serving(handle) as url, client(1, read=0.2) as http:
            with pytest.raises(httpx2.ReadTimeout):
                await http.post(url, content="x")
            task = asyncio.create_task(http.post(url, content="x", timeout=None))
            while waiting < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while closed < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(give_up(), 60))


def test_a_request_that_is_cancelled_at_any_step_leaves_no_socket_open() -> None:
    """One that is left open is a ResourceWarning when it is collected, and so fails this test."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ANSWER)
        await reader.read()

    async def give_up() -> None:
        async with serving(handle) as url:
            for steps in range(30):
                async with client() as http:
                    task = asyncio.create_task(http.post(url, content="x"))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.1)  # the server closes its side

    asyncio.run(give_up())
    gc.collect()


def test_long_bodies_are_sent_and_received_no_faster_than_they_are_read() -> None:
    piece, pieces = b"x" * (1 << 20), 24
    sent = received = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent, received
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        while not (part := await reader.read(1 << 16)).endswith(b"0\r\n\r\n"):
            received += len(part)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (pieces * len(piece)))
        for _ in range(pieces):
            writer.write(piece)
            await writer.drain()
            sent += 1

    async def upload() -> AsyncIterator[bytes]:
        for number in range(pieces):
            assert number * len(piece) - received < 12 << 20
            yield piece

    async def exchange() -> int:
        async with serving(handle) as url, client() as http, http.stream("POST", url, content=upload()) as response:
            await asyncio.sleep(0.3)
            assert sent < pieces
            return sum([len(part) async for part in response.aiter_raw()])

    assert asyncio.run(exchange()) == pieces * len(piece)


def test_an_answer_to_the_beginning_of_a_request_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """A server may refuse a long request before it has read it, and close the connection."""

    ended = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nshort")
        writer.write_eof()
        try:
            while await reader.read(1 << 16):
                pass
        finally:
            ended.append(writer)

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * (1 << 16)
            await asyncio.sleep(0)

    async def answers() -> list[tuple[int, str]]:
        async with serving(handle) as url, client() as http:
            found = [await http.post(url, content=upload()) for _ in range(2)]
            while len(ended) < 2:  # noqa: ASYNC110 - the server's tasks
                await asyncio.sleep(0.01)
            return [(response.status_code, response.text) for response in found]

    assert asyncio.run(answers()) == [(413, "short")] * 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("status", "through_proxy"),
    [
        (429, False),
        (200, True),
        *(pytest.param(*case, marks=pytest.mark.full) for case in ((200, False), (429, True))),
    ],
)
def test_a_refusal_ends_an_upload_that_the_server_does_not_read(status: int, through_proxy: bool) -> None:
    size = 32 << 20
    is_read = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 %d\r\ncontent-length: 5\r\n\r\nhello" % status)
        if status == 200:
            await reader.readexactly(size)
            is_read.set()
        await asyncio.Event().wait()

    async def answer() -> tuple[int, str]:
        async with serving(handle) as url, asyncio.timeout(60), client(proxy=url if through_proxy else None) as http:
            response = await http.post(
                "http://host.example/" if through_proxy else url, content=bytes(size), timeout=None
            )
            if status == 200:
                await is_read.wait()
            return response.status_code, response.text

    assert asyncio.run(answer()) == (status, "hello")


@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_through_a_proxy_share_its_connections(scheme: str, proxy_scheme: str, certificate: Path) -> None:
    """A tunnel to an encrypted server, and requests with the whole address to another one."""
    tunnels: list[bytes] = []
    requests: list[bytes] = []
    is_closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_request(reader))
            writer.write(ANSWER)

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        tunnels.append(head)
        host, _, port = head.split()[1].decode().rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer), return_exceptions=True)
        await there[1].wait_closed()
        is_closed.set()

    async def scenario() -> None:
        encrypted = server_context(certificate)
        trusted = ssl.create_default_context(cafile=str(certificate))
        async with (
            serving(answer, encrypted if scheme == "https" else None) as url,
            serving(tunnel if scheme == "https" else answer, encrypted if proxy_scheme == "https" else None) as way,
        ):
            through = Proxy("HTTP_PROXY", way.replace("://", "://user:p%40ss@"))
            async with httpx2.AsyncClient(transport=http_transport(4, 60, trusted, through)) as http:
                for _ in range(3):
                    assert (await http.post(f"{url}path?a=b", content="x")).text == "hello"
            credentials = b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n"
            if scheme == "https":
                await is_closed.wait()
                (head,) = tunnels
                assert credentials in head
                assert [request.split()[1] for request in requests] == [b"/path?a=b"] * 3
                assert not any(credentials in request for request in requests), "the server does not see them"
            else:
                assert [request.split()[1] for request in requests] == [f"{url}path?a=b".encode()] * 3
                assert all(credentials in request for request in requests)

    asyncio.run(scenario())


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


class SocksProxy:
    """A SOCKS5 proxy (RFC 1928, RFC 1929). It knows the host ``host.example``.

    Args:
        password: of the user ``user``; empty: it accepts everyone.
        reply: to the request for a connection.
    """

    def __init__(self, password: bytes = b"", reply: int = 0) -> None:
        self.password, self.reply = password, reply
        self.hosts: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def counted() -> bytes:
            return await reader.readexactly((await reader.readexactly(1))[0])

        assert await reader.readexactly(1) == b"\5"
        method = 2 if self.password else 0
        if method not in await counted():
            writer.write(b"\5\xff")
            return
        writer.write(bytes([5, method]))
        if self.password:
            assert await reader.readexactly(1) == b"\1"
            is_known = [await counted(), await counted()] == [b"user", self.password]
            writer.write(bytes([1, not is_known]))
            if not is_known:
                return
        assert await reader.readexactly(3) == b"\5\1\0"
        kind = (await reader.readexactly(1))[0]
        self.hosts.append(await counted() if kind == 3 else await reader.readexactly({1: 4, 4: 16}[kind]))
        port = int.from_bytes(await reader.readexactly(2), "big")
        writer.write(bytes([5, self.reply, 0, 3, 4]) + b"here\0\0")
        if not self.reply:
            there = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer), return_exceptions=True)
            finally:
                there[1].close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_through_a_socks_proxy_share_its_connections(scheme: str, certificate: Path) -> None:
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_request(reader))
            writer.write(ANSWER)

    async def scenario() -> None:
        trusted = ssl.create_default_context(cafile=str(certificate))
        proxies = SocksProxy(), SocksProxy(b"p@ss"), SocksProxy()
        ways = ("", "socks5"), ("user:p%40ss@", "socks5h"), ("not:needed@", "socks5")
        async with serving(answer, server_context(certificate) if scheme == "https" else None) as url:
            for proxy, (credentials, kind) in zip(proxies, ways, strict=True):
                async with serving(proxy) as way:
                    through = Proxy("ALL_PROXY", way.replace("http://", f"{kind}://{credentials}"))
                    async with httpx2.AsyncClient(transport=http_transport(4, 60, trusted, through)) as http:
                        for _ in range(3):
                            assert (await http.post(f"{url}path?a=b", content="x")).text == "hello"
                assert proxy.hosts == [b"\x7f\0\0\1"]
        if scheme == "http":
            async with (
                serving(answer) as url,
                serving(proxies[0]) as way,
                client(proxy=way.replace("http://", "socks5://")) as http,
            ):
                named = url.replace("127.0.0.1", "host.example")
                assert (await http.post(named, content="x")).text == "hello"
            assert proxies[0].hosts[1:] == [b"host.example"]
        assert {request.split()[1] for request in requests} == {b"/path?a=b", b"/"} - (
            {b"/"} if scheme == "https" else set()
        )

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("proxy", "credentials", "words"),
    [
        (SocksProxy(reply=5), "", "cannot connect to host.example: it refuses connections"),
        (SocksProxy(reply=77), "", "cannot connect to host.example: 77"),
        (SocksProxy(b"p"), "", REFUSED_CREDENTIALS),
        (SocksProxy(b"p"), "user:wrong@", REFUSED_CREDENTIALS),
        (SocksProxy(b"p"), f"user:{'p' * 300}@", "more than 255 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "", "it is no SOCKS5 proxy"),
        (b"\5", "", "closed the connection"),
        (b"\5\0\5\0\0", "", "closed the connection"),
        (b"\5\0\5\0\0\1\0\0\0\0\0\0" + ANSWER, "", "it answers in place of the server"),
        (None, "", None),
    ],
)
def test_a_socks_proxy_that_refuses_or_hangs_is_no_request_that_was_sent(
    proxy: SocksProxy | bytes | None, credentials: str, words: str | None
) -> None:
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if proxy is None:
            await asyncio.Event().wait()
        assert isinstance(proxy, bytes)
        writer.write(proxy)
        await asyncio.sleep(0)

    async def error() -> Exception:
        handle = proxy if isinstance(proxy, SocksProxy) else odd
        async with serving(handle) as way:
            url = way.replace("http://", f"socks5://{credentials}")
            async with client(proxy=url, connect=0.5 if proxy is None else 30) as http:
                with pytest.raises(httpx2.TransportError) as caught:
                    await http.post("https://host.example/", content="x")
                return caught.value

    found = asyncio.run(error())
    assert type(found) is (httpx2.ConnectTimeout if words is None else httpx2.ProxyError)
    assert words is None or words in str(found)
    sent = RequestError("POST https://host.example/: not connected")
    sent.__cause__ = found
    assert not may_have_been_billed(sent)


@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", httpx2.ProxyError),
        (b"", httpx2.ProxyError),
        (b"SSH-2.0\r\n\r\n", httpx2.ProxyError),
        (b"HTTP/1.1 200 OK\r\n\r\n", httpx2.ConnectError),
        (b"HTTP/1.1 200 OK\r\n\r\nno TLS", httpx2.ConnectError),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", httpx2.ProxyError),
        (None, httpx2.ConnectTimeout),
    ],
)
def test_a_tunnel_that_fails_is_no_request_that_was_sent(
    said: bytes | None, kind: type[Exception], proxy_scheme: str, certificate: Path
) -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if said is None:
            await asyncio.Event().wait()
        else:
            head, end, body = said.partition(b"\r\n\r\n")
            at_once = body == b"<html>"
            writer.write(said if at_once else head + end)
            if body:
                await reader.read(1)  # the handshake, or the end
                writer.write(b"" if at_once else body)
                await reader.read()

    context = server_context(certificate) if proxy_scheme == "https" else None
    limit_s = 1 if said is None else 30

    async def error() -> Exception:
        async with (
            serving(proxy, context) as way,
            client(proxy=way, certificate=certificate, connect=limit_s) as http,
        ):
            with pytest.raises(httpx2.TransportError) as caught:
                await http.post("https://host.example/", content="x")
            return caught.value

    found = asyncio.run(error())
    assert type(found) is kind
    sent = RequestError("POST https://host.example/: not connected")
    sent.__cause__ = found
    assert not may_have_been_billed(sent)


def test_an_encrypted_connection_is_used_for_several_requests(certificate: Path) -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            body = (await read_request(reader)).rpartition(b"\r\n\r\n")[2]
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def answers() -> None:
        context = server_context(certificate)
        transport = http_transport(4, 60, ssl.create_default_context(cafile=str(certificate)))
        async with serving(handle, context) as url, httpx2.AsyncClient(transport=transport) as http:
            for size in (1, 1_000_000, 2):
                assert len((await http.post(url, content="x" * size)).content) == size
            with pytest.raises(httpx2.ConnectError):
                await http.post(url.replace("https", "http").replace("127.0.0.1", "localhost:1/"), content="x")

    asyncio.run(answers())
    assert connections == 1


def test_later_answers_are_read_in_every_compression_and_up_to_the_same_bounds() -> None:
    """Only the first request goes through the SDK and httpx."""

    def body(text: str) -> bytes:
        usage = {"prompt_tokens": 5, "completion_tokens": 5}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return json.dumps({"choices": [choice], "usage": usage}).encode()

    def packed(bits: int, content: bytes) -> bytes:
        packer = zlib.compressobj(wbits=bits)
        return packer.compress(content) + packer.flush()

    long, bomb = "x" * (2 << 20), bytes(WHOLE_BYTES + 1)
    gzip, deflate = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
    sent: list[tuple[str, bytes, str | None]] = [
        ("", body("first"), "first"),
        ("", body("plain"), "plain"),
        ("identity", body("same"), "same"),
        ("gzip", packed(gzip, body("gzip")), "gzip"),
        ("gzip", packed(gzip, body("more")) + b"beyond its end", "more"),
        ("gzip", b"".join(packed(gzip, part) for part in body("two members").partition(b"two")), "two members"),
        ("gzip", b"".join(packed(gzip, bytes([byte])) for byte in body("a member each byte")), "a member each byte"),
        ("gzip", packed(gzip, body("padded")) + bytes(8), "padded"),
        ("deflate", packed(deflate, body("deflate")), "deflate"),
        ("deflate", packed(-deflate, body("raw")), "raw"),
        ("", body(long), long),
        ("gzip", packed(gzip, body(long)), long),
        ("gzip", b"".join(packed(gzip, part) for part in body(long + "y").partition(b"y")), long + "y"),
        ("gzip", b"no gzip", None),
        ("gzip", packed(gzip, bomb), None),
        ("gzip, gzip", packed(gzip, packed(gzip, body("twice"))), None),
        ("", bomb, None),
    ]
    found: list[str | None] = []
    left = iter(sent)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            encoding, content, _ = next(left)
            field = f"content-encoding: {encoding}\r\n" if encoding else ""
            head = (
                f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{field}content-length: {len(content)}\r\n\r\n"
            )
            writer.write(head.encode() + content)
            await writer.drain()

    async def answers() -> None:
        async with serving(handle) as url:
            provider = OpenAIChat(base_url=f"{url}v1", api_key_env=None, pricing_id="free")
            await provider.open()
            for number in range(len(sent)):
                request = Request(f"i-{number}", 0, Prompt(None, "Fix it."), Decoding())
                try:
                    answer = await provider.complete(request, ApiModel(name="gpt-4o"), timeout_s=60)
                    found.append(answer.text)
                except RequestError:
                    found.append(None)
            await provider.close()

    asyncio.run(answers())
    assert found == [text for _, _, text in sent]


def test_an_error_longer_than_its_bound_is_classified_by_its_beginning() -> None:
    content = b"The prompt is too long. " + b"x" * (3 * ERROR_BYTES)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content))
            await writer.drain()

    async def errors() -> None:
        async with serving(handle) as url:
            provider = OpenAIChat(base_url=f"{url}v1", api_key_env=None, pricing_id="free")
            await provider.open()
            for number in range(2):  # through the SDK, and without it
                request = Request(f"i-{number}", 0, Prompt(None, "Fix it."), Decoding())
                with pytest.raises(ContextOverflow, match="The prompt is too long"):
                    await provider.complete(request, ApiModel(name="gpt-4o"), timeout_s=60)
            await provider.close()

    asyncio.run(errors())


def test_the_sdk_prepares_one_request_of_many(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    """Also before it is answered: a run begins with as many requests as there may be at once."""
    server.latency_s = 0.2
    provider = OpenAIChat(base_url=server.openai_url, api_key_env=None, pricing_id="free")

    async def answer(number: int) -> str:
        request = Request(f"i-{number}", 0, Prompt(None, f"Fix {number}."), Decoding())
        return (await provider.complete(request, ApiModel(name="gpt-4o"), timeout_s=60.0)).text

    async def answers() -> list[str]:
        await provider.open()
        first = asyncio.create_task(answer(0))
        while not server.in_flight:  # noqa: ASYNC110 - set in the server's thread
            await asyncio.sleep(0.001)
        found = await asyncio.gather(first, *map(answer, range(1, 8)))
        await provider.close()
        return found

    with caplog.at_level(logging.DEBUG, "openai"):
        assert all(asyncio.run(answers()))
    assert sum(record.message.startswith("Building HTTP request") for record in caplog.records) == 1
    assert len({str(sorted(exchange.headers)) for exchange in server.log.exchanges[-8:]}) == 1
