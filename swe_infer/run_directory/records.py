"""The format of records, and the tolerant parser of ``records.jsonl``, which all readers use.

A line is one record. In a damaged file:

* A whole record is read even if its line contains more: NULs, another record, a truncated one.
* A truncated or invalid record is lost, and its sample is requested again. Usage and cost in its remains are counted,
  as they were paid.
* A byte-for-byte duplicate of a record counts once. So does a fragment of a record that exists as a whole, from a
  repeated write or a file copied twice. Any other record of the same (instance, sample) was paid for separately.
* Of several records of an (instance, sample), the last one counts, except that a failure never replaces a completion.
  A further turn of the conversation (:mod:`swe_infer.feedback`) replaces only a completion of an earlier turn.
* A record with a ``purpose`` belongs to an auxiliary request (:attr:`swe_infer.types.Request.purpose`). Its usage and
  cost count. It is neither a sample nor an answer, and replaces no other record.
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

from swe_infer.errors import UNDECODED
from swe_infer.files import open_regular
from swe_infer.text import MAX_CONTAINERS, bounded_json
from swe_infer.types import MAX_SAMPLES, PatchStatus, Usage

Status = Literal["completed", "failed", "skipped"]
Key = tuple[str, int]
"""Instance id and sample number."""


class Error(TypedDict):
    """Why there is no answer. ``cause`` is for readers of the file; ``type`` decides it, see
    :data:`swe_infer.errors.INFRASTRUCTURE_ERRORS`."""

    type: str
    message: str
    cause: NotRequired[Literal["infrastructure", "request"]]


class Record(TypedDict):
    """One line of ``records.jsonl``. Records of earlier versions may lack the optional keys.

    ``cost_usd`` and ``latency_s`` are read as Decimal; ``cost_usd`` is None if the price is not known. ``turn`` is
    the number of the further turn, absent for the first answer, and ``feedback`` the message that it answers.
    ``purpose`` is absent for samples; later versions may write others than :data:`swe_infer.types.Purpose`.
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
    extractor: NotRequired[int | None]
    prompt_sha256: NotRequired[str | None]
    images: NotRequired[list[str] | None]
    turn: NotRequired[int | None]
    feedback: NotRequired[str | None]
    purpose: NotRequired[str | None]
    usage: NotRequired[dict[str, int] | None]
    usage_estimated: NotRequired[bool]
    service_tier: NotRequired[str | None]
    latency_s: NotRequired[float | Decimal | None]
    attempts: NotRequired[int | None]
    details: NotRequired[dict[str, Any] | None]
    error: NotRequired[Error | None]
    time: NotRequired[float | Decimal | None]


_STATUSES = get_args(Status)
_MAX_USD = 1_000_000
"""A record with a higher cost is invalid."""

_MAX_NUMBER = 10**15
"""A record with a larger number is invalid."""

_NOT_JSON = (ValueError, TypeError, KeyError, ArithmeticError, RecursionError)


class _Decoder(json.JSONDecoder):
    def __init__(self) -> None:
        super().__init__(parse_float=Decimal)


_DECODER = _Decoder()
_HEAD = re.compile(r'\{\s*"instance_id"\s*:')
"""The start of a record. It cannot match within a JSON string, where quotes are escaped."""
_COST = re.compile(r'"cost_usd"\s*:\s*(null|\d[\d.eE+-]*)\s*[,}]')
_LATENCY = re.compile(r'"latency_s"\s*:\s*(\d[\d.eE+-]*)\s*[,}]')
_USAGE = re.compile(r'"usage"\s*:\s*(\{[^{}]*\})')
_SPACE = " \t\r\n\ufeff"
_BLANK = _SPACE + "\0"
LONGEST_LINE = 1 << 28
"""Bytes. A longer line is invalid, and is not read into memory as a whole."""
_SKIP_CHUNK = 1 << 24
"""Bytes of such a line to read at a time."""


@dataclass(slots=True)
class Damage:
    """What was unreadable in a ``records.jsonl``.

    Args:
        unreadable: truncated or invalid records; a line without any record counts as one.
        repeated: byte-for-byte duplicates of records.
        usage: the usage that unreadable records state.
        cost_usd: dollars that unreadable records state; None if one states an unknown price.
    """

    unreadable: int = 0
    repeated: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal | None = Decimal(0)

    def __bool__(self) -> bool:
        return self != Damage()

    def __str__(self) -> str:
        """One line for the log."""
        parts = [f"unreadable records: {self.unreadable:,}"] if self.unreadable else []
        if self.repeated:
            parts.append(f"repeated records, each counted once: {self.repeated:,}")
        if self.cost_usd is None:
            parts.append("cost of unreadable records: unknown")
        elif self.cost_usd:
            parts.append(f"cost of unreadable records, included in the total: ${self.cost_usd:.6f}")
        return "; ".join(parts)

    def add_unreadable(self, part: str) -> None:
        """Count an unreadable record, and the usage and cost in its remains."""
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

    def reconcile_cost(self, recorded_usd: Decimal | None, summary: Mapping[str, Any]) -> None:
        """Raise the cost to that of ``summary.json``, so that damage never lowers the cost of a run.

        Args:
            recorded_usd: dollars of the readable records; None: a price is not known.
        """
        before = summary.get("cost_usd")
        if recorded_usd is None or self.cost_usd is None or not isinstance(before, int | float | Decimal):
            return
        known = recorded_usd + self.cost_usd
        if 0 <= before <= _MAX_USD and float(known) < float(before):
            self.cost_usd += Decimal(repr(float(before))) - known


def read_records(path: Path, damage: Damage | None = None, *, containing: bytes = b"") -> Iterator[Record]:
    """The records of a file in write order, without duplicates. Dollars are Decimal.

    Args:
        damage: filled in after the last record.
        containing: only parse the lines that contain these bytes.
    """
    seen: set[int] = set()
    parts: list[str] = []
    for _, text, record in _pieces(path, containing):
        if record is None:
            parts.append(text)
        elif (mark := hash(text)) not in seen:
            seen.add(mark)
            yield record
        elif damage is not None:
            damage.repeated += 1
    if damage is not None:
        for part in _without_fragments(parts, path):
            damage.add_unreadable(part)


def records_of(lines: bytes) -> Iterator[Record]:
    """The whole records in lines of the file."""
    for line in lines.split(b"\n"):
        yield from (record for _, record in split_line(line) if record is not None)


def located_records(path: Path) -> Iterator[tuple[int, Record]]:
    """The records of samples in write order, each with the offset of its line in bytes. Duplicates are included."""
    for offset, _, record in _pieces(path):
        if record is not None and purpose_of(record) is None:
            yield offset, record


def record_at(path: Path, offset: int, key: Key, turn: int) -> Record | None:
    """The record of an (instance, sample) and turn in the line at an offset of :func:`located_records`."""
    with os.fdopen(open_regular(path), "rb") as file:
        file.seek(offset)
        line = file.readline(LONGEST_LINE)
    found = (record for _, record in split_line(line) if record is not None)
    wanted = (*key, turn, None)
    return next((one for one in found if (*key_of(one), turn_of(one), purpose_of(one)) == wanted), None)


def split_line(line: bytes) -> list[tuple[str, Record | None]]:
    """The parts of a line in order: text, and record if the part is a whole one."""
    text = line.decode("utf-8", "surrogateescape").strip(_SPACE)
    stripped = text.strip(_BLANK)
    record = _record(stripped)
    if record is not None:
        return [(stripped, record)]
    return _split(stripped) if stripped else [(text, None)] if text else []


_WITHOUT_ANSWER = frozenset(
    [
        "instance_id", "sample", "status", "finish_reason", "model_patch", "patch_status", "patch_reason",
        "patch_repairs", "patch_format", "prompt_sha256", "images", "usage", "usage_estimated", "cost_usd",
        "latency_s", "attempts", "service_tier", "extractor", "error", "time", "purpose",
    ]
)  # fmt: skip
"""The keys of a record that contain no text of the model other than the patch."""
_MAX_DETAIL = 80
"""Characters. A longer string in ``details`` may be text of the model."""


_PARTS_OF_ANSWERS = frozenset({"reasoning", "tool_calls", "refusal"})
"""Details that are texts of the model."""


def without_answers(line: bytes) -> bytes:
    """The whole records in one line of the file, a line each, without answers, reasoning and further turns."""
    records: list[Mapping[str, Any]]
    try:
        record = bounded_json(line)  # much faster than split_line
        records = [record] if isinstance(record, dict) else []
    except (ValueError, RecursionError):
        records = [record for _, record in split_line(line) if record is not None]
    return b"".join(json.dumps(_without_answer(record), default=float).encode("ascii") + b"\n" for record in records)


def _without_answer(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in record.items() if key in _WITHOUT_ANSWER}
    details = record.get("details")
    return kept | {"details": _short_details(details)} if isinstance(details, dict) else kept


def _short_details(details: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and short strings, also in nested mappings."""
    kept: dict[str, Any] = {}
    for key, value in details.items():
        if isinstance(value, dict):
            kept[key] = _short_details(value)
        elif key not in _PARTS_OF_ANSWERS and not isinstance(value, list) and len(str(value)) <= _MAX_DETAIL:
            kept[key] = value
    return kept


def states_cost(part: str) -> bool:
    """Whether a part of a record states a cost."""
    return bool(_costs(part))


def supersedes(status: str, before: str | None, turn: int = 0, turn_before: int = 0) -> bool:
    """Whether a record with ``status`` replaces an earlier one of its (instance, sample).

    Args:
        turn, turn_before: of the two records, see :func:`turn_of`.
    """
    if before != "completed":
        return True
    return turn >= turn_before if status == "completed" else status == "skipped" and not turn


def possibly_billed_usd(record: Record) -> Decimal:
    """What may have been billed beyond the cost, which the caps count; 0 for the copy of another run's record."""
    details = record.get("details") or {}
    try:
        usd = Decimal(0) if "shared_from" in details else Decimal(str(details.get("possibly_billed_usd", 0)))
    except ArithmeticError:
        return Decimal(0)
    return usd if usd.is_finite() and 0 <= usd <= _MAX_USD else Decimal(0)


def key_of(record: Record) -> Key:
    """The (instance, sample) of a record."""
    return (record["instance_id"], record["sample"])


def turn_of(record: Record) -> int:
    """The number of the further turn that a record answers; 0: the first answer."""
    return record.get("turn") or 0


def purpose_of(record: Record) -> str | None:
    """The purpose of an auxiliary request; None for the record of a sample."""
    return record.get("purpose") or None


def usage_of(record: Record) -> Usage:
    """The token usage of a record."""
    return Usage(**(record.get("usage") or {}))


def _pieces(path: Path, containing: bytes = b"") -> Iterator[tuple[int, str, Record | None]]:
    """The parts of the lines that contain some bytes as :func:`split_line` returns them, each after the offset of its
    line."""
    offset = 0
    try:
        file = os.fdopen(open_regular(path), "rb")
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(_SKIP_CHUNK)) and not rest.endswith(b"\n"):
                    _skip_hole(file)
                yield offset, "", None
            elif containing in line:
                for text, record in split_line(line):
                    yield offset, text, record
            offset = file.tell()


def _skip_hole(file: BinaryIO) -> None:
    """Skip the hole of a sparse file at the current position; it may be larger than any disk."""
    position = file.tell()
    try:
        file.seek(os.lseek(file.fileno(), position, os.SEEK_DATA))
    except OSError as error:
        # ENXIO: the hole extends to the end. Any other error: the file system does not support SEEK_DATA.
        file.seek(0 if error.errno == errno.ENXIO else position, os.SEEK_END if error.errno == errno.ENXIO else 0)


def _split(text: str) -> list[tuple[str, Record | None]]:
    """The parts of a line that is not exactly one record."""
    if sum(map(text.count, "[{")) > MAX_CONTAINERS:
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
    """Splits text without whole records at the start of each truncated record."""
    starts = [0, *(match.start() for match in _HEAD.finditer(text) if match.start()), len(text)]
    for start, end in itertools.pairwise(starts):
        if part := text[start:end].strip(_BLANK):
            yield part


def _without_fragments(parts: Iterable[str], path: Path) -> list[str]:
    """``parts`` without duplicates and without fragments of whole records of the file.

    Only parts with a cost and a latency are compared: the latency distinguishes records with the same answer and
    price.
    """
    marked = {part: mark for part in parts if (mark := _fingerprint(part)) is not None}
    unmatched: dict[tuple[Decimal | None, float | Decimal], set[str]] = {}
    for part, mark in marked.items():
        unmatched.setdefault(mark, set()).add(part)
    if marked:
        for _, text, record in _pieces(path):
            if record is not None and (latency := record.get("latency_s")) is not None:
                candidates = unmatched.get((record.get("cost_usd"), latency), set())
                candidates -= {part for part in candidates if part in text}
    return [*(part for part in parts if part not in marked), *itertools.chain(*unmatched.values())]


def _fingerprint(part: str) -> tuple[Decimal | None, Decimal] | None:
    costs, latency = _costs(part), _LATENCY.search(part)
    try:
        return (costs[0], Decimal(latency[1])) if costs and latency else None
    except ArithmeticError:
        return None


def _costs(part: str) -> list[Decimal | None]:
    """The costs in a part of a record; None for an unknown price."""
    costs: list[Decimal | None] = []
    for text in _COST.findall(part):
        try:
            cost = None if text == "null" else Decimal(text)
        except ArithmeticError:
            continue
        if cost is None or cost <= _MAX_USD:
            costs.append(cost)
    return costs


def _record(text: str) -> Record | None:
    """Parses a record; None if it is truncated, damaged or invalid."""
    try:
        record = bounded_json(text, cls=_Decoder)
        if not isinstance(record, dict) or not _is_record(record):
            return None
    except _NOT_JSON:
        return None
    return cast(Record, record) if text.isascii() or not UNDECODED.search(text) else None


_FIELDS: Mapping[str, tuple[type, ...]] = {
    "finish_reason": (str,),
    "full_output": (str,),
    "model_patch": (str,),
    "patch_status": (str,),
    "patch_reason": (str,),
    "patch_repairs": (list,),
    "patch_format": (str,),
    "extractor": (int,),
    "turn": (int,),
    "feedback": (str,),
    "service_tier": (str,),
    "purpose": (str,),
    "usage": (dict,),
    "cost_usd": (int, Decimal),
    "latency_s": (int, Decimal),
    "attempts": (int,),
    "details": (dict,),
    "error": (dict,),
    "time": (int, Decimal),
}
"""The types of the keys beside key and status; all may be null. Only the cost, and the patch of a completion, are
required: without them, a record was truncated and happens to be valid JSON."""


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
        if isinstance(value, int | Decimal) and not 0 <= value <= _MAX_NUMBER:
            return False
    if record["status"] == "completed" and "model_patch" not in record:
        return False
    cost = record["cost_usd"]
    return (cost is None or 0 <= cost <= _MAX_USD) and _is_usage(record.get("usage") or {})


def _is_usage(usage: Mapping[str, Any]) -> bool:
    known = Usage.__dataclass_fields__.keys()
    return usage.keys() <= known and all(type(n) is int and 0 <= n <= _MAX_NUMBER for n in usage.values())
