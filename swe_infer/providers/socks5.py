"""SOCKS5 as a client speaks it: RFC 1928, and RFC 1929 for user name and password."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import httpx2

from swe_infer.providers.environment import REFUSED_CREDENTIALS

_VERSION, _CONNECT, _OPEN, _PASSWORD = 5, 1, 0, 2
_IPV4, _NAME, _IPV6 = 1, 3, 4
_ADDRESS_BYTES = {_IPV4: 4, _IPV6: 16}
_REASONS = {
    2: "connections to it are not allowed",
    3: "its network cannot be reached",
    4: "it cannot be reached",
    5: "it refuses connections",
    6: "it is too far away",
}


async def connect_through(
    proxy: asyncio.Transport, answers: asyncio.StreamReader, host: str, port: int, auth: tuple[bytes, bytes] | None
) -> None:
    """Makes a SOCKS5 proxy connect to a host, whose name the proxy resolves.

    Args:
        proxy: a connection to it.
        answers: what it sends.
        auth: user name and password, for a proxy that asks for them.

    Raises:
        ProxyError: it refuses; with ``REFUSED_CREDENTIALS``, because of ``auth``.
        OSError: the connection is lost.
    """
    try:
        methods = [_OPEN] if auth is None else [_OPEN, _PASSWORD]
        proxy.write(bytes([_VERSION, len(methods), *methods]))
        version, chosen = await answers.readexactly(2)
        if version != _VERSION:
            raise httpx2.ProxyError("it is no SOCKS5 proxy")
        if chosen not in methods:
            raise httpx2.ProxyError(REFUSED_CREDENTIALS)
        if auth is not None and chosen == _PASSWORD:
            proxy.write(b"\1" + b"".join(map(_counted, auth)))
            _, status = await answers.readexactly(2)
            if status:
                raise httpx2.ProxyError(REFUSED_CREDENTIALS)
        proxy.write(bytes([_VERSION, _CONNECT, 0]) + _address(host) + port.to_bytes(2, "big"))
        _, reply, _, kind = await answers.readexactly(4)
        if reply:
            raise httpx2.ProxyError(f"the SOCKS proxy cannot connect to {host}: {_REASONS.get(reply, reply)}")
        length = _ADDRESS_BYTES.get(kind) or (await answers.readexactly(1))[0]
        await answers.readexactly(length + 2)
        answers.feed_eof()
        if await answers.read():  # a server sends nothing before the handshake or the request
            raise httpx2.ProxyError("it answers in place of the server")
    except asyncio.IncompleteReadError as error:
        raise httpx2.ProxyError("the SOCKS proxy closed the connection") from error


def _address(host: str) -> bytes:
    try:
        packed = ip_address(host).packed
    except ValueError:
        return bytes([_NAME]) + _counted(host.encode("ascii"))
    return bytes([_IPV4 if len(packed) == 4 else _IPV6]) + packed


def _counted(text: bytes) -> bytes:
    """``text`` behind its length."""
    if len(text) > 255:
        raise httpx2.ProxyError("SOCKS has no names and passwords of more than 255 bytes")
    return bytes([len(text)]) + text
