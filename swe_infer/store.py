"""The run directory: ``records.jsonl``, ``predictions*.jsonl``, ``summary.json``; append, recover, lock.

``records.jsonl`` is the truth. A record is one ``write`` of one line, so that a process that is killed leaves at most
one torn line, the last, which the next one cuts off unless it says what its answer cost. Nothing else is taken out
of the file; :mod:`swe_infer.records` reads it, damaged or not. Predictions and totals are derived from it at every
start. It keeps everything; predictions and counts cover what the last command asked for (:mod:`swe_infer.asked`).

What the directory does not take, because the disk is full or fails, is kept elsewhere (:mod:`swe_infer.spill`) and
comes back as soon as there is room, in this process or the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from swe_infer.asked import Asked, asked_ids, read_asked, write_asked
from swe_infer.errors import StoreError
from swe_infer.files import OpenFiles, Syncer, probe, sync_directory, write_atomically, write_whole
from swe_infer.locks import Locks, OwnerFile, has_no_locks, no_locks, refuse_owned
from swe_infer.records import Damage, read_records, split_line, states_cost, supersedes
from swe_infer.spill import Spill, spilled_lines
from swe_infer.types import Completion, Failure, Outcome, PatchResult, Skip, Usage

__all__ = [
    "RunStore",
    "Status",
    "Totals",
    "paid_answers",
    "read_records",
    "record_of",
    "write_atomically",
]

log = logging.getLogger(__name__)

Status = Literal["completed", "failed", "skipped"]
Key = tuple[str, int]


def record_of(key: Key, outcome: Outcome, patch: PatchResult | None) -> dict[str, Any]:
    """The line of ``records.jsonl`` for one outcome. ``patch`` is given for a completion and for nothing else."""
    record: dict[str, Any] = {"instance_id": key[0], "sample": key[1]}
    match outcome:
        case Completion():
            assert patch is not None
            record |= {
                "status": "completed",
                "finish_reason": outcome.finish_reason,
                "full_output": outcome.text,
                "model_patch": patch.patch,
                "patch_status": patch.status,
                "patch_reason": patch.reason,
                "patch_repairs": list(patch.repairs),
                "patch_format": patch.format,
                "usage": asdict(outcome.usage),
                "cost_usd": outcome.cost_usd,
                "latency_s": round(outcome.latency_s, 4),
                "attempts": outcome.attempts,
                "details": dict(outcome.details),
                "error": None,
            }
        case Failure():
            record |= _unanswered("failed") | {
                "usage": asdict(outcome.usage),
                "cost_usd": outcome.cost_usd,
                "latency_s": round(outcome.latency_s, 4),
                "attempts": outcome.attempts,
                "error": {"type": outcome.error_type, "message": outcome.message},
            }
        case Skip():
            record |= _unanswered("skipped") | {"error": {"type": outcome.reason, "message": outcome.message}}
    record["time"] = round(time.time(), 3)
    return record


def _unanswered(status: Status) -> dict[str, Any]:
    return {
        "status": status,
        "finish_reason": None,
        "full_output": None,
        "model_patch": None,
        "patch_status": None,
        "usage": asdict(Usage()),
        "cost_usd": Decimal(0),
        "latency_s": 0.0,
        "attempts": 0,
    }


def _line(value: Mapping[str, Any]) -> bytes:
    """One JSON line. ASCII, because model output may hold lone surrogates, which UTF-8 cannot."""
    return (json.dumps(value, default=_number) + "\n").encode("ascii")


def _number(value: object) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def paid_answers(directories: Iterable[Path], wanted: Callable[[Key], bool]) -> dict[Key, dict[str, Any]]:
    """Records of answers that were paid for already, to be appended in a run that asks for the same ones.

    Such a record costs nothing and uses no token, so that sums over runs count an answer once;
    ``details.shared_from`` says in which run it was paid for, and how much.

    Args:
        directories: of runs that ask for the same answers, as far as they are there.
    """
    found: dict[Key, dict[str, Any]] = {}
    for directory in directories:
        here: dict[Key, dict[str, Any]] = {}
        for record in read_records(directory / "records.jsonl"):
            key = _key(record)
            if record["status"] != "completed" or key in found or not wanted(key):
                continue
            paid = {"run": directory.name, "cost_usd": record.get("cost_usd"), "usage": record.get("usage")}
            here[key] = {
                **record,
                "usage": asdict(Usage()),
                "cost_usd": Decimal(0),
                "latency_s": 0.0,
                "attempts": 0,
                "details": {"shared_from": paid, **(record.get("details") or {})},  # an earlier origin stays
                "time": round(time.time(), 3),
            }
        found |= here
    return found


class Totals:
    """Sums over a run, kept record by record.

    Counts go by (instance, sample), of which one record counts (see :mod:`swe_infer.records`), and cover the
    instances that the last command asked for. Usage and cost add up over every record: a failed try may have been
    paid for too, and what was paid for instances that are not asked for any more stays paid. ``cost_usd`` is None as
    soon as one price is unknown.

    Args:
        asked: the instances that are counted; None: all.
    """

    def __init__(self, asked: Collection[str] | None = None) -> None:
        self.asked = asked
        self._latest: dict[Key, tuple[Status, str | None, str | None]] = {}
        self._counts: Counter[str] = Counter()
        self._patches: Counter[str] = Counter()
        self.replaced: set[Key] = set()
        """Completed once, and left out by a later command."""
        self.answered_again: set[Key] = set()
        """Completed more than once."""
        self.records = 0
        self.usage = Usage()
        self.cost_usd: Decimal | None = Decimal(0)
        self.unreadable = 0
        """Records that cannot be read."""
        self.unreadable_usd: Decimal | None = Decimal(0)
        """What of ``cost_usd`` was paid for them."""

    def add(self, record: Mapping[str, Any]) -> None:
        self.records += 1
        self.usage += Usage(**{k: int(v) for k, v in (record.get("usage") or {}).items()})
        self.cost_usd = _sum(self.cost_usd, record.get("cost_usd"))
        key, status, patch_status = _key(record), record["status"], record.get("patch_status")
        previous = self._latest.get(key)
        if previous is not None and not supersedes(status, previous[0]):
            return
        counted = self.counts(key[0])
        if previous is not None and counted:
            self._counts[previous[0]] -= 1
            if previous[1] is not None:
                self._patches[previous[1]] -= 1
        if previous is not None and previous[0] == "completed":
            (self.answered_again if status == "completed" else self.replaced).add(key)
        reason = (record.get("error") or {}).get("type") if status == "skipped" else None
        self._latest[key] = (status, patch_status, reason)
        if counted:
            self._counts[status] += 1
            if patch_status is not None:
                self._patches[patch_status] += 1

    def add_damage(self, damage: Damage) -> None:
        """Count what was paid for records that cannot be read."""
        self.unreadable += damage.unreadable
        self.unreadable_usd = _sum(self.unreadable_usd, damage.cost_usd)
        self.usage += damage.usage
        self.cost_usd = _sum(self.cost_usd, damage.cost_usd)

    def counts(self, instance_id: str) -> bool:
        """Whether an instance is one of those that are counted."""
        return self.asked is None or instance_id in self.asked

    @property
    def instance_ids(self) -> set[str]:
        """The instances that have a record, counted or not."""
        return {instance_id for instance_id, _ in self._latest}

    def status(self, key: Key) -> Status | None:
        """The latest status of an (instance, sample), or None where there is no record of it."""
        latest = self._latest.get(key)
        return None if latest is None else latest[0]

    def statuses(self) -> Iterator[tuple[Key, Status]]:
        """The latest status of every (instance, sample) that has a record."""
        return ((key, latest[0]) for key, latest in self._latest.items())

    def skip_reason(self, key: Key) -> str | None:
        """Why the latest record of an (instance, sample) is a skip, by its class name; None where it is none."""
        latest = self._latest.get(key)
        return None if latest is None else latest[2]

    def count(self, status: Status) -> int:
        return self._counts[status]

    def as_dict(self) -> dict[str, Any]:
        return {
            "completed": self._counts["completed"],
            "failed": self._counts["failed"],
            "skipped": self._counts["skipped"],
            "patches": {status: n for status, n in sorted(self._patches.items()) if n},
            "usage": asdict(self.usage),
            "cost_usd": self.cost_usd,
            "unreadable_records": self.unreadable,
            "unreadable_cost_usd": self.unreadable_usd,
        }


class RunStore:
    """An open run directory. One process at a time may hold it; use it as a context manager.

    Args:
        directory: created where it does not exist.
        label: ``model_name_or_path`` of the predictions.
        locks: how other processes are kept out.

    Raises:
        StoreError: another process holds the directory, or it cannot be written.
    """

    def __init__(self, directory: Path, label: str, locks: Locks = "os") -> None:
        self.directory = directory
        self.label = label
        self.totals = Totals()
        self.changed = False
        """Whether the last command asked for something else, see :meth:`ask`."""
        self.recheck = False
        """Whether what is recorded must be held against the bounds on a prompt's length, see :meth:`ask`."""
        self._asked: Asked | None = None
        self._predictions = OpenFiles(buffering=0)
        self._late_predictions: list[tuple[int, bytes]] = []
        self._torn = False
        self._stale = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(directory / ".lock", locks)
        except OSError as error:
            raise _unwritable(directory, error) from None
        try:
            probe(directory)
            self.resumed = self._recover()
            self._records = (directory / "records.jsonl").open("ab", buffering=0)
            sync_directory(directory)
        except OSError as error:
            self._close_files()
            raise _unwritable(directory, error) from None
        self._spill = Spill(directory)
        self._syncer = Syncer(self._records.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Bring everything to the disk and let go of the directory."""
        self._syncer.close()
        self._records.close()
        self._close_files()

    def _close_files(self) -> None:
        self._predictions.close()
        self._lock.close()

    def ask(self, asked: Asked, before: Asked) -> None:
        """State which instances this command asks: counts and predictions cover those from now on.

        Args:
            before: what the last command asked, where the directory does not say it.

        Raises:
            StoreError: the directory cannot be written.
        """
        ids = frozenset(asked.instance_ids or ())
        known = read_asked(self.directory)
        last = known or before
        same = self.totals.instance_ids <= ids if known is None else frozenset(known.instance_ids or ()) == ids
        if self.resumed:
            self.changed = not same or (last.min_tokens, last.max_tokens) != (asked.min_tokens, asked.max_tokens)
            if known is None and self.read_summary().get("instances", len(ids)) != len(ids):
                self.changed = True
            self.recheck = not last.decides(asked, self.totals.instance_ids)
        self._asked = replace(asked, decided=not self.recheck)
        write_asked(self.directory, self._asked)
        self.totals.asked = ids
        if self.resumed and not same:
            try:
                self._derive(ids)
            except OSError as error:
                raise _unwritable(self.directory, error) from None

    def all_decided(self) -> None:
        """Every instance was held against the bounds, so that the next command with the same ones need not. Where
        that cannot be written, the next command does it again."""
        if self._asked is not None and not self._asked.decided:
            self._asked = replace(self._asked, decided=True)
            with contextlib.suppress(StoreError):
                write_asked(self.directory, self._asked)

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep one record. When this returns, a kill of the process cannot lose it; a loss of power can lose the last
        half second.

        Raises:
            StoreError: the disk is full or failing; the file ends with the last whole record.
        """
        line = _line(record)
        prediction = _line(self._prediction(record)) if record["status"] == "completed" else None
        if (error := self._syncer.error) is not None:
            raise StoreError(f"{self._records.name}: did not reach the disk ({error.strerror})")
        # A torn line that could not be cut off is ended first, so that it costs itself alone.
        written = write_whole(self._records.fileno(), b"\n" + line if self._torn else line)
        if written is not None:
            self._torn = written.torn
            raise StoreError(f"{self._records.name}: cannot be written ({written.reason})")
        self._torn = False
        self._syncer.notify(line)
        # The totals must equal what a later process reads back, so money takes the same way through JSON.
        self.totals.add({**record, "cost_usd": _as_read_back(record["cost_usd"])})
        if _key(record) in self.totals.replaced or _key(record) in self.totals.answered_again:
            self._stale = True  # a prediction is to be taken back, or comes back; see check()
        elif prediction is not None and self.totals.counts(record["instance_id"]):
            self._late_predictions.append((record["sample"], prediction))
            self._write_predictions()

    def check(self) -> None:
        """Bring everything to the disk now.

        Raises:
            StoreError: predictions are still to be written, or the disk did not take what was written. What may not
                have reached it is kept elsewhere, see :meth:`spill`.
        """
        if self._stale:
            try:
                self._derive(self.totals.asked)
            except OSError as failed:
                raise StoreError(f"{self._predictions_path(0)}: cannot be written ({failed.strerror})") from None
        self._write_predictions()
        if self._late_predictions:
            raise StoreError(f"{self._predictions_path(self._late_predictions[0][0])}: cannot be written")
        if (error := self._syncer.flush()) is not None:
            for line in self._syncer.take():
                self._spill.add(line)
            kept = f"; the last records are kept in {self._spill.files[-1]} too" if self._spill.files else ""
            raise StoreError(f"{self._records.name}: did not reach the disk ({error.strerror}){kept}")

    def spill(self, record: Mapping[str, Any]) -> Path | None:
        """Keep a record that :meth:`append` did not take in some other place, from where the next process that opens
        this directory takes it; the file, or None where nothing can be written."""
        return self._spill.add(_line(record))

    @property
    def spilled(self) -> tuple[Path, ...]:
        """The files that hold what :meth:`spill` was given."""
        return tuple(self._spill.files)

    def forget_spilled(self) -> None:
        """Everything that was spilled has been appended after all."""
        self._spill.remove()

    def _write_predictions(self) -> None:
        """Write predictions that are due. They are derived from the records, so a full disk costs no answer here:
        they are tried again with the next one, and written anew at the next start."""
        while self._late_predictions:
            sample, line = self._late_predictions[0]
            try:
                file = self._predictions.get(self._predictions_path(sample))
                if write_whole(file.fileno(), line) is not None:
                    return
            except OSError:  # one more file cannot be opened
                return
            del self._late_predictions[0]

    def write_summary(self, summary: Mapping[str, Any], *, soon: bool = False) -> None:
        """Replace ``summary.json`` in one step.

        Args:
            soon: without waiting for the disk: within half a second, and with a warning where it cannot be written.

        Raises:
            StoreError: it cannot be written; the old one is still there.
        """
        path, text = self.directory / "summary.json", json.dumps(summary, indent=2, default=_number) + "\n"
        if soon:
            self._syncer.replace_soon(path, text)
        else:
            self._syncer.replace(path, text)

    def read_summary(self) -> dict[str, Any]:
        """The summary of the last try, or an empty one."""
        try:
            summary = json.loads((self.directory / "summary.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def _recover(self) -> bool:
        """Cut off a torn last line, take in what was spilled, take the totals, write the predictions anew. True where
        there were records."""
        path = self.directory / "records.jsonl"
        _mend_tail(path)
        _take_in_spilled(self.directory, path)
        if damage := self._derive(asked_ids(self.directory)):
            log.warning("%s: %s", path, damage)
        return path.exists() and path.stat().st_size > 0

    def _derive(self, asked: Collection[str] | None, several: Collection[Key] = ()) -> Damage:
        """Take the totals, and write the predictions anew; returns what cannot be read.

        Args:
            several: keys that have several records of which the first completed one need not count.
        """
        totals, damage = Totals(asked), Damage()
        last: dict[Key, dict[str, Any]] = {}
        with self._new_predictions() as predict:
            for record in read_records(self.directory / "records.jsonl", damage):
                key = _key(record)
                if key in several:
                    if key not in last or supersedes(record["status"], last[key]["status"]):
                        last[key] = record
                elif record["status"] == "completed" != totals.status(key) and totals.counts(key[0]):
                    predict(record)
                totals.add(record)
            for record in last.values():
                if record["status"] == "completed" and totals.counts(record["instance_id"]):
                    predict(record)
        damage.complete(totals.cost_usd, self.read_summary())
        totals.add_damage(damage)
        self.totals, self._late_predictions, self._stale = totals, [], False
        found = totals.replaced | totals.answered_again
        return self._derive(asked, found) if found and not several else damage

    @contextlib.contextmanager
    def _new_predictions(self) -> Iterator[Callable[[Mapping[str, Any]], object]]:
        """Takes records, and puts their predictions in the place of all that are there when it is left."""
        files = OpenFiles()
        new: dict[int, Path] = {}

        def begun(sample: int) -> IO[bytes]:
            if sample in new:
                return files.get(new[sample])
            path = self._predictions_path(sample)
            new[sample] = path.with_name(path.name + ".new")
            return files.get(new[sample], "wb")

        try:
            begun(0)
            yield lambda record: begun(record["sample"]).write(_line(self._prediction(record)))
            files.close()
            self._predictions.close()
            for sample, path in new.items():
                os.replace(path, self._predictions_path(sample))
            current = {self._predictions_path(sample) for sample in new}
            for path in self.directory.glob("predictions.sample*.jsonl"):
                if path not in current:
                    path.unlink()
        except BaseException:
            with contextlib.suppress(OSError):
                files.close()  # a full disk may not even take what is buffered
            for path in new.values():
                path.unlink(missing_ok=True)
            raise

    def _prediction(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "instance_id": record["instance_id"],
            "model_name_or_path": self.label,
            "model_patch": record["model_patch"] or "",
            "patch_status": record.get("patch_status"),
            "finish_reason": record.get("finish_reason"),
        }

    def _predictions_path(self, sample: int) -> Path:
        return self.directory / ("predictions.jsonl" if sample == 0 else f"predictions.sample{sample}.jsonl")


def _unwritable(directory: Path, error: OSError) -> StoreError:
    return StoreError(f"output_dir={directory}: cannot be written ({error.strerror})")


def _take_in_spilled(directory: Path, records: Path) -> None:
    """Append what earlier processes had to keep elsewhere, each record once, and remove those files."""
    spilled = spilled_lines(directory)
    if not spilled:
        return
    known = {_identity(record) for record in read_records(records)}
    count = 0
    with records.open("ab", buffering=0) as file:
        for text, record in (part for lines in spilled.values() for line in lines for part in split_line(line)):
            if record is None and not states_cost(text):
                continue
            if record is not None and _identity(record) in known:
                continue
            line = text.encode("utf-8", "surrogateescape") + b"\n"
            if (failed := write_whole(file.fileno(), line)) is not None:
                raise OSError(failed.number, failed.reason)
            if record is not None:
                known.add(_identity(record))
                count += 1
        os.fsync(file.fileno())
    for path in spilled:
        path.unlink(missing_ok=True)
    log.warning("%d records that an earlier try had to keep elsewhere are taken in", count)


def _identity(record: Mapping[str, Any]) -> tuple[str, int, str]:
    """What tells one record of an (instance, sample) from another one of it."""
    return (*_key(record), str(record.get("time")))


def _key(record: Mapping[str, Any]) -> Key:
    return (record["instance_id"], record["sample"])


def _sum(total: Decimal | None, cost: Decimal | int | None) -> Decimal | None:
    return None if total is None or cost is None else total + cost


def _as_read_back(cost: Decimal | None) -> Decimal | None:
    return None if cost is None else Decimal(repr(float(cost)))


def _locked(path: Path, locks: Locks) -> ExitStack:
    """What keeps other processes out until it is closed: an exclusive lock, which the kernel drops when the process
    ends, however it ends; with ``single_writer`` a lock file too, and no lock where the file system has none."""
    what = f"output_dir={path.parent}"
    with ExitStack() as stack:
        file = stack.enter_context(path.open("a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise StoreError(f"{what}: in use by {owner}; wait for it or choose another") from None
        except OSError as error:
            if not has_no_locks(error):
                raise
            if locks == "os":
                raise no_locks(what, error) from None
        if locks == "os":
            refuse_owned(path, what)
        else:
            stack.enter_context(OwnerFile(path, what))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        return stack.pop_all()


def _mend_tail(path: Path) -> None:
    """Cut the file after its last whole line. A last line that holds a record, or says what one cost, is kept and
    gets the newline that it lacks."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start, tail = size, b""
        while start and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        last = tail.rsplit(b"\n", 1)[-1]
        if not last:
            return
        if any(record is not None or states_cost(text) for text, record in split_line(last)):
            file.seek(size)
            file.write(b"\n")
        else:
            file.truncate(size - len(last))
            log.warning("%s: its last line was torn and is cut off; its answer is asked for again", path)
