"""The progress line of a run: done, failed, patches, dollars, tokens per second, time left.

On a terminal, Rich keeps it below the log. Elsewhere it is written as plain lines: one at the start, then 5 to 60
seconds apart. Control characters are removed, so no text from outside can move the cursor.

In a sweep, the line names the point. Dollars and times are those of the sweep.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, cast

from swe_infer.progress import is_terminal
from swe_infer.run_directory.figures import applying
from swe_infer.text import clock, dollars

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_REDRAWS_PER_S = 4
_TICK_S = 1.0
_PLAIN_FIRST_S, _PLAIN_MOST_S = 5.0, 60.0
_RATE_WINDOW_S = 30.0
_STATS = {
    "concurrency": "in flight",
    "running": "batch",
    "prompt_tokens_per_s": "prompt tok/s",
    "cache_hit_rate": "prefix cache",
    "prompt_cache_hit_rate": "prompt cache",
    "response_cache_hits": "cached answers",
    "preemptions": "preempted",
    "kv_cache_gb": "cache GB",
}
"""The runner's figures on the progress line, with their short names. Summary and tracker get all figures."""


_FEWEST_ANSWERS = 4
"""Answers before the time left is estimated, unless half of the work is done."""


@dataclass(frozen=True, slots=True)
class OtherRuns:
    """Figures of the other runs of a sweep.

    Args:
        samples: their number.
        done: samples with an outcome.
        answered: samples with an outcome of this command.
        todo: samples that this command has yet to answer.
        resolved: of ``evaluated`` samples, those of evaluated runs.
        cost_usd: None if a price is not known.
    """

    samples: int
    done: int
    answered: int
    todo: int
    resolved: int
    evaluated: int
    cost_usd: Decimal | None


class SweepView(Protocol):
    """The sweep of a run."""

    @property
    def label(self) -> str:
        """The run's point and how it differs: ``point 3 of 12 · temperature=0.6``."""
        ...

    @property
    def parallel(self) -> bool:
        """Whether other processes write to the same terminal."""
        ...

    def elapsed_s(self) -> float:
        """Seconds since the sweep started."""
        ...

    def others(self) -> OtherRuns:
        """The figures of the other runs. Takes little time if it is called often."""
        ...

    def joined(self, others: Sequence[SweepView]) -> SweepView:
        """The view of this run and concurrent ones as one."""
        ...


class Progress:
    """Shows a run's progress on ``stream`` until :meth:`close`. Thread-safe; methods never raise.

    Args:
        total: samples of the run.
        already_done: how many of them earlier commands finished.
        stream: output. Log lines that handlers of the root logger write to the same terminal appear above the line.
        clock: seconds, monotonic.
        totals: the summary at the start.
        sweep: None: the run is alone.
    """

    def __init__(
        self,
        total: int,
        already_done: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        totals: Mapping[str, Any] | None = None,
        sweep: SweepView | None = None,
    ) -> None:
        self._total = total
        self._already_done = already_done
        self._stream = _SafeStream(stream)
        self._clock = clock
        self._started = clock()
        self._answered = 0
        self._totals: Mapping[str, Any] = totals or {}
        self._sweep = sweep
        self._stats: Mapping[str, float] = {}
        self._last_error: str | None = None
        self._tokens: deque[tuple[float, int]] = deque()
        self._lock = threading.RLock()
        self._written_at: float | None = None
        self._interval_s = _PLAIN_FIRST_S
        self._closed = False
        self._redirected: list[tuple[logging.StreamHandler[Any], Any]] = []
        parallel = sweep is not None and sweep.parallel
        self._live = self._started_live() if self._stream.isatty() and not parallel else None
        if self._live is None and already_done < total:
            self._written_at = self._started
            self._stream.write(self.line() + "\n")

    def update(self, record: Mapping[str, Any], totals: Mapping[str, Any], stats: Mapping[str, float]) -> None:
        """Count one record.

        Args:
            totals: the summary that includes the record.
            stats: the runner's figures.
        """
        with self._lock:
            now = self._clock()
            self._answered += not record.get("purpose")
            self._totals, self._stats = totals, stats
            if record.get("status") == "failed":
                self._last_error = (record.get("error") or {}).get("type")
            self._note_tokens(now, record)
            if self._live is None and (self._written_at is None or now - self._written_at >= self._interval_s):
                if self._written_at is not None:
                    self._interval_s = min(2 * self._interval_s, _PLAIN_MOST_S)
                self._written_at = now
                self._stream.write(self.line() + "\n")

    def close(self) -> None:
        """Draw the last state, and restore the streams of the log handlers."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            self._live.stop()
        elif self._answered:
            self._stream.write(self.line() + "\n")
        for handler, stream in self._redirected:
            handler.setStream(stream)

    def _started_live(self) -> Live:
        from rich.console import Console
        from rich.file_proxy import FileProxy
        from rich.live import Live

        console = Console(file=cast(IO[str], self._stream), highlight=False, soft_wrap=False)
        live = Live(
            console=console,
            get_renderable=self._renderable,
            refresh_per_second=_REDRAWS_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and is_terminal(handler.stream):
                self._redirected.append((handler, handler.stream))
                handler.setStream(FileProxy(console, handler.stream))
        live.start()
        console.show_cursor(True)  # a killed process must not leave the cursor hidden
        return live

    def _renderable(self) -> Text:
        from rich.text import Text

        return Text(self.line(), no_wrap=True, overflow="ellipsis")

    def line(self) -> str:
        """The line's text, without control characters."""
        with self._lock:
            return self._line()

    def _line(self) -> str:
        done = min(self._total, self._already_done + self._answered)
        share = f" {100 * done // self._total}%" if self._total else ""
        parts = [f"{done}/{self._total}{share}"]
        others = None if self._sweep is None else self._sweep.others()
        if self._sweep is not None and others is not None:
            parts = [self._sweep.label, *parts]
            if others.samples:
                done, total = done + others.done, self._total + others.samples
                parts.append(f"sweep {done}/{total} {100 * done // max(1, total)}%")
        parts += _counts(self._totals, self._last_error)
        if others is not None and others.evaluated:
            share = f"{100 * others.resolved / others.evaluated:.0f}%"
            parts.append(f"resolved so far {others.resolved}/{others.evaluated} ({share})")
        if "cost_usd" in self._totals:
            cost = self._totals["cost_usd"]
            if others is not None:
                cost = None if cost is None or others.cost_usd is None else cost + others.cost_usd
            parts.append("cost unknown" if cost is None else dollars(cost))
        rate = self._tokens_per_s()
        if rate is not None:
            parts.append(f"{rate:,.0f} tok/s")
        parts.append(f"{clock(self._elapsed_s())} elapsed")
        remaining = self._remaining_s(others)
        if remaining is not None:
            parts.append(f"{clock(remaining)} left")
        parts += [f"{name} {self._stats[key]:.3g}" for key, name in _STATS.items() if self._stats.get(key)]
        return "".join(c if c.isprintable() else "?" for c in " · ".join(parts))

    def _elapsed_s(self) -> float:
        return self._clock() - self._started if self._sweep is None else self._sweep.elapsed_s()

    def _remaining_s(self, others: OtherRuns | None) -> float | None:
        """Seconds left, of the whole sweep; None while there are too few answers to tell.

        The first answers of concurrent requests arrive together, so the number of answers must exceed that of
        requests in flight.
        """
        todo = self._total - self._already_done - self._answered
        answered = self._answered
        if others is not None:
            todo, answered = max(0, todo) + others.todo, answered + others.answered
        elapsed = self._elapsed_s()
        if not answered or elapsed <= 0 or todo < 0:
            return None
        in_flight = max(self._stats.get("concurrency", 0), self._stats.get("running", 0))
        if answered < todo and answered < max(_FEWEST_ANSWERS, in_flight + 1):
            return None
        return todo * elapsed / answered

    def _note_tokens(self, now: float, record: Mapping[str, Any]) -> None:
        tokens = int((self._totals.get("usage") or {}).get("output_tokens") or 0)
        if not self._tokens:
            before = tokens - int((record.get("usage") or {}).get("output_tokens") or 0)
            self._tokens.append((self._started, before))
        if len(self._tokens) > 1 and now - self._tokens[-2][0] < _TICK_S:
            self._tokens.pop()  # one measurement per second is enough
        self._tokens.append((now, tokens))
        while len(self._tokens) > 2 and now - self._tokens[1][0] > _RATE_WINDOW_S:
            self._tokens.popleft()

    def _tokens_per_s(self) -> float | None:
        """Output tokens per second over the last ``_RATE_WINDOW_S``."""
        if len(self._tokens) < 2:
            return None
        (first_at, first), last = self._tokens[0], self._tokens[-1][1]
        elapsed = self._clock() - first_at
        return (last - first) / elapsed if elapsed > 0 else None


class _SafeStream:
    """Writes to a stream until that fails, then discards: a closed terminal must not end the run."""

    def __init__(self, stream: TextIO) -> None:
        self._wrapped = stream
        self._failed = False

    def write(self, text: str) -> int:
        if not self._failed:
            try:
                self._wrapped.write(text)
                self._wrapped.flush()
            except (OSError, ValueError):
                self._failed = True
        return len(text)

    def flush(self) -> None:
        """Does nothing: every write is flushed."""

    def isatty(self) -> bool:
        return is_terminal(self._wrapped)

    def fileno(self) -> int:
        return self._wrapped.fileno()

    @property
    def encoding(self) -> str:
        return self._wrapped.encoding


def _counts(totals: Mapping[str, Any], last_error: str | None) -> list[str]:
    parts = []
    if failed := totals.get("failed"):
        parts.append(f"{failed} failed" + (f" (last: {last_error})" if last_error else ""))
    if skipped := totals.get("skipped"):
        parts.append(f"{skipped} skipped")
    if totals.get("completed"):
        applied = applying(totals)
        finished = sum(totals.get(status) or 0 for status in ("completed", "failed", "skipped"))
        parts.append(f"patches apply {applied}/{finished} ({100 * applied / finished:.0f}%)")
    if turns := (totals.get("feedback") or {}).get("turns"):
        parts.append(f"{turns} further turns")
    return parts
