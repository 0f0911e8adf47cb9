"""The live line of a run: done, failed, patches, dollars, tokens per second, time left.

On a terminal it is one line that is drawn over and over; elsewhere plain lines, seconds to a minute apart. Only
numbers and names of our own are shown, stripped of control characters, so no answer or id can move the cursor.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TextIO

from swe_infer.run_directory.figures import applying

__all__ = ["Progress"]

_REDRAW_S = 0.1
_TICK_S = 1.0
_PLAIN_FIRST_S, _PLAIN_MOST_S = 5.0, 60.0
_RATE_WINDOW_S = 30.0
_STATS = {
    "concurrency": "in flight",
    "running": "batch",
    "prompt_tokens_per_s": "prompt tok/s",
    "cache_hit_rate": "prefix cache",
    "prompt_cache_hit_rate": "prompt cache",
    "response_cache_hits": "known answers",
    "preemptions": "preempted",
    "kv_cache_gb": "cache GB",
}
"""A runner's figures that have a place in the line, and under which name; the others go to summary and tracker."""
_CLEAR = "\r\x1b[2K"


class Progress:
    """Shows a run on ``stream`` until :meth:`close`. Methods may be called from any thread, and never raise.

    Args:
        total: samples that the run asks for, those of earlier tries included.
        already_done: how many of them need no work any more.
        stream: where to draw; handlers of the root logger that write to the same terminal are led around the line.
        clock: seconds, monotonic.
    """

    def __init__(
        self, total: int, already_done: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._already_done = already_done
        self._stream = stream
        self._clock = clock
        self._started = clock()
        self._answered = 0
        self._totals: Mapping[str, Any] = {}
        self._stats: Mapping[str, float] = {}
        self._last_error: str | None = None
        self._tokens: deque[tuple[float, int]] = deque()
        self._lock = threading.RLock()
        self._drawn_at: float | None = None
        self._plain_interval_s = _PLAIN_FIRST_S
        self._line_is_up = False
        self._closed = threading.Event()
        self._broken = False
        self._live = _is_terminal(stream)
        self._led_around: list[tuple[logging.StreamHandler[Any], Any]] = []
        if self._live:
            self._lead_logging_around()
            self._draw()
            threading.Thread(target=self._tick, name="progress", daemon=True).start()

    def update(self, record: Mapping[str, Any], totals: Mapping[str, Any], stats: Mapping[str, float]) -> None:
        """Take in one record, and the totals and the runner's figures after it."""
        with self._lock:
            now = self._clock()
            self._answered += 1
            self._totals, self._stats = totals, stats
            if record.get("status") == "failed":
                self._last_error = (record.get("error") or {}).get("type")
            self._note_tokens(now, record)
            if self._live:
                if self._drawn_at is None or now - self._drawn_at >= _REDRAW_S:
                    self._draw()
            elif self._drawn_at is None or now - self._drawn_at >= self._plain_interval_s:
                if self._drawn_at is not None:
                    self._plain_interval_s = min(2 * self._plain_interval_s, _PLAIN_MOST_S)
                self._draw()

    def close(self) -> None:
        """Leave the last state on the screen and give the loggers back their stream."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            if self._live or self._answered:
                self._draw()
            if self._live:
                self._write("\n")
            for handler, stream in self._led_around:
                handler.setStream(stream)

    def line(self) -> str:
        """What is shown, without control characters."""
        done = min(self._total, self._already_done + self._answered)
        share = f" {100 * done // self._total}%" if self._total else ""
        parts = [f"{done}/{self._total}{share}", *_counts(self._totals, self._last_error)]
        if "cost_usd" in self._totals:
            parts.append(_dollars(self._totals["cost_usd"]))
        rate = self._tokens_per_s()
        if rate is not None:
            parts.append(f"{rate:,.0f} tok/s")
        parts.append(f"{_duration(self._clock() - self._started)} elapsed")
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{_duration(left)} left")
        parts += [f"{name} {self._stats[key]:.3g}" for key, name in _STATS.items() if self._stats.get(key)]
        return "".join(c if c.isprintable() else "?" for c in " · ".join(parts))

    def _seconds_left(self) -> float | None:
        todo = self._total - self._already_done - self._answered
        elapsed = self._clock() - self._started
        if not self._answered or elapsed <= 0 or todo < 0:
            return None
        return todo * elapsed / self._answered

    def _note_tokens(self, now: float, record: Mapping[str, Any]) -> None:
        tokens = int((self._totals.get("usage") or {}).get("output_tokens") or 0)
        if not self._tokens:
            before = tokens - int((record.get("usage") or {}).get("output_tokens") or 0)
            self._tokens.append((self._started, before))
        if len(self._tokens) > 1 and now - self._tokens[-2][0] < _TICK_S:
            self._tokens.pop()  # one point a second is enough
        self._tokens.append((now, tokens))
        while len(self._tokens) > 2 and now - self._tokens[1][0] > _RATE_WINDOW_S:
            self._tokens.popleft()

    def _tokens_per_s(self) -> float | None:
        """Output tokens per second of the last half minute."""
        if len(self._tokens) < 2:
            return None
        (first_at, first), last = self._tokens[0], self._tokens[-1][1]
        elapsed = self._clock() - first_at
        return (last - first) / elapsed if elapsed > 0 else None

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        if not self._live:
            self._write(self.line() + "\n")
            return
        width = _width(self._stream)
        line = self.line()
        self._write(_CLEAR + (line if len(line) < width else line[: max(0, width - 2)] + "…"))
        self._line_is_up = True

    def _tick(self) -> None:
        """Show that time passes while an answer is long in coming."""
        while not self._closed.wait(_TICK_S):
            with self._lock:
                if not self._closed.is_set():
                    self._draw()

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._broken = True  # the terminal is gone; the run is not

    def _lead_logging_around(self) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and _is_terminal(handler.stream):
                self._led_around.append((handler, handler.stream))
                handler.setStream(_Around(self, handler.stream))

    def write_around(self, stream: TextIO, text: str) -> None:
        """Write ``text`` to ``stream`` where the line is, and draw the line again below it."""
        with self._lock:
            if self._line_is_up:
                self._write(_CLEAR)
                self._line_is_up = False
            stream.write(text)
            stream.flush()
            if text.endswith("\n") and not self._closed.is_set():
                self._draw()


class _Around:
    """The stream of a log handler while the line is up."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress = progress
        self._stream = stream

    def write(self, text: str) -> int:
        self._progress.write_around(self._stream, text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


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
    return parts


def _dollars(cost: Decimal | float | None) -> str:
    if cost is None:
        return "cost unknown"
    return f"${cost:.4f}" if 0 < cost < 1 else f"${cost:,.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
