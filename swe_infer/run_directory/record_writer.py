"""Records that the run directory does not take: held, kept elsewhere, tried again until they are where they belong.

An answer is paid for when it comes, so it must reach some disk, however full this one is.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from swe_infer.errors import StoreError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.run_directory.records import Record
from swe_infer.run_directory.store import RunStore

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _MOST_WAIT_S = 0.1, 2.0
_PATIENCE_S = 5.0
"""So long the end of a run waits for room, where everything is safe elsewhere."""
_LAST_PATIENCE_S = 600.0
"""So long where something is in memory alone."""
_TRY_AGAIN_S = 0.25


class RecordWriter:
    """Appends records to a store; what that does not take waits here, in the order in which it came."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._waiting: list[Record] = []
        self._in_memory: set[int] = set()
        self._next_try = 0.0

    def write(self, record: Record) -> bool:
        """Keep a record. False where the run directory did not take it: no further answer should be asked for."""
        first = not self._waiting
        try:
            if first or time.monotonic() >= self._next_try:
                self._flush()
                self._store.append(record)
                return True
        except (StoreError, MemoryError) as error:
            self._next_try = time.monotonic() + _TRY_AGAIN_S
            if first:
                log.error("%s; no further request is made, what is in flight is kept", _said(error))
        self._waiting.append(record)
        if self._spilled(record) is None:
            self._in_memory.add(id(record))
        return False

    def wait_until_written(self) -> bool:
        """Try until everything is in the run directory, for a while; whether it is.

        Where something could not be kept anywhere, the while is long: memory is all there is.
        """
        if not self._waiting:
            return True
        begun, wait_s, told = time.monotonic(), _FIRST_WAIT_S, False
        while True:
            try:
                self._flush()
            except (StoreError, MemoryError):
                self._spill_again()
            else:
                log.warning("what could not be written before is in the run directory now")
                return True
            if time.monotonic() - begun > (_LAST_PATIENCE_S if self._in_memory else _PATIENCE_S):
                return self.report_unwritten()
            if INTERRUPTS.stopping and not self._in_memory:
                return self.report_unwritten()
            if self._in_memory and not told:
                told = True
                log.error(
                    "%d answers are in memory alone and nothing can be written: make room within %d minutes",
                    len(self._in_memory), _LAST_PATIENCE_S // 60,
                )  # fmt: skip
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _MOST_WAIT_S)

    def report_unwritten(self) -> bool:
        """Say where everything lies that is not in the run directory; False."""
        directory = self._store.directory
        if kept := len(self._waiting) - len(self._in_memory):
            files = ", ".join(map(str, self._store.spilled))
            log.error(
                "%d answers did not fit into %s and are kept in %s: make room, and the same command takes them in",
                kept, directory, files,
            )  # fmt: skip
        if self._in_memory:
            log.error("%d answers could not be written anywhere and are lost", len(self._in_memory))
        return False

    def _flush(self) -> None:
        """Append what waits, in order.

        Raises:
            StoreError: the store still takes nothing.
        """
        while self._waiting:
            self._store.append(self._waiting[0])
            self._in_memory.discard(id(self._waiting[0]))
            del self._waiting[0]
            if not self._waiting:
                self._store.check()
                self._store.forget_spilled()

    def _spill_again(self) -> None:
        for record in self._waiting:
            if id(record) in self._in_memory and self._spilled(record) is not None:
                self._in_memory.discard(id(record))

    def _spilled(self, record: Record) -> Path | None:
        try:
            return self._store.spill(record)
        except (OSError, MemoryError):
            return None


def _said(error: BaseException) -> str:
    return str(error) or "out of memory"
