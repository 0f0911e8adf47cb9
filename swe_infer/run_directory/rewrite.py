"""Replaces fields of the records of a finished run, without a change of its costs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from swe_infer.errors import StoreError
from swe_infer.files import create_beside, open_regular, sync_directory
from swe_infer.run_directory.records import LONGEST_LINE, Damage, Record, read_records, split_line
from swe_infer.run_directory.totals import Totals

_INSTANCE = re.compile(rb'"instance_id"\s*:\s*("(?:[^"\\]|\\.){0,1000}")')


def rewrite_records(
    path: Path, change: Callable[[Record], Mapping[str, Any] | None], before_replace: Callable[[], object]
) -> bool:
    """Replace fields of records. After a kill the file has the old or the new content.

    Damaged lines stay as they are, and so do the records of the instances in them: a duplicate or a fragment is
    recognised by its text, and would otherwise count as paid for separately.

    Args:
        path: ``records.jsonl``. The caller must have locked its directory.
        change: returns the new values of some fields of a record; None or the same values: no change.
        before_replace: called once the new file is complete, if any record changes.

    Returns:
        Whether any record has changed.

    Raises:
        StoreError: the file cannot be read or written, or its usage or cost would change. It is unchanged then.
    """
    try:
        kept = _damaged_instances(path)
        descriptor, new = create_beside(path)
        try:
            changed = False
            with open(descriptor, "wb") as file:
                for line in _lines(path):
                    written = _changed(line, change, kept)
                    changed = changed or written is not None
                    file.write(line if written is None else written)
                file.flush()
                os.fsync(file.fileno())
            if not changed:
                return False
            if _paid(path) != _paid(new):
                raise StoreError(f"{path}: its records are damaged so that their cost would change; it is unchanged")
            before_replace()
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None
    return True


def _changed(line: bytes, change: Callable[[Record], Mapping[str, Any] | None], kept: frozenset[str]) -> bytes | None:
    """The new line; None if it does not change."""
    parts = split_line(line)
    if len(parts) != 1:
        return None
    text, record = parts[0]
    if record is None or record["instance_id"] in kept:
        return None
    fields = change(record)
    if fields is None or all(key in record and record.get(key) == value for key, value in fields.items()):
        return None
    return (json.dumps({**json.loads(text), **fields}) + "\n").encode("ascii")


def _damaged_instances(path: Path) -> frozenset[str]:
    """The instances in lines that are not exactly one record."""
    found: set[str] = set()
    for line in _lines(path):
        parts = split_line(line)
        if len(parts) == 1 and parts[0][1] is not None:
            continue
        for name in _INSTANCE.findall(line):
            try:
                found.add(json.loads(name))
            except ValueError:
                continue
    return frozenset(found)


def _lines(path: Path) -> Iterator[bytes]:
    with os.fdopen(open_regular(path), "rb") as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise StoreError(f"{path}: a line is longer than {LONGEST_LINE >> 20} MiB; it is unchanged")
            yield line


def _paid(path: Path) -> tuple[object, ...]:
    """Everything that counts what was paid for."""
    totals, damage = Totals(), Damage()
    for record in read_records(path, damage):
        totals.add_record(record)
    return totals.records, totals.usage, totals.cost_usd, damage.unreadable, damage.usage, damage.cost_usd
