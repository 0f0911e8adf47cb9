"""Writes records to a run directory, with retries and a fallback for a full or failing disk.

An answer has been paid for when it arrives, so its record must reach some disk.
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

_FIRST_WAIT_S, _MAX_WAIT_S = 0.1, 2.0
_TIMEOUT_S = 5.0
"""Seconds that the end of a run waits for free disk space if all records are in the fallback."""
_MEMORY_TIMEOUT_S = 600.0
"""The same if a record exists only in memory."""
_RETRY_INTERVAL_S = 0.25


class RecordWriter:
    """Appends records to a store. Records that cannot be written are queued in order."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._unwritten: list[Record] = []
        self._in_memory: set[int] = set()
        self._next_try = 0.0

    def write(self, record: Record) -> bool:
        """Append a record. False if the run directory is not writable: the caller should send no further request."""
        first = not self._unwritten
        try:
            if first or time.monotonic() >= self._next_try:
                self._flush()
                self._store.append(record)
                return True
        except (StoreError, MemoryError) as error:
            self._next_try = time.monotonic() + _RETRY_INTERVAL_S
            if first:
                log.error("%s; no further request is sent, answers in flight are kept", _message(error))
        self._unwritten.append(record)
        if self._append_to_fallback(record) is None:
            self._in_memory.add(id(record))
        return False

    def wait_until_written(self) -> bool:
        """Retry until all records are in the run directory or the timeout passes; returns whether they are.

        The timeout is long if a record exists only in memory.
        """
        if not self._unwritten:
            return True
        started, wait_s, reported = time.monotonic(), _FIRST_WAIT_S, False
        while True:
            try:
                self._flush()
            except (StoreError, MemoryError):
                self._retry_fallback()
            else:
                log.warning("all records are in the run directory now")
                return True
            if time.monotonic() - started > (_MEMORY_TIMEOUT_S if self._in_memory else _TIMEOUT_S):
                return self.report_unwritten()
            if INTERRUPTS.stopping and not self._in_memory:
                return self.report_unwritten()
            if self._in_memory and not reported:
                reported = True
                log.error(
                    "%d answers are only in memory and cannot be written: free disk space within %d minutes",
                    len(self._in_memory), _MEMORY_TIMEOUT_S // 60,
                )  # fmt: skip
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)

    def report_unwritten(self) -> bool:
        """Log where the records are that are not in the run directory; returns False."""
        directory = self._store.directory
        if kept := len(self._unwritten) - len(self._in_memory):
            files = ", ".join(map(str, self._store.fallback_files))
            log.error(
                "%d answers could not be written to %s and are kept in %s: free disk space and repeat the command",
                kept, directory, files,
            )  # fmt: skip
        if self._in_memory:
            log.error("%d answers could not be written anywhere and are lost", len(self._in_memory))
        return False

    def _flush(self) -> None:
        """Append the queued records in order.

        Raises:
            StoreError: the store is still not writable.
        """
        while self._unwritten:
            self._store.append(self._unwritten[0])
            self._in_memory.discard(id(self._unwritten[0]))
            del self._unwritten[0]
            if not self._unwritten:
                self._store.check()
                self._store.remove_fallback()

    def _retry_fallback(self) -> None:
        for record in self._unwritten:
            if id(record) in self._in_memory and self._append_to_fallback(record) is not None:
                self._in_memory.discard(id(record))

    def _append_to_fallback(self, record: Record) -> Path | None:
        try:
            return self._store.append_to_fallback(record)
        except (OSError, MemoryError):
            return None


def _message(error: BaseException) -> str:
    return str(error) or "out of memory"
