"""Frozen prompts: rows that need no repository, and the JSON-lines file to which they are appended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any, Self

from swe_infer.context.base import Shown
from swe_infer.context.gold import gold_changes
from swe_infer.context.repository import MOST_COUNTED
from swe_infer.errors import DataError, StoreError
from swe_infer.files import hidden_beside, open_regular, read_regular, sync_data, write_atomically, write_whole
from swe_infer.instance_files import FILES_COLUMN, files_of
from swe_infer.interrupts import INTERRUPTS
from swe_infer.locks import Locks
from swe_infer.prompt_format import EDIT_FORMAT_COLUMN, SYSTEM_COLUMN
from swe_infer.prompts.prompt import TEXT_COLUMN
from swe_infer.run_directory.lock import locked
from swe_infer.text import bounded_json
from swe_infer.types import EditFormat, Instance

WRITTEN_COLUMNS = (TEXT_COLUMN, SYSTEM_COLUMN, EDIT_FORMAT_COLUMN, FILES_COLUMN)
"""The columns that freezing adds to a row, or replaces."""

_LONGEST_LINE = 1 << 30
_MOST_RULES_BYTES = 1 << 20
BUDGETS = (4_000, 8_000, 13_000, 27_000, 50_000, MOST_COUNTED)
"""Values of ``context.max_tokens`` for which the recall of gold files is shown. SWE-bench's prompts with files from
BM25 have at most 13,000, 27,000 or 50,000 tokens."""
_COMPARED = 8
"""Number of prompts in the file that are compared with newly rendered ones."""


def frozen_row(row: Mapping[str, Any], instance: Instance, edit_format: EditFormat) -> dict[str, Any]:
    """A row with its finished prompt, and the files that the prompt shows.

    Args:
        row: the dataset's columns; those in :data:`WRITTEN_COLUMNS` are replaced.
        edit_format: the form of answer that the prompt requests.
    """
    return {
        **{name: value for name, value in row.items() if name not in WRITTEN_COLUMNS},
        TEXT_COLUMN: instance.prompt.question,
        SYSTEM_COLUMN: instance.prompt.system or "",
        EDIT_FORMAT_COLUMN: edit_format,
        FILES_COLUMN: dict(instance.files),
    }


@dataclass(frozen=True, slots=True)
class RowFigures:
    """Figures of one frozen row.

    Args:
        tokens: of the prompt.
        counter: the name of the method by which they were counted.
        gold_files: files that the gold patch changes, created ones not included; 0 without a gold patch.
        gold_files_shown: how many of them the prompt shows.
        left_out: number of chosen files that are not shown, by reason.
        gold_files_within: how many of the gold files the prompt would show with ``context.max_tokens`` set to each of
            :data:`BUDGETS`; empty if the context does not count all files that it chooses.
    """

    tokens: int = 0
    counter: str = ""
    gold_files: int = 0
    gold_files_shown: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    gold_files_within: Mapping[str, int] = field(default_factory=dict)


def _gold_files(row: Mapping[str, Any]) -> set[str]:
    """The files that a row's gold patch changes; none without a readable patch."""
    try:
        return {change.old_path for change in gold_changes(row) if change.old_path is not None}
    except DataError:
        return set()


def figures_of(row: Mapping[str, Any], files: Mapping[str, str], shown: Shown | None = None) -> RowFigures:
    """The figures of a row, without its tokens.

    Args:
        files: path to content of the files that the prompt shows.
        shown: the context's files; None: unknown, or there is no context.
    """
    gold = _gold_files(row)
    if shown is None:
        return RowFigures(gold_files=len(gold), gold_files_shown=len(gold.intersection(files)))
    left_out = Counter(_without_numbers(why) for why in shown.left_out.values())
    within = {} if shown.tokens is None else {str(most): _shown_within(shown.tokens, gold, most) for most in BUDGETS}
    return RowFigures(
        gold_files=len(gold),
        gold_files_shown=len(gold.intersection((*files, *shown.paths))),
        left_out=dict(left_out),
        gold_files_within=within,
    )


def _shown_within(tokens: Mapping[str, int], gold: Container[str], most: int) -> int:
    """How many gold files fit into ``most`` tokens, as the context fills them.

    Args:
        tokens: path to tokens of the chosen files, in order.
    """
    found = 0
    for path, count in tokens.items():
        if count <= most:
            most -= count
            found += path in gold
    return found


def _without_numbers(reason: str) -> str:
    return " ".join("N" if word.replace(",", "").isdigit() else word for word in reason.split())


class PromptLines:
    """A JSON-lines file of frozen rows, locked by this process. A context manager.

    A folder ``.NAME.swe_infer`` beside ``out`` contains the lock, the rules of the rows, and their figures. With
    ``direct=False`` it also contains the JSON lines, which are converted to ``out`` at the end.

    Args:
        out: the output path of the user.
        label: its name in messages.
        direct: ``out`` is the file of JSON lines itself.
        rules: the options that decide the rows (dataset, context, prompt), as a flat mapping.

    Raises:
        StoreError: another process has locked it, it has other rules, another program wrote it, or it is damaged.
        OSError: it cannot be written.
    """

    def __init__(self, out: Path, label: str, *, direct: bool, rules: Mapping[str, Any], locks: Locks) -> None:
        self.out = out
        self.ids: set[str] = set()
        self.digests: dict[str, str] = {}
        """SHA-256 of a few prompts, by ``instance_id``."""
        self.label = label
        self.folder = hidden_beside(out, ".swe_infer")
        self.path = out if direct else self.folder / "prompts.jsonl"
        self._rules_path = self.folder / "rules.json"
        self._figures_path = self.folder / "figures.jsonl"
        if not self.folder.exists() and _holds_something(out):
            raise StoreError(f"{label}: exists, and was not made by this command; choose another name")
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder / "lock", locks, label))
            self._check_rules(rules)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def open(self) -> None:
        """Reads the ids of the rows in the file, and removes a truncated last line.

        Raises:
            StoreError: a line is not a frozen row.
        """
        self._lines = self._opened(self.path)
        for row in self.rows():
            instance_id = row["instance_id"]
            self.ids.add(instance_id)
            if len(self.digests) < _COMPARED and isinstance(text := row.get(TEXT_COLUMN), str):
                self.digests[instance_id] = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        self._figures = self._opened(self._figures_path)
        _cut_after_last_line(self._figures)

    def _opened(self, path: Path) -> int:
        descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._open.callback(os.close, descriptor)
        return descriptor

    def fill(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Recreates the JSON lines of a finished ``out``, before :meth:`open`; does nothing if they exist.

        Raises:
            OSError: they cannot be written.
        """
        if self.path.exists():
            return
        new = self.folder / "prompts.new"
        with new.open("w", encoding="ascii") as file:
            for row in rows:
                kept = {name: value for name, value in row.items() if value is not None}
                file.write(json.dumps({**kept, FILES_COLUMN: files_of(row) or {}}, default=_plain) + "\n")
        os.replace(new, self.path)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the file, in order.

        Raises:
            StoreError: a line is not a frozen row.
        """
        with open(open_regular(self.path), "rb", buffering=1 << 18) as file:
            end = 0
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._lines, end)  # a killed process wrote a part of it
                    return
                end += len(line)
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict) or not isinstance(row.get("instance_id"), str):
                    raise StoreError(
                        f"{self.label}, line {number}: is not a row of this command; choose another name"
                    )
                yield row

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends a row atomically.

        Raises:
            OSError: the disk is full or failing.
        """
        self._write(self._lines, self.path, json.dumps(row, default=_plain))
        self.ids.add(row["instance_id"])

    def append_figures(self, instance_id: str, figures: RowFigures) -> None:
        """Appends the figures of a row.

        Raises:
            OSError: the disk is full or failing.
        """
        line = json.dumps({"instance_id": instance_id, **asdict(figures)})
        self._write(self._figures, self._figures_path, line)

    def figures(self) -> dict[str, RowFigures]:
        """The figures of rows by ``instance_id``, as far as they are known. Damaged lines are ignored."""
        found: dict[str, RowFigures] = {}
        with open(open_regular(self._figures_path), "rb") as file:
            for line in iter(lambda: file.readline(_MOST_RULES_BYTES), b""):
                try:
                    values = bounded_json(line)
                    figures = RowFigures(**{key: value for key, value in values.items() if key != "instance_id"})
                    numbers = (
                        figures.tokens,
                        figures.gold_files,
                        figures.gold_files_shown,
                        *figures.left_out.values(),
                        *figures.gold_files_within.values(),
                    )
                    if isinstance(values["instance_id"], str) and all(type(number) is int for number in numbers):
                        found[values["instance_id"]] = figures
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    continue
        return found

    def sync(self) -> None:
        """Flushes the rows to the disk."""
        with suppress(OSError):
            sync_data(self._lines)

    def _write(self, descriptor: int, path: Path, line: str) -> None:
        with INTERRUPTS.put_off():  # a second Ctrl-C must not cut a line
            unwritten = write_whole(descriptor, f"{line}\n".encode("ascii"))
        if unwritten is not None:
            raise OSError(unwritten.errno, f"{path}: {unwritten.reason}; what was written before is kept")

    def _check_rules(self, rules: Mapping[str, Any]) -> None:
        """Compares the rules with those of the file, or stores them for a new file."""
        if not _holds_something(self.out) and (self.path == self.out or not self.path.exists()):
            for name in ("prompts.jsonl", "figures.jsonl"):
                (self.folder / name).unlink(missing_ok=True)  # left from a removed file
            write_atomically(self._rules_path, json.dumps(dict(rules), indent=1, sort_keys=True, default=str) + "\n")
            return
        try:
            before = bounded_json(read_regular(self._rules_path, _MOST_RULES_BYTES))
        except (OSError, ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise StoreError(
                f"{self.label}: exists, and its rules are unknown ({self._rules_path}); choose "
                "another name, or remove it"
            )
        now = json.loads(json.dumps(dict(rules), default=str))
        changed = [
            f"{key}: {before.get(key)!r} → {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise StoreError(f"{self.label}: made with other options ({'; '.join(changed[:3])}); choose another name")


def remove(path: Path) -> None:
    """Removes a file or folder that a killed process left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _holds_something(path: Path) -> bool:
    return path.exists() and (any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0)


def _cut_after_last_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 1 << 16, max(0, size - (1 << 16)))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(descriptor, size - len(tail) + tail.rfind(b"\n") + 1)


def _plain(value: object) -> object:
    """A column's value of a type that JSON lacks: dates as ISO 8601, bytes as UTF-8, others as their text."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "surrogateescape")
    return str(value)
