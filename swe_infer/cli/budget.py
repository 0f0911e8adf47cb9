"""``swe-infer-budget [FOLDER]``: keeps caps and rate limits for runs on machines that share no file system.

Runs use it with ``budget.ledger=http://HOST:8787/NAME`` and ``runner.limits.shared=http://HOST:8787/NAME``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from swe_infer.api.budget_address import TOKEN_VARIABLE
from swe_infer.errors import ConfigError
from swe_infer.serving import access_token, host_in_url, is_loopback, listening, port_number, raise_file_limit, serve
from swe_infer.text import CommandParser, report_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns 2 for invalid input."""
    options = _parser().parse_args(arguments)
    return report_errors(lambda: keep_budgets(options.folder, options.host, options.port))


def keep_budgets(folder: Path, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
        ConfigError: the folder or the address cannot be used, or other machines can reach it and there is no token.
    """
    from swe_infer.api.budget_server import BudgetServer

    token = access_token(TOKEN_VARIABLE)
    host = host.strip("[]")
    listener = listening(host, port)
    address, bound = listener.getsockname()[:2]
    if token is None and not is_loopback(address):
        listener.close()
        raise ConfigError(f"--host {host}: others can reach it; set {TOKEN_VARIABLE}, here and for the runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{folder}: cannot be used ({error.strerror})") from error
    raise_file_limit()
    print(f"http://{host_in_url(host)}:{bound} keeps its files in {folder}", flush=True)
    serve(BudgetServer(folder, token, host).app(), listener, connections=10_000)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-budget",
        description="Keeps budget.sweep_max_usd and the quotas of API keys for runs on machines that share no file "
        "system: budget.ledger=http://HOST:PORT/NAME, runner.limits.shared=http://HOST:PORT/NAME.",
        epilog=f"Beyond the loopback interface, {TOKEN_VARIABLE} must have the same value here and for the runs.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("budgets"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=8787, help="0: any free one (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
