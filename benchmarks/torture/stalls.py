"""When an event loop is late, why: its own code, a system call it waits in, or a processor it is not given.

The kernel counts for each thread how long it was ready to run and had no processor (``schedstat``, Linux
Documentation/scheduler/sched-stats.rst). A beat's lateness less that time is the program's own: code that ran, or a
call that waited with the loop in it. A second thread writes down where the loop is whenever a beat is overdue, and
each callback of the loop is timed, so that a long one can be told from a long queue of short ones.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

__all__ = ["Heartbeat", "Sample"]

BEAT_S = 0.02
_WATCH_S = 0.01
_OVERDUE_S = 0.05
_LONG_S = 0.1
_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Once a second: seconds since the first beat, resident MB, file handles, tasks, threads."""

    seconds: float
    resident_mb: float
    handles: int
    tasks: int
    threads: int


@dataclass
class Heartbeat:
    """Beats in an event loop every 20 ms; made and started in the thread that runs it.

    Args:
        least_tasks: beats count from the moment at which the loop has so many tasks.
    """

    least_tasks: int = 10
    at_s: array[float] = field(default_factory=lambda: array("d"))
    """Since the first beat."""
    late_s: array[float] = field(default_factory=lambda: array("d"))
    queued_s: array[float] = field(default_factory=lambda: array("d"))
    """Ready to run in this beat, without a processor."""
    used_s: array[float] = field(default_factory=lambda: array("d"))
    samples: list[Sample] = field(default_factory=list)
    callbacks: Counter[str] = field(default_factory=Counter)
    """The longest time of each kind of callback, in milliseconds of the thread's processor time."""
    long_beats: list[tuple[float, str]] = field(default_factory=list)
    """(lateness without the wait for a processor, what the loop did in it) of beats that were late by 100 ms."""
    collections_s: list[float] = field(default_factory=list)
    """Of the oldest generation: how long each took."""
    where: Counter[str] = field(default_factory=Counter)
    """Where the loop was, each 10 ms that a beat was overdue."""
    _due: float = 0.0
    _count: Counter[str] = field(default_factory=Counter)
    _took_ms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _ended: threading.Event = field(default_factory=threading.Event)

    async def beat(self) -> None:
        """Runs until it is cancelled."""
        while len(asyncio.all_tasks()) < self.least_tasks:  # noqa: ASYNC110 - requests begin unannounced
            await asyncio.sleep(BEAT_S)
        thread = threading.get_ident()
        queue = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        threading.Thread(target=self._watch, args=[thread], name="stall-watch", daemon=True).start()
        gc.callbacks.append(self._collected)
        self._time_callbacks()
        begun, measured = time.monotonic(), 0.0
        try:
            while True:
                queued, used = _queued_s(queue), time.thread_time()
                self._due = due = time.monotonic() + BEAT_S
                await asyncio.sleep(BEAT_S)
                now = time.monotonic()
                self.at_s.append(now - begun)
                self.late_s.append(now - due)
                self.used_s.append(time.thread_time() - used)
                self.queued_s.append(_queued_s(queue) - queued)
                self._account()
                if now - measured > 1.0:
                    measured = now
                    self.samples.append(_sample(now - begun))
        finally:
            self._ended.set()
            gc.callbacks.remove(self._collected)
            os.close(queue)

    def own_s(self) -> list[float]:
        """Of each beat's lateness, what was not spent waiting for a processor; sorted."""
        return sorted(max(0.0, late - queued) for late, queued in zip(self.late_s, self.queued_s, strict=True))

    def worst(self, count: int = 5) -> list[dict[str, float]]:
        """The beats that were latest by their own fault, in milliseconds."""
        beats = zip(self.at_s, self.late_s, self.queued_s, self.used_s, strict=True)
        latest = sorted(beats, key=lambda beat: beat[2] - beat[1])[:count]
        return [
            {"at_s": round(at, 1), "late": round(1e3 * late), "queued": round(1e3 * queued), "ran": round(1e3 * used)}
            for at, late, queued, used in latest
        ]

    def _watch(self, thread: int) -> None:
        while not self._ended.wait(_WATCH_S):
            if self._due and time.monotonic() > self._due + _OVERDUE_S:
                frame = sys._current_frames().get(thread)
                if frame is not None:
                    self.where[_place(frame)] += 1

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2:
            if phase == "start":
                self._collection = time.monotonic()
            else:
                self.collections_s.append(time.monotonic() - self._collection)

    def _time_callbacks(self) -> None:
        """Have every callback of asyncio's loops timed by the thread's processor time."""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            begun = time.thread_time()
            run(handle)
            took = 1e3 * (time.thread_time() - begun)
            name = _callback_name(handle)
            self._count[name] += 1
            self._took_ms[name] += took
            if took > 10.0:
                self.callbacks[name] = max(self.callbacks[name], round(took))

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]

    def _account(self) -> None:
        """End one beat's account of callbacks."""
        own = self.late_s[-1] - self.queued_s[-1]
        if own > _LONG_S:
            most = sorted(self._took_ms, key=self._took_ms.__getitem__, reverse=True)[:5]
            told = ", ".join(f"{self._count[name]} x {name} {self._took_ms[name]:.0f} ms" for name in most)
            self.long_beats.append((own, f"at {self.at_s[-1]:.1f} s, {1e3 * own:.0f} ms: {told}"))
        self._count.clear()
        self._took_ms.clear()


def _callback_name(handle: asyncio.Handle) -> str:
    callback: Any = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return getattr(owner.get_coro(), "__qualname__", repr(owner))
    return getattr(callback, "__qualname__", type(callback).__name__)


def _place(frame: FrameType) -> str:
    """The innermost frames of this program and its libraries, the loop's own left out."""
    names: list[str] = []
    step: FrameType | None = frame
    while step is not None and len(names) < _FRAMES:
        code: CodeType = step.f_code
        names.append(f"{Path(code.co_filename).stem}.{code.co_name}:{step.f_lineno}")
        step = step.f_back
    return " < ".join(names)


def _queued_s(descriptor: int) -> float:
    return int(os.pread(descriptor, 100, 0).split()[1]) / 1e9


def _sample(seconds: float) -> Sample:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        seconds,
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        len(os.listdir("/proc/self/fd")),
        len(asyncio.all_tasks()),
        threading.active_count(),
    )
