"""HTTP servers of this package: the address they listen on, and how they end."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import re
import resource
import socket
import threading
from typing import TYPE_CHECKING

from swe_infer.errors import ConfigError
from swe_infer.text import clean

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_BACKLOG = 200
_SHORTEST_TOKEN = 16
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", re.ASCII)
_ENDING_S = 1
"""Time for responses in progress when the server ends, in seconds."""


def listening(host: str, port: int) -> socket.socket:
    """Opens a socket that listens on an address.

    Args:
        port: 0: any free one.

    Raises:
        ConfigError: the port is taken, or the address is not of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {clean(host)}: no such address ({_reason(error)})") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
        # Connections inherit it. Without it, the second part of a reply waits 40 ms for the client's delayed ACK.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: another process uses it; choose another, or 0 for a free one"
            ) from None
        raise ConfigError(f"--host {clean(host)} --port {port}: cannot be opened ({_reason(error)})") from None
    return opened


def _reason(error: OSError | UnicodeError) -> str:
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def serve(app: ASGIApp, listener: socket.socket, connections: int = 200) -> None:
    """Serves until KeyboardInterrupt.

    Args:
        listener: of :func:`listening`; closed at the end.
        connections: further ones get status 503.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,  # URLs may contain the token
        proxy_headers=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=_ENDING_S,
    )
    server = uvicorn.Server(config)
    ended = threading.Event()  # Thread.is_alive() is wrong after KeyboardInterrupt has interrupted Thread.join()

    def run() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()

    # In a thread of its own, uvicorn installs no signal handlers.
    threading.Thread(target=run, name="server", daemon=True).start()
    try:
        while not ended.wait(1.0):
            pass
    finally:
        server.should_exit = True
        if ended.wait(2 * _ENDING_S):  # otherwise its event loop still uses the socket
            listener.close()


def host_in_url(host: str) -> str:
    """The host in a URL; for all interfaces the name of this machine, since no client opens ``0.0.0.0``."""
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def access_token(variable: str) -> str | None:
    """The token in a variable of the environment; None if it is not set or blank.

    Raises:
        ConfigError: it is short, or an HTTP header cannot contain it.
    """
    token = os.environ.get(variable, "").strip()
    if token and not re.fullmatch(rf"[!-~]{{{_SHORTEST_TOKEN},}}", token):
        raise ConfigError(
            f"{variable}: must have at least {_SHORTEST_TOKEN} ASCII letters, digits and punctuation, without spaces"
        )
    return token or None


def raise_file_limit() -> None:
    """Raises the limit of open files, which includes connections, to the maximum for this user."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def port_number(text: str) -> int:
    """The type of the option ``--port``, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 0 to 65535")
    return int(text)


class KnownHosts:
    """The values of ``Host`` that name this server. A page elsewhere could otherwise reach it through a name that it
    points here (DNS rebinding).

    Args:
        host: the address or name that the server listens on.
    """

    def __init__(self, host: str) -> None:
        self._names = {host.lower().rstrip("."), "localhost", "127.0.0.1", "::1"}
        self._any_address = not is_loopback(host)
        if self._any_address:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def __contains__(self, values: list[str]) -> bool:
        """Whether a request with these headers ``Host`` was meant for this server."""
        match = _HOST.fullmatch(values[0]) if len(values) == 1 else None
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        return name in self._names or (self._any_address and ip_address(name) is not None)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or name."""
    address = ip_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that ``host`` states; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
