"""Reads what a run in progress appends to its records, without reading the rest again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from swe_infer.files import open_regular
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.records import LONGEST_LINE, Record, split_line
from swe_infer.run_directory.totals import Totals

_CHUNK = 1 << 20
_MOST_BYTES = 1 << 26
"""Bytes that one call reads at most, so that a large file delays no other run."""


class RecordsReplaced(Exception):
    """The file is another one, or shorter than before: it must be read from its start."""


class RecordTail:
    """The records of a file that grows. Each call of :meth:`read` continues where the last one ended.

    A line without an end is kept until the rest of it is written. Duplicates are left out, as
    :func:`swe_infer.run_directory.records.read_records` does.

    Args:
        path: of the records; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._parts: list[bytes] = []
        self._partial_bytes = 0
        self._seen: set[int] = set()
        self.is_complete = False
        """Whether the last call read to the end of the file."""

    def read(self) -> Iterator[Record]:
        """Yields the records that were appended since the last call.

        Raises:
            RecordsReplaced: the file must be read again, by a new object.
            OSError: the file cannot be read, or is not a regular file.
        """
        try:
            file = os.fdopen(open_regular(self._path), "rb", buffering=0)
        except FileNotFoundError:
            if self._file is not None:
                raise RecordsReplaced from None
            self.is_complete = True
            return
        with file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            if self._file not in (None, identity) or status.st_size < self._offset:
                raise RecordsReplaced
            self._file = identity
            file.seek(self._offset)
            budget = _MOST_BYTES
            while budget > 0 and (chunk := file.read(_CHUNK)):
                budget -= len(chunk)
                self._offset += len(chunk)
                yield from self._records_in(chunk)
            self.is_complete = self._offset >= status.st_size

    def _records_in(self, chunk: bytes) -> Iterator[Record]:
        *ends, last = chunk.split(b"\n")
        for end in ends:
            self._keep(end)
            line, too_long = b"".join(self._parts), self._partial_bytes >= LONGEST_LINE
            self._parts, self._partial_bytes = [], 0
            if not too_long:
                yield from self._new_records(line)
        self._keep(last)

    def _keep(self, part: bytes) -> None:
        """Keeps a part of a line. A line that is too long is dropped, and only its length is kept."""
        self._partial_bytes += len(part)
        if self._partial_bytes >= LONGEST_LINE:
            self._parts = []
        elif part:
            self._parts.append(part)

    def _new_records(self, line: bytes) -> Iterator[Record]:
        for text, record in split_line(line):
            if record is not None and (mark := hash(text)) not in self._seen:
                self._seen.add(mark)
                yield record


class LiveFigures:
    """The figures of a run in progress, from its records.

    Args:
        directory: of the run.
        coverage: what the command covers; None: every instance with a record.
        samples: for each instance, from the run's configuration.
    """

    def __init__(self, directory: Path, coverage: Coverage | None, samples: int | None) -> None:
        self.totals = Totals() if coverage is None else Totals(coverage.ids, coverage.turns)
        self._tail = RecordTail(directory / layout.RECORDS)
        self._instances = None if coverage is None or coverage.instance_ids is None else len(coverage.instance_ids)
        self._samples = samples

    @property
    def is_complete(self) -> bool:
        """Whether the last :meth:`update` read every record."""
        return self._tail.is_complete

    def update(self) -> bool:
        """Reads the new records; returns whether every record is read.

        Raises:
            RecordsReplaced: see :meth:`RecordTail.read`.
            OSError: the records cannot be read.
        """
        for record in self._tail.read():
            self.totals.add_record(record)
        return self._tail.is_complete

    def summary(self, written: Summary) -> Summary:
        """The current summary.

        Args:
            written: the one that the run has written, which may be older than the records, or empty.
        """
        instances = written.get("instances") if self._instances is None else self._instances
        counted = self.totals.summary(
            instances=instances,
            samples=written.get("samples") or self._samples,
            unrecorded_usd=self.totals.unrecorded_usd(written),
        )
        # The counts of records, and the keys that only the run itself knows.
        own = {key: value for key, value in written.items() if key in _OF_THE_RUN}
        return cast(Summary, {**written, **counted, **own})


_OF_THE_RUN = ("wall_s", "output_tokens_per_s", "stats", "stopped_by")
