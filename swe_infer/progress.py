"""A progress bar for long commands other than runs, which have :mod:`swe_infer.runners.progress`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_HIDDEN = ContextVar("hidden", default=False)


@contextmanager
def hidden() -> Iterator[None]:
    """Within the block, :func:`progress` shows nothing in this context."""
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


@contextmanager
def progress(what: str, total: int, *, fewest: int = 2) -> Iterator[Callable[[], None]]:
    """Shows a bar on standard error while the block runs, if that is a terminal. Otherwise nothing is written.

    Args:
        what: such as ``evaluating``.
        fewest: steps that are shown. 1: a single step too, which takes long; the bar then shows the elapsed time.

    Yields:
        A thread-safe function to call after each of ``total`` steps.
    """
    if total < fewest or _HIDDEN.get() or not is_terminal(sys.stderr):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # What the block prints goes above the bar, unless standard output is a file or a pipe.
    redirect = is_terminal(sys.stdout)
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bars:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can move the cursor."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False
