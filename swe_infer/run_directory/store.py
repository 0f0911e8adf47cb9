"""Writes a run directory: append, recover, lock.

``records.jsonl`` is the source of truth. A record is one ``write`` of one line, so a killed process leaves at most
one truncated line, the last. The next process removes it unless it states a cost. Nothing else is ever removed.
Predictions and totals are derived from the records at every start, for the instances of the last command
(:class:`.asked.Coverage`).

Records that cannot be written because the disk is full or fails are stored in the ``fallback``, and are appended once
that is possible, by this process or the next.

Links and special files in the directory are refused, see :func:`.layout.refuse_links`: it may be untrusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from swe_infer.errors import INFRASTRUCTURE_ERRORS, ConfigError, StoreError
from swe_infer.files import (
    Syncer,
    open_regular,
    remove_leftovers,
    sync_directory,
    write_whole,
)  # fmt: skip
from swe_infer.harnesses import Benchmark
from swe_infer.locks import Locks
from swe_infer.patches import VERSION as EXTRACTOR
from swe_infer.prompt_images import shown_url
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage, read_coverage, write_coverage
from swe_infer.run_directory.fallback import Fallback, fallback_lines
from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.lock import locked
from swe_infer.run_directory.predictions import PredictionFiles, Selector, write_harness_predictions
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import (
    LONGEST_LINE,
    Damage,
    Error,
    Key,
    Record,
    Status,
    key_of,
    purpose_of,
    read_records,
    split_line,
    states_cost,
    supersedes,
    turn_of,
)  # fmt: skip
from swe_infer.run_directory.totals import Totals
from swe_infer.types import Completion, Failure, Outcome, PatchResult, Prompt, Request, Skip, Usage

log = logging.getLogger(__name__)


def auxiliary_record(request: Request, outcome: Outcome) -> Record:
    """The record of the outcome of an auxiliary request."""
    assert request.purpose is not None
    record = record_of(request.key, outcome, _NO_PATCH, request.prompt)
    nothing: Record = {**record, "model_patch": None, "patch_status": None, "purpose": request.purpose}
    for name in ("patch_reason", "patch_repairs", "patch_format", "extractor"):
        nothing.pop(name, None)  # type: ignore[misc] # these keys are optional
    return nothing


_NO_PATCH = PatchResult("", "none")


def record_of(key: Key, outcome: Outcome, patch: PatchResult | None, prompt: Prompt | None = None) -> Record:
    """The record of one outcome.

    Args:
        patch: required for a completion, None otherwise.
        prompt: the prompt that was sent, with the earlier turns; None for a skipped instance.
    """
    record = _record_of(key, outcome, patch)
    if isinstance(outcome, Completion):
        if tier := outcome.details.get("service_tier"):
            record["service_tier"] = str(tier)
        if outcome.details.get("usage_estimated"):
            record["usage_estimated"] = True
    if prompt is not None:
        record["prompt_sha256"] = (replace(prompt, turns=()) if prompt.turns else prompt).sha256
        if prompt.images:
            record["images"] = [shown_url(url) for url in prompt.images]
        if prompt.turns:
            record["turn"] = len(prompt.turns)
            record["feedback"] = prompt.turns[-1].reply
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
                "extractor": EXTRACTOR,
                "usage": outcome.usage.as_dict(),
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
                "usage": outcome.usage.as_dict(),
                "cost_usd": outcome.cost_usd,
                "latency_s": round(outcome.latency_s, 4),
                "attempts": outcome.attempts,
                "details": dict(outcome.details),
                "error": _error(outcome.error_type, outcome.message),
                "time": now,
            }
        case Skip():
            return {
                **_unanswered(key, "skipped"),
                "error": _error(outcome.reason, outcome.message),
                "time": now,
            }


def _error(kind: str, message: str) -> Error:
    return {
        "type": kind,
        "message": message,
        "cause": "infrastructure" if kind in INFRASTRUCTURE_ERRORS else "request",
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
        "usage": Usage().as_dict(),
        "cost_usd": Decimal(0),
        "latency_s": 0.0,
        "attempts": 0,
    }


def _line(value: Mapping[str, Any]) -> bytes:
    """One JSON line. ASCII, because model output may contain lone surrogates, which UTF-8 cannot encode."""
    return (_ENCODER.encode(value) + "\n").encode("ascii")


def _number(value: object) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


_ENCODER = json.JSONEncoder(default=_number)


def reusable_records(directories: Iterable[Path], wanted: Callable[[Key], bool]) -> dict[Key, Record]:
    """Copies of completed records for a run with the same identity, without further turns.

    Their cost and usage are 0, so that sums over runs count an answer once. ``details.shared_from`` states the run
    that paid for the answer, its cost and usage.

    Args:
        directories: run directories; they need not exist.
        wanted: whether a key is needed.
    """
    found: dict[Key, Record] = {}
    for directory in directories:
        here: dict[Key, Record] = {}
        for record in RunDirectory(directory).records():
            key = key_of(record)
            if record["status"] != "completed" or turn_of(record) or key in found or not wanted(key):
                continue
            here[key] = _copy_of(record, directory)
        found |= here
    return found


def reusable_turns(directories: Iterable[Path], wanted: Callable[[Key], bool]) -> dict[tuple[Key, str], Record]:
    """Copies of further turns, as :func:`reusable_records` makes them, by key and :func:`conversation_digest`."""
    found: dict[tuple[Key, str], Record] = {}
    for directory in directories:
        conversations: dict[Key, list[Record]] = {}
        for record in RunDirectory(directory).records():
            key, turn = key_of(record), turn_of(record)
            if record["status"] != "completed" or not wanted(key):
                continue
            earlier = conversations.setdefault(key, [])[:turn]
            if len(earlier) < turn:
                continue
            conversations[key] = [*earlier, record]
            if turn:
                digest = conversation_digest(earlier, record.get("feedback") or "")
                found.setdefault((key, digest), _copy_of(record, directory))
    return found


def reusable_auxiliary(
    directories: Iterable[Path], wanted: Callable[[Record], bool]
) -> dict[tuple[str, str, str], Record]:
    """Copies of completed records of auxiliary requests, as :func:`reusable_records` makes them, by instance, purpose
    and ``prompt_sha256``."""
    found: dict[tuple[str, str, str], Record] = {}
    for directory in directories:
        for record in RunDirectory(directory).records(auxiliary=True):
            if (purpose := purpose_of(record)) and record["status"] == "completed" and wanted(record):
                key = (record["instance_id"], purpose, record.get("prompt_sha256") or "")
                found.setdefault(key, _copy_of(record, directory))
    return found


def conversation_digest(earlier: Iterable[Record], feedback: str) -> str:
    """Identifies a further turn of a sample.

    Args:
        earlier: the completed records of the turns before.
        feedback: the message that is sent.
    """
    texts = [text for record in earlier for text in (record.get("feedback"), record.get("full_output"))]
    return hashlib.blake2b(json.dumps([*texts, feedback]).encode(), digest_size=16).hexdigest()


def _copy_of(record: Record, directory: Path) -> Record:
    """A record of another run's answer, which cost nothing here."""
    paid = {"run": directory.name, "cost_usd": record.get("cost_usd"), "usage": record.get("usage")}
    return {
        **record,
        "usage": Usage().as_dict(),
        "cost_usd": Decimal(0),
        "latency_s": 0.0,
        "attempts": 0,
        "details": {"shared_from": paid, **(record.get("details") or {})},  # the first origin wins
        "time": round(time.time(), 3),
    }


class RunStore:
    """An open run directory, locked by this process. Use it as a context manager.

    Args:
        directory: created if it does not exist.
        label: ``model_name_or_path`` of the predictions.
        locks: how the directory is locked.
        selector, samples: see :class:`.predictions.PredictionFiles`.
        benchmark: of the dataset. Predictions are also written in the form that its harness reads.

    Raises:
        StoreError: another process has locked the directory, or it cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        label: str,
        locks: Locks = "os",
        *,
        selector: Selector | None = None,
        samples: int | None = None,
        benchmark: Benchmark | None = None,
    ) -> None:
        self.directory = directory
        self._form = None if benchmark is None else benchmark.form
        self._form_is_stale = True
        self.label = label
        self._path = directory / layout.RECORDS
        self.totals = Totals()
        self.changed = False
        """Whether the last command had another coverage, see :meth:`set_coverage`."""
        self.recheck = False
        """Whether recorded samples must be checked against the length bounds, see :meth:`set_coverage`."""
        self._coverage: Coverage | None = None
        self.predictions = PredictionFiles(directory, label, selector, samples)
        self._samples = samples
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
            stack.callback(self.predictions.close)
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
        """Flush everything to disk and unlock the directory."""
        self._open.close()

    def set_coverage(self, coverage: Coverage, before: Coverage) -> None:
        """Set the instances and turns of this command, which counts and predictions cover from now on.

        Args:
            before: the coverage of the last command, used if the directory states none.

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
        same = same and last.turns == coverage.turns
        if self.resumed:
            self.changed = not same or (last.min_tokens, last.max_tokens) != (
                coverage.min_tokens,
                coverage.max_tokens,
            )
            if known is None and self.read_summary().get("instances", len(ids)) != len(ids):
                self.changed = True
            self.recheck = not last.decides(coverage, self.totals.instance_ids)
        done = last.turns_done and last.turns == coverage.turns and ids <= (last.ids or frozenset())
        self._coverage = replace(coverage, decided=not self.recheck, turns_done=done)
        write_coverage(self.directory, self._coverage)
        self.totals.covered_ids, self.totals.covered_turns = ids, coverage.turns
        if self.resumed and not same:
            try:
                self._derive(self._coverage)
            except OSError as error:
                raise _unwritable(self.directory, error) from None

    def mark_decided(self) -> None:
        """Store that every prompt was checked against the length bounds. If that fails, the next command checks them
        again."""
        if self._coverage is not None and not self._coverage.decided:
            self._coverage = replace(self._coverage, decided=True)
            with contextlib.suppress(StoreError):
                write_coverage(self.directory, self._coverage)

    @property
    def turns_done(self) -> bool:
        """Whether every answer was checked for further turns, and each turn that it needs has a record."""
        return self._coverage is not None and self._coverage.turns_done

    def mark_turns(self, *, done: bool) -> None:
        """Store :attr:`turns_done`. If that fails, the next command checks every answer again.

        Raises:
            StoreError: ``done`` is False and cannot be stored.
        """
        if self._coverage is None or self._coverage.turns_done == done:
            return
        self._coverage = replace(self._coverage, turns_done=done)
        try:
            write_coverage(self.directory, self._coverage)
        except StoreError:
            if not done:
                raise

    def append(self, record: Record) -> None:
        """Append one record. Once this returns, a kill of the process cannot lose it; a power failure can lose the
        last half second.

        Raises:
            StoreError: the disk is full or failing; the file still ends with a whole record.
        """
        line = _line(record)
        if (error := self._syncer.error) is not None:
            raise StoreError(f"{self._path}: did not reach the disk ({error.strerror})")
        # A truncated line that could not be removed is ended first, so that it does not spoil this one.
        failure = write_whole(self._records.fileno(), b"\n" + line if self._torn else line)
        if failure is not None:
            self._torn = failure.torn
            raise StoreError(f"{self._path}: cannot be written ({failure.reason})")
        self._torn, self._form_is_stale = False, True
        self._syncer.track(line)
        # The totals must equal those of a process that reads the file, so round dollars as JSON does.
        self.totals.add_record({**record, "cost_usd": _as_read_back(record["cost_usd"])})
        if (purpose := purpose_of(record)) is not None:
            if purpose == "judge":
                self.predictions.reconsider(record["instance_id"])
            return
        if key_of(record) in self.totals.replaced or key_of(record) in self.totals.answered_again:
            self._stale = True  # a prediction must be removed or restored, see check()
        elif record["sample"] and not self.predictions.several:
            try:
                self._derive(self._coverage)  # sample 0 gets a file of its own
            except OSError:
                self._stale = True
        elif _is_covered(record, self.totals):
            instance_id = record["instance_id"]
            is_complete = self._samples is not None and self.totals.samples(instance_id) >= self._samples
            if record["status"] == "completed":
                self.predictions.append(record, is_complete=is_complete)
            elif is_complete:
                self.predictions.complete(instance_id)

    def check(self) -> None:
        """Flush everything to disk.

        Raises:
            StoreError: predictions cannot be written, or the flush failed. Records that may not be on disk are in the
                fallback.
        """
        if self._stale:
            try:
                self._derive(self._coverage)
            except OSError as error:
                path = self.directory / layout.PREDICTIONS
                raise StoreError(f"{path}: cannot be written ({error.strerror})") from None
        self.predictions.flush()
        self._write_harness_predictions()
        if (sync_error := self._syncer.flush()) is not None:
            for line in self._syncer.take_unsynced():
                self._fallback.append(line)
            kept = f"; the last records are kept in {self._fallback.files[-1]} too" if self._fallback.files else ""
            raise StoreError(f"{self._path}: did not reach the disk ({sync_error.strerror}){kept}")

    def _write_harness_predictions(self) -> None:
        """Raises StoreError."""
        if self._form is None or not self._form_is_stale:
            return
        try:
            current = layout.predictions(self.directory)
            for path in current:
                write_harness_predictions(path, self._form)
            names = {layout.harness_predictions(path, self._form) for path in current}
            for path in layout.all_harness_predictions(self.directory):
                if path not in names:
                    path.unlink()
        except OSError as error:
            raise StoreError(f"{error.filename}: cannot be written ({error.strerror})") from None
        self._form_is_stale = False

    def reload(self) -> None:
        """Read the records again after their file was replaced, and rewrite the predictions.

        Raises:
            StoreError: a file cannot be read or written.
        """
        try:
            descriptor = open_regular(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                os.dup2(descriptor, self._records.fileno(), inheritable=False)
            finally:
                os.close(descriptor)
            self._derive(self._coverage)
        except OSError as error:
            raise _unwritable(self.directory, error) from None

    def append_to_fallback(self, record: Record) -> Path | None:
        """Store a record that :meth:`append` could not write, for the next process that opens this directory; returns
        the file, or None if no file can be written."""
        return self._fallback.append(_line(record))

    @property
    def fallback_files(self) -> tuple[Path, ...]:
        """The files with records of :meth:`append_to_fallback`."""
        return tuple(self._fallback.files)

    def remove_fallback(self) -> None:
        """Remove the fallback files, as their records have been appended."""
        self._fallback.remove()

    def write_summary(self, summary: Summary, *, soon: bool = False) -> None:
        """Write ``summary.json``, replacing the old one atomically.

        Args:
            soon: write it in the background within half a second; a failure is logged.

        Raises:
            StoreError: it cannot be written; the old one is unchanged.
        """
        path, text = self.directory / layout.SUMMARY, json.dumps(summary, indent=2, default=_number) + "\n"
        if soon:
            self._syncer.replace_later(path, text)
        else:
            self._syncer.replace(path, text)

    def read_summary(self) -> Summary:
        """The summary of the last command; empty if it cannot be read."""
        try:
            return RunDirectory(self.directory).summary()
        except ConfigError:
            return {}

    def _recover(self) -> bool:
        """Repair the last line, append fallback records, compute the totals and rewrite the predictions.

        Returns:
            Whether there are records.
        """
        recover_records(self.directory)
        self._coverage = read_coverage(self.directory)
        if damage := self._derive(self._coverage):
            log.warning("%s: %s", self._path, damage)
        return layout.records_size(self.directory) > 0

    def _derive(self, coverage: Coverage | None, several: Collection[Key] = ()) -> Damage:
        """Compute the totals and rewrite the predictions; returns the damage.

        Args:
            coverage: None: every record counts.
            several: keys whose first completed record may not be the one that counts.
        """
        totals, damage = Totals() if coverage is None else Totals(coverage.ids, coverage.turns), Damage()
        last: dict[Key, Record] = {}
        with self.predictions.rewriting() as predict:
            for record in read_records(self._path, damage):
                key = key_of(record)
                if not _is_covered(record, totals) or purpose_of(record) is not None:
                    pass
                elif key in several:
                    if key not in last or _counts_instead(record, last[key]):
                        last[key] = record
                elif record["status"] == "completed" != totals.status(key):
                    predict(record)
                totals.add_record(record)
            for record in last.values():
                if record["status"] == "completed":
                    predict(record)
            if any(sample for (_, sample), _ in totals.statuses()):
                self.predictions.several = True
        damage.reconcile_cost(totals.cost_usd, self.read_summary())
        totals.add_damage(damage)
        self.totals, self._stale, self._form_is_stale = totals, False, True
        several_records = totals.replaced | totals.answered_again
        if several_records and not several:
            return self._derive(coverage, several_records)
        self.predictions.select()
        return damage


def _is_covered(record: Record, totals: Totals) -> bool:
    return totals.counts(record["instance_id"]) and totals.counts_turn(turn_of(record))


def _counts_instead(record: Record, before: Record) -> bool:
    """Whether a record replaces an earlier one of its (instance, sample)."""
    return supersedes(record["status"], before["status"], turn_of(record), turn_of(before))


def _unwritable(directory: Path, error: OSError) -> StoreError:
    name = Path(os.fsdecode(error.filename)).name if error.filename else ""
    file = f"{name}: " if name and directory / name == Path(os.fsdecode(error.filename)) else ""
    return StoreError(f"output_dir={directory}: cannot be written ({file}{error.strerror})")


def recover_records(directory: Path) -> None:
    """Repairs the last line of the records, and appends those that earlier processes stored in the fallback. The
    caller must have locked the directory.

    Raises:
        OSError: the records cannot be read or written.
    """
    _repair_tail(directory / layout.RECORDS)
    _append_fallback_records(directory, directory / layout.RECORDS)


def _append_fallback_records(directory: Path, records: Path) -> None:
    """Append the records that earlier processes stored in the fallback, each once, and remove those files."""
    stored = fallback_lines(directory)
    if not any(stored.values()):
        return
    known = {_identity(record) for record in read_records(records)}
    count = 0
    with open(open_regular(records, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0) as file:
        for text, record in (part for lines in stored.values() for line in lines for part in split_line(line)):
            if record is None and not states_cost(text):
                continue
            if record is not None and _identity(record) in known:
                continue
            line = text.encode("utf-8", "surrogateescape") + b"\n"
            if (failure := write_whole(file.fileno(), line)) is not None:
                raise OSError(failure.errno, failure.reason)
            if record is not None:
                known.add(_identity(record))
                count += 1
        os.fsync(file.fileno())
    for path in stored:
        path.unlink(missing_ok=True)
    log.warning("recovered %d records that an earlier command could not write here", count)


def _identity(record: Record) -> tuple[str, int, int, str, str]:
    """Distinguishes the records of an (instance, sample)."""
    return (*key_of(record), turn_of(record), purpose_of(record) or "", str(record.get("time")))


def _as_read_back(cost: Decimal | None) -> Decimal | None:
    return None if cost is None else Decimal(repr(float(cost)))


def _repair_tail(path: Path) -> None:
    """Remove a truncated last line. If it contains a record or states a cost, keep it and add the newline."""
    try:
        descriptor = open_regular(path, os.O_RDWR)
    except FileNotFoundError:
        return
    with open(descriptor, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start, tail, step = size, b"", 1 << 15
        while start and b"\n" not in tail and len(tail) < LONGEST_LINE:
            step *= 2  # a constant step would copy a long line thousands of times
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
            log.warning("%s: removed a truncated last line; its sample is requested again", path)
