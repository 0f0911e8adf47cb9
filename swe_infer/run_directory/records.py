"""What a record is, and how ``records.jsonl`` is read, damaged or not. Every reader goes through this module.

A line is one record. Where it is not, what can be read still counts:

* A record that is whole is read, whatever stands before or behind it in its line: NULs, another record, a cut one.
* A record that was cut or is not valid is lost, so that its answer is asked for again. The usage and cost that its
  remains state are kept: they were paid.
* A record that repeats another byte for byte was paid for once and counts once; so does a part of a record that is
  there whole as well (a write that was tried again, a file that was copied twice). Any other record of the same
  (instance, sample) is another answer, and was paid for too.
* Of several records of an (instance, sample), the last one counts, but that one of a failure never counts where there
  is an answer.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Literal, NotRequired, TypedDict, cast, get_args

from swe_infer.files import open_regular
from swe_infer.text import MOST_CONTAINERS, bounded_json
from swe_infer.types import MAX_SAMPLES, PatchStatus, Usage

Status = Literal["completed", "failed", "skipped"]
Key = tuple[str, int]
"""An instance's id and the number of a sample."""


class Error(TypedDict):
    """Why there is no answer."""

    type: str
    message: str


class Record(TypedDict):
    """One line of ``records.jsonl``. Records of earlier versions may lack what is not required.

    ``cost_usd`` and ``latency_s`` are Decimal once they are read; ``cost_usd`` is None where the price is not known.
    """

    instance_id: str
    sample: int
    status: Status
    cost_usd: Decimal | None
    finish_reason: NotRequired[str | None]
    full_output: NotRequired[str | None]
    model_patch: NotRequired[str | None]
    patch_status: NotRequired[PatchStatus | None]
    patch_reason: NotRequired[str | None]
    patch_repairs: NotRequired[list[str] | None]
    patch_format: NotRequired[str | None]
    prompt_sha256: NotRequired[str | None]
    usage: NotRequired[dict[str, int] | None]
    latency_s: NotRequired[float | Decimal | None]
    attempts: NotRequired[int | None]
    details: NotRequired[dict[str, Any] | None]
    error: NotRequired[Error | None]
    time: NotRequired[float | Decimal | None]


_STATUSES = get_args(Status)
_MOST_USD = 1_000_000
"""A cost above this one was not written by us."""

_MOST_NUMBER = 10**15
"""A number above this one was not written by us."""

_NOT_JSON = (ValueError, TypeError, KeyError, ArithmeticError, RecursionError)


class _Decoder(json.JSONDecoder):
    def __init__(self) -> None:
        super().__init__(parse_float=Decimal)


_DECODER = _Decoder()
_HEAD = re.compile(r'\{\s*"instance_id"\s*:')
"""How a record begins. Within a string its quotes would be escaped."""
_COST = re.compile(r'"cost_usd"\s*:\s*(null|\d[\d.eE+-]*)\s*[,}]')
_LATENCY = re.compile(r'"latency_s"\s*:\s*(\d[\d.eE+-]*)\s*[,}]')
_USAGE = re.compile(r'"usage"\s*:\s*(\{[^{}]*\})')
_SPACE = " \t\r\n\ufeff"
_BLANK = _SPACE + "\0"
LONGEST_LINE = 1 << 28
"""Bytes. A longer line is no record of ours, and is not read into memory whole."""
_SKIPPED = 1 << 24
"""Bytes of such a line that are read at a time."""
_INVALID_UTF8 = re.compile("[\udc80-\udcff]")
"""What the error handler ``surrogateescape`` puts in the place of bytes that are not UTF-8."""


@dataclass(slots=True)
class Damage:
    """What a ``records.jsonl`` states that no readable record holds.

    Args:
        unreadable: records of which only a part is left, or which are not valid; a line without any counts as one.
        repeated: records that repeat another one byte for byte.
        usage: what the unreadable ones state.
        cost_usd: the same in dollars; None where one says that its price is not known.
    """

    unreadable: int = 0
    repeated: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal | None = Decimal(0)

    def __bool__(self) -> bool:
        return self != Damage()

    def __str__(self) -> str:
        """One line for the log."""
        said = [f"unreadable records: {self.unreadable:,}"] if self.unreadable else []
        if self.repeated:
            said.append(f"repeated records, each counted once: {self.repeated:,}")
        if self.cost_usd is None:
            said.append("what the unreadable ones cost is not known")
        elif self.cost_usd:
            said.append(f"paid for what cannot be read, and counted: ${self.cost_usd:.6f}")
        return "; ".join(said)

    def add(self, part: str) -> None:
        """Count a record that cannot be read, and what is left of its usage and cost."""
        self.unreadable += 1
        for text in _USAGE.findall(part):
            try:
                usage = json.loads(text)
            except ValueError:
                continue
            if _is_usage(usage):
                self.usage += Usage(**usage)
        for cost in _costs(part):
            self.cost_usd = None if cost is None or self.cost_usd is None else self.cost_usd + cost

    def complete(self, recorded_usd: Decimal | None, summary: Mapping[str, Any]) -> None:
        """Raise the cost where ``summary.json`` counted more before than can be read now, so that it never falls.

        Args:
            recorded_usd: dollars of the records that can be read; None: a price is not known.
        """
        before = summary.get("cost_usd")
        if recorded_usd is None or self.cost_usd is None or not isinstance(before, int | float | Decimal):
            return
        known = recorded_usd + self.cost_usd
        if 0 <= before <= _MOST_USD and float(known) < float(before):
            self.cost_usd += Decimal(repr(float(before))) - known


def read_records(path: Path, damage: Damage | None = None) -> Iterator[Record]:
    """The records of a file in the order in which they were written, each once; money as Decimal.

    Args:
        damage: takes what could not be read, once the last record is read.
    """
    seen: set[int] = set()
    parts: list[str] = []
    for text, record in _pieces(path):
        if record is None:
            parts.append(text)
        elif (mark := hash(text)) not in seen:
            seen.add(mark)
            yield record
        elif damage is not None:
            damage.repeated += 1
    if damage is not None:
        for part in _unrepeated(parts, path):
            damage.add(part)


def records_of(lines: bytes) -> Iterator[Record]:
    """The whole records of some lines of the file."""
    for line in lines.split(b"\n"):
        yield from (record for _, record in split_line(line) if record is not None)


def split_line(line: bytes) -> list[tuple[str, Record | None]]:
    """The parts of a line, in order: the text of each, with its record where it is a whole one."""
    text = line.decode("utf-8", "surrogateescape").strip(_SPACE)
    stripped = text.strip(_BLANK)
    record = _record(stripped)
    if record is not None:
        return [(stripped, record)]
    return _split(stripped) if stripped else [(text, None)] if text else []


def states_cost(part: str) -> bool:
    """Whether a part of a record says what it cost."""
    return bool(_costs(part))


def supersedes(status: str, before: str | None) -> bool:
    """Whether a record with ``status`` counts in the place of an earlier one of its (instance, sample)."""
    return before != "completed" or status != "failed"


def key_of(record: Record) -> Key:
    """The (instance, sample) of a record."""
    return (record["instance_id"], record["sample"])


def usage_of(record: Record) -> Usage:
    """What a record's answer used; a record is valid only if its usage is."""
    return Usage(**(record.get("usage") or {}))


def _pieces(path: Path) -> Iterator[tuple[str, Record | None]]:
    try:
        file = os.fdopen(open_regular(path), "rb")
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(_SKIPPED)) and not rest.endswith(b"\n"):
                    _skip_hole(file)
                yield "", None
            else:
                yield from split_line(line)


def _skip_hole(file: BinaryIO) -> None:
    """Go on behind the hole of a sparse file that begins here, which may be longer than all disks."""
    position = file.tell()
    try:
        file.seek(os.lseek(file.fileno(), position, os.SEEK_DATA))
    except OSError as error:
        # ENXIO: the hole reaches to the end. Another error: the file system does not know of holes.
        file.seek(0 if error.errno == errno.ENXIO else position, os.SEEK_END if error.errno == errno.ENXIO else 0)


def _split(text: str) -> list[tuple[str, Record | None]]:
    """The parts of a line that is more or less than one record."""
    if sum(map(text.count, "[{")) > MOST_CONTAINERS:
        return [(text, None)]
    found: list[tuple[str, Record | None]] = []
    done, start = 0, text.find("{")
    while start >= 0:
        try:
            _, end = _DECODER.raw_decode(text, start)
            record = _record(text[start:end])
        except _NOT_JSON:
            record = None
        if record is None:
            head = _HEAD.search(text, start + 1)
            start = -1 if head is None else head.start()
            continue
        found += [(part, None) for part in _cut_records(text[done:start])]
        found.append((text[start:end], record))
        done, start = end, text.find("{", end)
    return found + [(part, None) for part in _cut_records(text[done:])]


def _cut_records(text: str) -> Iterator[str]:
    """The parts of a text that holds no whole record: one for each record that begins in it."""
    starts = [0, *(match.start() for match in _HEAD.finditer(text) if match.start()), len(text)]
    for start, end in itertools.pairwise(starts):
        if part := text[start:end].strip(_BLANK):
            yield part


def _unrepeated(parts: Iterable[str], path: Path) -> list[str]:
    """``parts`` without those that are a part of a whole record of the file, and each of the others once.

    Only a part with a cost and a latency is looked for: the latency tells a record from another one with the same
    answer at the same price.
    """
    marked = {part: mark for part in parts if (mark := _mark(part)) is not None}
    open_by_mark: dict[tuple[Decimal | None, float | Decimal], set[str]] = {}
    for part, mark in marked.items():
        open_by_mark.setdefault(mark, set()).add(part)
    if marked:
        for text, record in _pieces(path):
            if record is not None and (latency := record.get("latency_s")) is not None:
                wanted = open_by_mark.get((record.get("cost_usd"), latency), set())
                wanted -= {part for part in wanted if part in text}
    return [*(part for part in parts if part not in marked), *itertools.chain(*open_by_mark.values())]


def _mark(part: str) -> tuple[Decimal | None, Decimal] | None:
    costs, latency = _costs(part), _LATENCY.search(part)
    try:
        return (costs[0], Decimal(latency[1])) if costs and latency else None
    except ArithmeticError:
        return None


def _costs(part: str) -> list[Decimal | None]:
    """The costs that a part of a record states whole; None stands for a price that was not known."""
    costs: list[Decimal | None] = []
    for text in _COST.findall(part):
        try:
            cost = None if text == "null" else Decimal(text)
        except ArithmeticError:
            continue
        if cost is None or cost <= _MOST_USD:
            costs.append(cost)
    return costs


def _record(text: str) -> Record | None:
    """The record that ``text`` is; None for one that is cut, damaged, or no record."""
    try:
        record = bounded_json(text, cls=_Decoder)
        if not isinstance(record, dict) or not _is_record(record):
            return None
    except _NOT_JSON:
        return None
    return cast(Record, record) if text.isascii() or not _INVALID_UTF8.search(text) else None


_FIELDS: Mapping[str, tuple[type, ...]] = {
    "finish_reason": (str,),
    "full_output": (str,),
    "model_patch": (str,),
    "patch_status": (str,),
    "patch_reason": (str,),
    "patch_repairs": (list,),
    "patch_format": (str,),
    "usage": (dict,),
    "cost_usd": (int, Decimal),
    "latency_s": (int, Decimal),
    "attempts": (int,),
    "details": (dict,),
    "error": (dict,),
    "time": (int, Decimal),
}
"""What a record may hold beside its key and status; any of it may be null. Absent may be all but the cost and, of an
answer, the patch: a record without them was cut, and happens to be valid JSON all the same."""


def _is_record(record: Mapping[str, Any]) -> bool:
    sample = record["sample"]
    if not isinstance(record["instance_id"], str) or record["status"] not in _STATUSES:
        return False
    if not isinstance(sample, int) or isinstance(sample, bool) or not 0 <= sample < MAX_SAMPLES:
        return False
    for name, kinds in _FIELDS.items():
        value = record.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            return False
        if isinstance(value, int | Decimal) and not 0 <= value <= _MOST_NUMBER:
            return False
    if record["status"] == "completed" and "model_patch" not in record:
        return False
    cost = record["cost_usd"]
    return (cost is None or 0 <= cost <= _MOST_USD) and _is_usage(record.get("usage") or {})


def _is_usage(usage: Mapping[str, Any]) -> bool:
    known = Usage.__dataclass_fields__.keys()
    return usage.keys() <= known and all(type(n) is int and 0 <= n <= _MOST_NUMBER for n in usage.values())
