"""``swe-infer-view [FOLDER]``: the runs of a folder in a browser."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from urllib.parse import quote

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.remote.paths import displayed
from swe_infer.remote.reading import readable_path
from swe_infer.remote.store import is_remote
from swe_infer.serving import access_token, host_in_url, is_loopback, listening, port_number, serve
from swe_infer.text import CommandParser, report_errors, shown

log = logging.getLogger(__name__)

TOKEN = "SWE_INFER_VIEW_TOKEN"
_REFRESH_S = 5.0
"""Seconds between checks of an object store for new files."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 2 after an error, in one line. Ends by KeyboardInterrupt."""
    options = _parser().parse_args(arguments)
    return report_errors(lambda: _serve(options))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-view",
        description="Serves the runs and sweeps of a folder to a browser, read-only, and follows runs in progress.",
    )
    parser.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help="default: outputs")
    parser.add_argument("--port", type=port_number, default=0, help="default: a free one")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default 127.0.0.1). Beyond loopback a token is required: that of "
        f"{TOKEN}, or one that is generated and printed",
    )
    parser.add_argument("--open", action="store_true", help="open a browser")
    return parser


def _serve(options: argparse.Namespace) -> None:
    folder = readable_path(options.folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: directory not found; name a folder of runs")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot be read")
    given = access_token(TOKEN)

    from swe_infer.view.folder import WatchedFolder
    from swe_infer.view.server import application

    host = options.host.strip("[]")
    listener = listening(host, options.port)
    bound, port = listener.getsockname()[:2]
    token = given if given is not None or is_loopback(bound) else secrets.token_urlsafe(24)
    address = f"http://{host_in_url(host)}:{port}/"
    watched = WatchedFolder(folder)
    watched.start()
    if is_remote(options.folder):
        threading.Thread(target=_refresh, args=(options.folder,), name="remote-refresh", daemon=True).start()
    app = application(watched, host=host, port=port, token=token)
    # A token of the environment is known to its user, and is not shown.
    shown_address = address if token is None or given is not None else f"{address}?token={token}"
    print(shown_address, flush=True)
    note = f"; the token is that of {TOKEN}" if given is not None else ""
    print(f"serving {shown(displayed(folder))}, read-only{note}; Ctrl-C ends", file=sys.stderr, flush=True)
    if options.open:
        import webbrowser

        webbrowser.open(address if token is None else f"{address}?token={quote(token)}")
    try:
        serve(app, listener)
    finally:
        watched.close()


def _refresh(url: str) -> None:
    """Copies what is new in an object store, for the rest of the process."""
    while True:
        time.sleep(_REFRESH_S)
        try:
            readable_path(url)
        except (SweInferError, OSError) as error:
            log.warning("%s; the page shows the last copy", error)
