"""``swe-infer-budget [FOLDER]``: keeps caps and rate limits for runs on machines that share no file system.

Runs use it with ``budget.ledger=http://HOST:8787/NAME`` and ``runner.limits.shared=http://HOST:8787/NAME``.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from swe_infer.api.budget_client import TOKEN_VARIABLE
from swe_infer.errors import ConfigError
from swe_infer.evaluate.command import report_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns 2 for invalid input."""
    options = _parser().parse_args(arguments)
    return report_errors(lambda: serve(options.folder, options.host, options.port))


def serve(folder: Path, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
        ConfigError: the folder or the address cannot be used, or others could use the server.
    """
    import uvicorn

    from swe_infer.api.budget_server import BudgetServer

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not _is_loopback(host):
        raise ConfigError(
            f"--host {host}: others can reach it, so {TOKEN_VARIABLE} must be set, here and for the runs"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used ({error.strerror})") from error
    with _listener(host, port) as listener:
        server = BudgetServer(folder, token)
        bound = listener.getsockname()[1]
        print(f"http://{_in_url(host)}:{bound} keeps its files in {folder}", flush=True)
        settings = uvicorn.Config(
            server.app(), log_level="warning", access_log=False, lifespan="off", server_header=False
        )
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            server.close()


def _listener(host: str, port: int) -> socket.socket:
    """Raises ConfigError if the address cannot be bound."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({error})") from error
    # Connections inherit it. Without it, the second part of a reply waits 40 ms for the client's delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swe-infer-budget",
        description="Keeps budget.sweep_max_usd and the quotas of API keys for runs on machines that share no file "
        "system: budget.ledger=http://HOST:PORT/NAME, runner.limits.shared=http://HOST:PORT/NAME.",
        epilog=f"Beyond the loopback interface, {TOKEN_VARIABLE} must have the same value here and for the runs.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("budgets"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8787, help="0: any free one (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
