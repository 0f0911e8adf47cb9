"""The one writer of a run directory: append, recover, lock.

``records.jsonl`` is the truth. A record is one ``write`` of one line, so that a process that is killed leaves at most
one torn line, the last, which the next one cuts off unless it says what its answer cost. Nothing else is taken out
of the file; ``records`` reads it, damaged or not. Predictions and totals are derived from it at every start. It keeps
everything; predictions and counts cover what the last command asked for (``asked``).

What ``records.jsonl`` does not take, because the disk is full or fails, is kept in the reserve beside it or in the
user's state directory (``fallback``) and comes back as soon as there is room, in this process or the next.

Links and special files in the directory are refused, see :func:`.layout.refuse_links`: it may come from a stranger.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from swe_infer.errors import ConfigError, StoreError
from swe_infer.files import (
    OpenFiles,
    Syncer,
    fresh_beside,
    open_regular,
    remove_leftovers,
    sync_directory,
    write_whole,
)  # fmt: skip
from swe_infer.locks import Locks
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage, read_coverage, write_coverage
from swe_infer.run_directory.fallback import Fallback, kept_lines
from swe_infer.run_directory.figures import Summary, Totals
from swe_infer.run_directory.lock import locked
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import (
    LONGEST_LINE,
    Damage,
    Key,
    Record,
    Status,
    key_of,
    read_records,
    split_line,
    states_cost,
    supersedes,
)  # fmt: skip
from swe_infer.types import Completion, Failure, Outcome, PatchResult, Prompt, Skip, Usage

log = logging.getLogger(__name__)


def record_of(key: Key, outcome: Outcome, patch: PatchResult | None, prompt: Prompt | None = None) -> Record:
    """The record of one outcome.

    Args:
        patch: given for a completion and for nothing else.
        prompt: what was sent; None for an instance that is skipped.
    """
    record = _record_of(key, outcome, patch)
    if prompt is not None:
        record["prompt_sha256"] = prompt.sha256
    return record


def _record_of(key: Key, outcome: Outcome, patch: PatchResult | None) -> Record:
    now = round(time.time(), 3)
    match outcome:
        case Completion():
            assert patch is not None
            return {
                "instance_id": key[0],
                "sample": key[1],
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
                "time": now,
            }
        case Failure():
            return {
                **_unanswered(key, "failed"),
                "usage": asdict(outcome.usage),
                "cost_usd": outcome.cost_usd,
                "latency_s": round(outcome.latency_s, 4),
                "attempts": outcome.attempts,
                "error": {"type": outcome.error_type, "message": outcome.message},
                "time": now,
            }
        case Skip():
            return {
                **_unanswered(key, "skipped"),
                "error": {"type": outcome.reason, "message": outcome.message},
                "time": now,
            }


def _unanswered(key: Key, status: Status) -> Record:
    return {
        "instance_id": key[0],
        "sample": key[1],
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


def reusable_records(directories: Iterable[Path], wanted: Callable[[Key], bool]) -> dict[Key, Record]:
    """Records of answers that were paid for already, to be appended in a run that asks for the same ones.

    Such a record costs nothing and uses no token, so that sums over runs count an answer once;
    ``details.shared_from`` says in which run it was paid for, and how much.

    Args:
        directories: of runs that ask for the same answers, as far as they are there.
    """
    found: dict[Key, Record] = {}
    for directory in directories:
        here: dict[Key, Record] = {}
        for record in RunDirectory(directory).records():
            key = key_of(record)
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
        self._path = directory / layout.RECORDS
        self.totals = Totals()
        self.changed = False
        """Whether the last command asked for something else, see :meth:`set_coverage`."""
        self.recheck = False
        """Whether what is recorded must be held against the bounds on a prompt's length, see :meth:`set_coverage`."""
        self._coverage: Coverage | None = None
        self._predictions = OpenFiles(buffering=0)
        self._late_predictions: list[tuple[int, bytes]] = []
        self._torn = False
        self._stale = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            layout.refuse_links(directory)
            self._lock = locked(directory / layout.LOCK, locks, f"output_dir={directory}")
        except OSError as error:
            raise _unwritable(directory, error) from None
        with ExitStack() as stack:
            stack.callback(self._lock.close)
            stack.callback(self._predictions.close)
            try:
                remove_leftovers(directory)
                self.resumed = self._recover()
                self._fallback = Fallback(directory)
                stack.callback(self._fallback.close)
                descriptor = open_regular(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                self._records = stack.enter_context(open(descriptor, "ab", buffering=0))
                sync_directory(directory)
            except OSError as error:
                raise _unwritable(directory, error) from None
            self._syncer = Syncer(self._records.fileno())
            stack.callback(self._syncer.close)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Bring everything to the disk and let go of the directory."""
        self._open.close()

    def set_coverage(self, coverage: Coverage, before: Coverage) -> None:
        """State which instances this command asks: counts and predictions cover those from now on.

        Args:
            before: what the last command asked, where the directory does not say it.

        Raises:
            StoreError: the directory cannot be written.
        """
        ids = frozenset(coverage.instance_ids or ())
        try:
            known = read_coverage(self.directory)
        except OSError as error:
            raise _unwritable(self.directory, error) from None
        last = known or before
        same = self.totals.instance_ids <= ids if known is None else frozenset(known.instance_ids or ()) == ids
        if self.resumed:
            self.changed = not same or (last.min_tokens, last.max_tokens) != (
                coverage.min_tokens,
                coverage.max_tokens,
            )
            if known is None and self.read_summary().get("instances", len(ids)) != len(ids):
                self.changed = True
            self.recheck = not last.decides(coverage, self.totals.instance_ids)
        self._coverage = replace(coverage, decided=not self.recheck)
        write_coverage(self.directory, self._coverage)
        self.totals.covered_ids = ids
        if self.resumed and not same:
            try:
                self._derive(ids)
            except OSError as error:
                raise _unwritable(self.directory, error) from None

    def mark_decided(self) -> None:
        """Every instance was held against the bounds, so that the next command with the same ones need not. Where
        that cannot be written, the next command does it again."""
        if self._coverage is not None and not self._coverage.decided:
            self._coverage = replace(self._coverage, decided=True)
            with contextlib.suppress(StoreError):
                write_coverage(self.directory, self._coverage)

    def append(self, record: Record) -> None:
        """Keep one record. When this returns, a kill of the process cannot lose it; a loss of power can lose the last
        half second.

        Raises:
            StoreError: the disk is full or failing; the file ends with the last whole record.
        """
        line = _line(record)
        prediction = _line(self._prediction(record)) if record["status"] == "completed" else None
        if (error := self._syncer.error) is not None:
            raise StoreError(f"{self._path}: did not reach the disk ({error.strerror})")
        # A torn line that could not be cut off is ended first, so that it costs itself alone.
        written = write_whole(self._records.fileno(), b"\n" + line if self._torn else line)
        if written is not None:
            self._torn = written.torn
            raise StoreError(f"{self._path}: cannot be written ({written.reason})")
        self._torn = False
        self._syncer.notify(line)
        # The totals must equal what a later process reads back, so money takes the same way through JSON.
        self.totals.add_record({**record, "cost_usd": _as_read_back(record["cost_usd"])})
        if key_of(record) in self.totals.replaced or key_of(record) in self.totals.answered_again:
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
                self._derive(self.totals.covered_ids)
            except OSError as failed:
                raise StoreError(f"{self._predictions_path(0)}: cannot be written ({failed.strerror})") from None
        self._write_predictions()
        if self._late_predictions:
            raise StoreError(f"{self._predictions_path(self._late_predictions[0][0])}: cannot be written")
        if (error := self._syncer.flush()) is not None:
            for line in self._syncer.take():
                self._fallback.add(line)
            kept = f"; the last records are kept in {self._fallback.files[-1]} too" if self._fallback.files else ""
            raise StoreError(f"{self._path}: did not reach the disk ({error.strerror}){kept}")

    def spill(self, record: Record) -> Path | None:
        """Keep a record that :meth:`append` did not take in the reserve or the state directory, from where the next
        process that opens this directory takes it; the file, or None where nothing can be written."""
        return self._fallback.add(_line(record))

    @property
    def spilled(self) -> tuple[Path, ...]:
        """The files that hold what :meth:`spill` was given."""
        return tuple(self._fallback.files)

    def forget_spilled(self) -> None:
        """Everything that was spilled has been appended after all."""
        self._fallback.remove()

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

    def write_summary(self, summary: Summary, *, soon: bool = False) -> None:
        """Replace ``summary.json`` in one step.

        Args:
            soon: without waiting for the disk: within half a second, and with a warning where it cannot be written.

        Raises:
            StoreError: it cannot be written; the old one is still there.
        """
        path, text = self.directory / layout.SUMMARY, json.dumps(summary, indent=2, default=_number) + "\n"
        if soon:
            self._syncer.replace_soon(path, text)
        else:
            self._syncer.replace(path, text)

    def read_summary(self) -> Summary:
        """The summary of the last try, or an empty one where it cannot be read."""
        try:
            return RunDirectory(self.directory).summary()
        except ConfigError:
            return {}

    def _recover(self) -> bool:
        """Cut off a torn last line, take in what was spilled, take the totals, write the predictions anew. True where
        there were records."""
        _mend_tail(self._path)
        _take_in_kept(self.directory, self._path)
        coverage = read_coverage(self.directory)
        if damage := self._derive(None if coverage is None else coverage.ids):
            log.warning("%s: %s", self._path, damage)
        return layout.records_size(self.directory) > 0

    def _derive(self, covered_ids: Collection[str] | None, several: Collection[Key] = ()) -> Damage:
        """Take the totals, and write the predictions anew; returns what cannot be read.

        Args:
            several: keys that have several records of which the first completed one need not count.
        """
        totals, damage = Totals(covered_ids), Damage()
        last: dict[Key, Record] = {}
        with self._new_predictions() as predict:
            for record in read_records(self._path, damage):
                key = key_of(record)
                if key in several:
                    if key not in last or supersedes(record["status"], last[key]["status"]):
                        last[key] = record
                elif record["status"] == "completed" != totals.status(key) and totals.counts(key[0]):
                    predict(record)
                totals.add_record(record)
            for record in last.values():
                if record["status"] == "completed" and totals.counts(record["instance_id"]):
                    predict(record)
        damage.complete(totals.cost_usd, self.read_summary())
        totals.add_damage(damage)
        self.totals, self._late_predictions, self._stale = totals, [], False
        found = totals.replaced | totals.answered_again
        return self._derive(covered_ids, found) if found and not several else damage

    @contextlib.contextmanager
    def _new_predictions(self) -> Iterator[Callable[[Record], object]]:
        """Takes records, and puts their predictions in the place of all that are there when it is left."""
        files = OpenFiles()
        new: dict[int, Path] = {}

        def begun(sample: int) -> IO[bytes]:
            if sample not in new:
                descriptor, new[sample] = fresh_beside(self._predictions_path(sample))
                os.close(descriptor)
            return files.get(new[sample])

        try:
            begun(0)
            yield lambda record: begun(record["sample"]).write(_line(self._prediction(record)))
            files.close()
            self._predictions.close()
            for sample, path in new.items():
                os.replace(path, self._predictions_path(sample))
            current = {self._predictions_path(sample) for sample in new}
            for path in layout.predictions(self.directory):
                if path not in current:
                    path.unlink()
        except BaseException:
            with contextlib.suppress(OSError):
                files.close()  # a full disk may not even take what is buffered
            for path in new.values():
                path.unlink(missing_ok=True)
            raise

    def _prediction(self, record: Record) -> dict[str, Any]:
        return {
            "instance_id": record["instance_id"],
            "model_name_or_path": self.label,
            "model_patch": record["model_patch"] or "",
            "patch_status": record.get("patch_status"),
            "finish_reason": record.get("finish_reason"),
        }

    def _predictions_path(self, sample: int) -> Path:
        return self.directory / layout.predictions_name(sample)


def _unwritable(directory: Path, error: OSError) -> StoreError:
    name = Path(os.fsdecode(error.filename)).name if error.filename else ""
    file = f"{name}: " if name and directory / name == Path(os.fsdecode(error.filename)) else ""
    return StoreError(f"output_dir={directory}: cannot be written ({file}{error.strerror})")


def _take_in_kept(directory: Path, records: Path) -> None:
    """Append what earlier processes had to keep elsewhere, each record once, and remove those files."""
    kept = kept_lines(directory)
    if not any(kept.values()):
        return
    known = {_identity(record) for record in read_records(records)}
    count = 0
    with open(open_regular(records, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0) as file:
        for text, record in (part for lines in kept.values() for line in lines for part in split_line(line)):
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
    for path in kept:
        path.unlink(missing_ok=True)
    log.warning("%d records that an earlier try had to keep elsewhere are taken in", count)


def _identity(record: Record) -> tuple[str, int, str]:
    """What tells one record of an (instance, sample) from another one of it."""
    return (*key_of(record), str(record.get("time")))


def _as_read_back(cost: Decimal | None) -> Decimal | None:
    return None if cost is None else Decimal(repr(float(cost)))


def _mend_tail(path: Path) -> None:
    """Cut the file after its last whole line. A last line that holds a record, or says what one cost, is kept and
    gets the newline that it lacks."""
    try:
        descriptor = open_regular(path, os.O_RDWR)
    except FileNotFoundError:
        return
    with open(descriptor, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start, tail, step = size, b"", 1 << 15
        while start and b"\n" not in tail and len(tail) < LONGEST_LINE:
            step *= 2  # by turns of one length, a long line would be copied thousands of times
            start = max(0, size - step)
            file.seek(start)
            tail = file.read(size - start)
        last = tail.rsplit(b"\n", 1)[-1]
        if not last:
            return
        if len(last) >= LONGEST_LINE or any(
            record is not None or states_cost(text) for text, record in split_line(last)
        ):
            file.seek(size)
            file.write(b"\n")
        else:
            file.truncate(size - len(last))
            log.warning("%s: its last line was torn and is cut off; its answer is asked for again", path)
