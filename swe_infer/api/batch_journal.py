"""The journal of a run's provider batches.

A background response is journaled as a batch of one request. Two files in the run directory, both append-only JSON
lines:

* ``batches.jsonl``: ``planned`` (label, time, items) is written before a batch is submitted, ``submitted`` (its id)
  after the provider has accepted it, ``closed`` after it is collected or refused. ``possibly_billed`` is a charge
  for a request that is submitted again, ``reported`` the record that includes it. A torn last line is removed.
* ``batch_prompts.jsonl``: the prompts of the planned requests, for their answers up to a day later, so that they need
  not stay in memory. It is removed when no batch is open.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from swe_infer.errors import StoreError
from swe_infer.files import open_regular
from swe_infer.run_directory.layout import unreadable as unreadable_file
from swe_infer.run_directory.records import LONGEST_LINE
from swe_infer.text import bounded_json
from swe_infer.types import Prompt, Purpose, Turn

logger = logging.getLogger(__name__)

ItemKey = tuple[str, int, int, str]
"""Instance, sample, turn, and :attr:`swe_infer.types.Request.auxiliary`."""
IsRecorded = Callable[[tuple[str, int], int, str], bool]
"""Whether the answer to a key, turn and auxiliary request is in the run's records."""
_LATEST = 1 << 37
"""Unix time. A later one, as a clock may have shown, counts as unknown."""

BatchKind = Literal["batch", "background"]
"""``background``: a response that is computed in the background, journaled as a batch of one request."""


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch: its key, the offset of its prompt, how often it was submitted before, the dollars
    reserved for it (None in journals without them: the bound by bytes counts), its turn, and
    :attr:`swe_infer.types.Request.auxiliary`."""

    instance_id: str
    sample: int
    offset: int
    tries: int = 0
    usd: str | None = None
    turn: int = 0
    auxiliary: str = ""

    @property
    def key(self) -> ItemKey:
        return (self.instance_id, self.sample, self.turn, self.auxiliary)

    @property
    def purpose(self) -> Purpose | None:
        """:attr:`swe_infer.types.Request.purpose`."""
        name = self.auxiliary.partition(":")[0]
        return next((purpose for purpose in get_args(Purpose) if purpose == name), None)


@dataclass(slots=True)
class Batch:
    """A batch that is planned and not closed.

    Args:
        id: None while the provider's id is unknown.
        address: where it is submitted, without credentials; empty in journals without it.
    """

    label: str
    planned_at: float
    items: Mapping[str, Item] = field(default_factory=dict)
    id: str | None = None
    kind: BatchKind = "batch"
    address: str = ""


class Journal:
    """The open batches of one run directory, which this process has locked."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "batches.jsonl"
        self._prompts_path = directory / "batch_prompts.jsonl"
        self.possibly_billed: dict[ItemKey, Decimal] = {}
        """Dollars that may have been billed for requests, and that no record includes yet."""
        self.open = {batch.label: batch for batch in open_batches(directory, self.possibly_billed)}
        if not self.open:
            self._prompts_path.unlink(missing_ok=True)
        self._file = _appended(self._path)
        self._prompts = _appended(self._prompts_path)
        self._reader = os.fdopen(open_regular(self._prompts_path), "rb")

    def add_prompt(self, prompt: Prompt) -> int:
        """Appends a prompt and returns its offset. :meth:`record_planned` syncs it to disk."""
        offset = os.lseek(self._prompts, 0, os.SEEK_END)
        kept = {name: value for name, value in asdict(prompt).items() if value != ()}
        with _named(self._prompts_path):
            _write(self._prompts, kept)
        return offset

    def prompt(self, offset: int) -> Prompt:
        """The prompt at ``offset``.

        Raises:
            StoreError: there is no prompt.
        """
        self._reader.seek(offset)
        try:
            kept = bounded_json(self._reader.readline(LONGEST_LINE))
            system, user, prefill = kept["system"], kept["user"], kept.get("prefill")
            turns = tuple(Turn(str(turn["answer"]), str(turn["reply"])) for turn in kept.get("turns", ()))
            images = tuple(map(str, kept.get("images", ())))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            system, user, prefill, turns, images = None, None, None, (), ()
        if not isinstance(user, str) or not isinstance(system, str | None) or not isinstance(prefill, str | None):
            raise StoreError(f"{self._prompts_path}: has no prompt at byte {offset}, to which batches.jsonl refers")
        return Prompt(system, user, prefill, turns, images)

    def record_planned(self, batch: Batch) -> None:
        """Records a batch before it is submitted."""
        items = {
            key: [i.instance_id, i.sample, i.offset, i.tries, i.usd, *_further(i)] for key, i in batch.items.items()
        }
        with _named(self._prompts_path):
            os.fsync(self._prompts)
        kind = {} if batch.kind == "batch" else {"kind": batch.kind}
        facts = {"label": batch.label, "at": batch.planned_at, "address": batch.address, **kind}
        self._append({"event": "planned", **facts, "items": items})
        self.open[batch.label] = batch

    def record_submitted(self, batch: Batch, batch_id: str) -> None:
        self._append({"event": "submitted", "label": batch.label, "id": batch_id, "at": time.time()})
        batch.id = batch_id

    def record_closed(self, batch: Batch, why: str) -> None:
        self._append({"event": "closed", "label": batch.label, "why": why, "at": time.time()})
        self.open.pop(batch.label, None)

    def record_possibly_billed(self, item: Item, usd: Decimal) -> None:
        """Records a charge for a request that has no outcome yet, so that a later process reports it."""
        self._append({"event": "possibly_billed", "key": item.key, "usd": str(usd)})
        self.possibly_billed[item.key] = self.possibly_billed.get(item.key, Decimal(0)) + usd

    def record_reported(self, item: Item) -> None:
        """Records that the record of a request includes what may have been billed for it."""
        if self.possibly_billed.pop(item.key, None) is not None:
            self._append({"event": "reported", "key": item.key})

    def close(self) -> None:
        for file in (self._file, self._prompts):
            os.close(file)
        self._reader.close()
        if not self.open:
            self._prompts_path.unlink(missing_ok=True)

    def _append(self, event: dict[str, Any]) -> None:
        with _named(self._path):
            _write(self._file, event)
            os.fsync(self._file)


def unrecorded_usd(possibly_billed: Mapping[ItemKey, Decimal], is_recorded: IsRecorded) -> Decimal:
    """The dollars of requests whose answers are not in the run's records."""
    return sum((usd for key, usd in possibly_billed.items() if not is_recorded(key[:2], *key[2:])), Decimal(0))


def open_batches(directory: Path, possibly_billed: dict[ItemKey, Decimal] | None = None) -> list[Batch]:
    """The batches of a run directory that are planned and not closed, in order. Only reads.

    An unreadable line loses only its event: an id is found by the batch's label, and a closed batch is collected
    again.

    Args:
        possibly_billed: gets the dollars that may have been billed for requests, and that no record includes yet.
    """
    path = directory / "batches.jsonl"
    billed = {} if possibly_billed is None else possibly_billed
    batches: dict[str, Batch] = {}
    unreadable = 0
    try:
        file = os.fdopen(open_regular(path), "rb")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(unreadable_file(directory, error)) from None
    with file:
        while line := file.readline(LONGEST_LINE):
            if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                break  # torn: the event was not completed
            try:
                _replay(bounded_json(line), batches, billed)
            except (ValueError, ArithmeticError, TypeError, KeyError, AttributeError, RecursionError):
                unreadable += 1
    if unreadable:
        logger.warning("%s: unreadable lines: %d", path, unreadable)
    return list(batches.values())


def _replay(event: dict[str, Any], batches: dict[str, Batch], possibly_billed: dict[ItemKey, Decimal]) -> None:
    if (kind_of_event := event["event"]) in ("possibly_billed", "reported"):
        instance_id, sample, turn, auxiliary = event["key"]
        usd = event["usd"] if kind_of_event == "possibly_billed" else None
        item = _item(instance_id, sample, 0, 0, usd, turn, auxiliary)
        if item.usd is None:
            possibly_billed.pop(item.key, None)
        else:
            possibly_billed[item.key] = possibly_billed.get(item.key, Decimal(0)) + Decimal(item.usd)
        return
    label = event["label"]
    match kind_of_event:
        case "planned":
            items = {key: _item(*item) for key, item in event["items"].items()}
            kind: BatchKind = "background" if event.get("kind") == "background" else "batch"
            at, address = _checked(event["at"], int, float), _checked(event.get("address", ""), str)
            planned_at = at if 0 <= at < _LATEST else 0.0
            batches[label] = Batch(_checked(label, str), planned_at, items, kind=kind, address=address)
        case "submitted":
            batches[label].id = _checked(event["id"], str)
        case _:
            batches.pop(label, None)


def _further(item: Item) -> list[Any]:
    """The last fields of an item, which most lack."""
    return [item.turn, item.auxiliary] if item.auxiliary else [item.turn] if item.turn else []


def _item(
    instance_id: Any, sample: Any, offset: Any, tries: Any = 0, usd: Any = None, turn: Any = 0, auxiliary: Any = ""
) -> Item:
    """
    Raises:
        TypeError, ValueError, ArithmeticError: the values are invalid.
    """
    for number in (sample, offset, tries, turn):
        if not 0 <= _checked(number, int) < 1 << 62:
            raise ValueError(number)
    if usd is not None and not 0 <= Decimal(_checked(usd, str)) < 1_000_000:
        raise ValueError(usd)
    item = Item(_checked(instance_id, str), sample, offset, tries, usd, turn, _checked(auxiliary, str))
    if auxiliary and item.purpose is None:
        raise ValueError(auxiliary)
    return item


def _checked(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError
    return value


def _appended(path: Path) -> int:
    """A descriptor that appends to ``path``; a torn last line is removed."""
    with _named(path):
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(descriptor).st_size
    keep, block = size, 1 << 20
    while keep and os.pread(descriptor, 1, keep - 1) != b"\n":
        start = max(0, keep - block)
        keep = start + os.pread(descriptor, keep - start, start).rfind(b"\n") + 1
    if keep < size:
        os.ftruncate(descriptor, keep)
    return descriptor


def _write(descriptor: int, value: Any) -> None:
    """Appends a line, or nothing if it raises: the next line would be unreadable after a part of this one."""
    line = json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
    size = os.fstat(descriptor).st_size
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file in errors."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None
