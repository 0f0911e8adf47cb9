"""The progress line on a real pseudo-terminal and on a pipe."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, TextIO

import pytest

from swe_infer.progress import progress
from swe_infer.runners.progress import OtherRuns, Progress, SweepView


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def totals_after(n: int, **changes: Any) -> dict[str, Any]:
    return {
        "completed": n,
        "failed": 0,
        "skipped": 0,
        "remaining": 100 - n,
        "patches": {"applies": n // 2, "repaired": 1, "none": n - n // 2 - 1},
        "usage": {"input_tokens": 1000 * n, "output_tokens": 50 * n},
        "cost_usd": Decimal("0.0125") * n,
        **changes,
    }


RECORD = {"status": "completed", "usage": {"output_tokens": 50}}


@contextmanager
def terminal() -> Iterator[tuple[TextIO, list[bytes]]]:
    """A pseudo-terminal: a stream to write to, and the received text."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            if not data:
                return
            seen.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    stream = os.fdopen(slave, "w")
    try:
        yield stream, seen
    finally:
        stream.close()
        reader.join(60.0)
        os.close(master)


def screen(data: bytes) -> list[str]:
    """The lines that a terminal would show. A carriage return with an erase clears the line."""
    lines = re.sub(r"\x1b\[\?25[lh]", "", data.decode()).replace("\r\n", "\n").split("\n")
    return [re.split(r"\r\x1b\[2K", line)[-1] for line in lines]


def test_the_line_shows_counts_patches_dollars_rate_and_time_left() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(100, 20, out, clock)
    clock.now += 10
    for n in range(1, 11):
        progress.update(RECORD, totals_after(20 + n), {"concurrency": 8.0})
    line = progress.line()
    assert line.startswith("30/100 30% · patches apply 16/30 (53%) · $0.3750")
    assert "50 tok/s" in line  # 10 answers of 50 tokens in 10 s; the 20 earlier ones do not count
    assert "0:10 elapsed · 1:10 left" in line  # 70 to do at one a second
    assert line.endswith("in flight 8")


def test_the_time_left_is_not_estimated_from_the_first_answers() -> None:
    """Eight requests are in flight, so the first answer after 16 s says nothing about the next ones."""
    clock = Clock()
    progress = Progress(120, 0, io.StringIO(), clock)
    clock.now += 16
    for n in range(1, 9):
        progress.update(RECORD, totals_after(n), {"concurrency": 8.0})
        assert "left" not in progress.line()
    clock.now += 2
    progress.update(RECORD, totals_after(9), {"concurrency": 8.0})
    assert "0:18 elapsed · 3:42 left" in progress.line()


class View:
    """Point 2 of a sweep of three: one is done, one has 60 samples to go."""

    label = "point 2 of 3 · temperature=0.6"
    parallel = True

    def elapsed_s(self) -> float:
        return 40.0

    def others(self) -> OtherRuns:
        return OtherRuns(
            samples=100, done=40, answered=40, todo=60, resolved=30, evaluated=40, cost_usd=Decimal("0.25")
        )

    def joined(self, others: Sequence[SweepView]) -> SweepView:
        return self


def test_in_a_sweep_the_line_covers_all_points_and_parallel_ones_share_the_terminal_as_plain_lines() -> None:
    with terminal() as (stream, seen):
        progress = Progress(20, 0, stream, totals=totals_after(0, remaining=20), sweep=View())
        progress.close()
    first, *_ = screen(b"".join(seen))
    assert first == (
        "point 2 of 3 · temperature=0.6 · 0/20 0% · sweep 40/120 33% · resolved so far 30/40 (75%) · $0.2500 · "
        "0:40 elapsed · 1:20 left"
    )
    assert b"\x1b" not in b"".join(seen)


def test_failures_name_the_last_error_and_skips_are_counted() -> None:
    progress = Progress(100, 0, io.StringIO(), Clock())
    failed = {"status": "failed", "error": {"type": "RateLimited", "message": "secret"}}
    progress.update(failed, totals_after(4, failed=3, skipped=2), {})
    assert "3 failed (last: RateLimited) · 2 skipped" in progress.line()
    assert "secret" not in progress.line()


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        (None, "cost unknown"),
        (Decimal(0), "$0"),
        (Decimal("0.00012"), "$0.000120"),
        (Decimal("1234.5"), "$1,234.50"),
    ],
)
def test_costs_are_shown_and_an_unknown_cost_is_not_zero(cost: Decimal | None, shown: str) -> None:
    progress = Progress(10, 0, io.StringIO(), Clock())
    progress.update(RECORD, totals_after(1, cost_usd=cost), {})
    assert f" · {shown} · " in progress.line()


def test_no_control_character_reaches_the_terminal() -> None:
    progress = Progress(10, 0, io.StringIO(), Clock())
    record = {"status": "failed", "error": {"type": "\x1b[2JEvil\r\n"}}
    progress.update(record, totals_after(1, failed=1), {"speed\x07": 1.0})
    assert all(c.isprintable() for c in progress.line())


def test_without_a_terminal_plain_lines_come_at_growing_intervals() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(2000, 0, out, clock)
    for n in range(1, 1201):  # ten minutes, two answers a second
        clock.now += 0.5
        progress.update(RECORD, totals_after(n), {})
    progress.close()
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert 10 <= len(text.splitlines()) <= 16
    assert text.splitlines()[-1].startswith("1200/2000 60%")


def test_a_run_without_an_answer_leaves_no_plain_line() -> None:
    out = io.StringIO()
    Progress(5, 5, out, Clock()).close()
    assert out.getvalue() == ""


def test_a_terminal_shows_one_line_that_is_not_redrawn_for_every_answer() -> None:
    with terminal() as (stream, seen):
        progress = Progress(2000, 0, stream)
        for n in range(1, 1001):
            progress.update(RECORD, totals_after(n), {})
        progress.close()
    data = b"".join(seen)
    assert data.count(b"\r\x1b[2K") < 500
    shown = [line for line in screen(data) if line]
    assert len(shown) == 1
    assert shown[0].startswith("1000/2000 50%")
    assert data.rfind(b"\x1b[?25h") > data.rfind(b"\x1b[?25l"), "the cursor is there at the end"


def test_a_narrow_terminal_gets_a_shortened_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    with terminal() as (stream, seen):
        progress = Progress(100, 0, stream)
        progress.update(RECORD, totals_after(1), {})
        progress.close()
    (line,) = [line for line in screen(b"".join(seen)) if line]
    assert len(line) <= 30
    assert line.endswith("…")


def test_log_lines_appear_whole_above_the_progress_line() -> None:
    logger = logging.getLogger()
    with terminal() as (stream, seen):
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        try:
            progress = Progress(100, 0, stream)
            progress.update(RECORD, totals_after(1), {})
            logger.warning("a word of warning")
            progress.update(RECORD, totals_after(2), {})
            progress.close()
            assert handler.stream is stream
            logger.warning("after the end")
        finally:
            logger.removeHandler(handler)
    lines = [line for line in screen(b"".join(seen)) if line]
    assert lines[0] == "a word of warning"
    assert lines[1].startswith("2/100")
    assert lines[2] == "after the end"


def test_the_elapsed_time_advances_without_answers() -> None:
    with terminal() as (stream, seen):
        progress = Progress(100, 0, stream)
        while b"0:01 elapsed" not in b"".join(seen):
            time.sleep(0.02)
        progress.close()
    assert b"0:00 elapsed" in b"".join(seen)


def test_a_terminal_that_goes_away_does_not_stop_the_run() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w", buffering=1)
    progress = Progress(10, 0, stream, Clock())
    progress.update(RECORD, totals_after(1), {})
    progress.update(RECORD, totals_after(2), {})
    progress.close()
    os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # so that closing the stream can flush
    stream.close()


def test_threads_may_update_at_once() -> None:
    out = io.StringIO()
    progress = Progress(400, 0, out)

    def work() -> None:
        for _ in range(100):
            progress.update(RECORD, totals_after(1), {})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.close()
    assert out.getvalue().splitlines()[-1].startswith("400/400 100%")


def test_long_commands_show_a_bar_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    written = []
    for stream, steps in ((io.StringIO(), 3), (Terminal(), 3), (Terminal(), 1)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("testing", steps, fewest=1) as advance:
            for _ in range(steps):
                print("a line")
                advance()
        written.append(stream.getvalue())
    assert written[0] == ""
    assert "testing" in written[1]
    assert "3/3" in written[1]
    assert "1/1" in written[2], "a single long step"
    assert piped.getvalue() == 7 * "a line\n", "a pipe gets what is printed"
