"""``python -m swe_infer.cli.cache DIR [list | size | clear]``: shows or clears a response cache.

``DIR`` is the value of ``runner.response_cache``. ``list`` prints tab-separated values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.interrupts import run_command
from swe_infer.locks import Locks
from swe_infer.text import CommandParser

if TYPE_CHECKING:
    from swe_infer.api.cache import ResponseCache

_DAY_S = 86_400.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 if there is no cache."""
    from swe_infer.api.cache import ResponseCache

    parser = CommandParser(prog="python -m swe_infer.cli.cache", description="A response cache's contents.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="the value of runner.response_cache")
    parser.add_argument("command", nargs="?", choices=("size", "list", "clear"), default="size")
    parser.add_argument("--model", help="clear: only answers of this model")
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="clear: only answers older than DAYS days")
    parser.add_argument("--locks", choices=get_args(Locks), default="os", help="as the run's key locks")
    options = parser.parse_args(arguments)
    try:
        if not (options.directory / "answers.sqlite").is_file():
            raise ConfigError(f"{options.directory}: contains no response cache")
        cache = ResponseCache(options.directory, options.locks)
    except SweInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    try:
        _execute(cache, options)
    finally:
        cache.close()
    return 0


def _execute(cache: ResponseCache, options: argparse.Namespace) -> None:
    match options.command:
        case "list":
            for entry in cache.entries():
                created = datetime.fromtimestamp(entry.created, tz=UTC).isoformat(timespec="seconds")
                print(entry.key, created, entry.provider, entry.model, entry.characters, sep="\t")
        case "clear":
            age_s = None if options.older_than is None else options.older_than * _DAY_S
            print(f"{cache.clear(model=options.model, older_than_s=age_s)} answers removed")
        case _:
            size = cache.size()
            print(f"{size.answers} answers, {size.bytes_on_disk / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command("swe_infer.cli.cache")
