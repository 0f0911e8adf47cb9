"""The one loop: instances -> requests -> completions -> patches -> store, tracker, progress.

A runner knows how completions are had; everything that happens to an answer afterwards happens here, once.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from swe_infer.data.base import Dataset
from swe_infer.data.select import Selection, select
from swe_infer.errors import BudgetExceeded, StoreError, SweInferError
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.prompt_format import PromptFiles
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Asked
from swe_infer.run_directory.figures import Summary, Totals
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.record_writer import RecordWriter
from swe_infer.run_directory.records import Damage, Key, Record
from swe_infer.run_directory.store import RunStore, paid_answers, record_of
from swe_infer.runners.base import Runner, WantedSamples
from swe_infer.runners.progress import Progress
from swe_infer.tracking.base import RunInfo, Tracker
from swe_infer.types import (
    Completion,
    DataShard,
    Decoding,
    Estimate,
    Outcome,
    PatchResult,
    Prompt,
    Request,
    Skip,
    TokenCounter,
)

log = logging.getLogger(__name__)

ProgressLine = Callable[[Record, Summary], None]
"""Takes a record and the summary after it."""

_SUMMARY_INTERVAL_S = 5.0
_SETTLED = ("completed", "skipped")
_BOUNDS = ("PromptTooShort", "PromptTooLong")
"""Reasons to leave an instance out that another command's bounds may change."""


class _LazyCounter:
    """The runner's token counter, made when the first prompt has to be measured: a finished run never needs it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._counter: TokenCounter | None = None

    def _made(self) -> TokenCounter:
        if self._counter is None:
            self._counter = self._runner.token_counter()
        return self._counter

    @property
    def name(self) -> str:
        return self._made().name

    @property
    def exact(self) -> bool:
        return self._made().exact

    def __call__(self, prompt: Prompt) -> int:
        return self._made()(prompt)


def selected(runner: Runner, dataset: Dataset, shard: DataShard) -> Selection:
    """The instances that a run asks, in the runner's order; nothing is measured before it comes up.

    Raises:
        DataError: the dataset cannot be read.
    """
    return select(
        dataset.open(),
        dataset,
        count_tokens=_LazyCounter(runner),
        room_for_output=runner.decoding.max_new_tokens,
        context_window=runner.context_window,
        shard=shard,
        order=runner.order,
    )


def asked_of(selection: Selection) -> Asked:
    """The instances that a selection asks."""
    ids = tuple(selection.rows.ids[index] for index in sorted(selection.requested))
    return Asked(ids, selection.lengths.min_tokens, selection.lengths.max_tokens)


def outstanding(
    selection: Selection,
    decoding: Decoding,
    totals: Totals,
    *,
    recheck: bool = False,
    passed_over: Container[str] = (),
) -> Iterator[Request | tuple[tuple[str, int], Skip]]:
    """What is neither completed nor skipped yet: a request, or the reason why there will be none.

    Rows are read, prompts measured, and requests made, only when their turn comes.

    Args:
        recheck: the records were made under other bounds on a prompt's length: what they left out is asked where it
            is within the bounds now, and what is completed is left out where it is not.
        passed_over: instances of which no further sample is to be asked for; it may grow meanwhile.
    """
    bounded = selection.lengths.min_tokens is not None or selection.lengths.max_tokens is not None
    for index in selection.requested:
        instance_id = selection.rows.ids[index]

        def is_open(key: tuple[str, int]) -> bool:
            status = totals.status(key)
            if status not in _SETTLED:
                return True
            return recheck and (bounded if status == "completed" else totals.skip_reason(key) in _BOUNDS)

        wanted = filter(is_open, ((instance_id, sample) for sample in range(decoding.n)))
        first = next(wanted, None)
        if first is None:
            continue
        left_out = selection.verdict(index)
        prompt = selection.rows[index].prompt if left_out is None else None
        files = {} if prompt is None else PromptFiles(prompt)
        for key in itertools.chain((first,), wanted):
            if instance_id in passed_over:
                break
            status = totals.status(key)
            if prompt is not None and status != "completed":
                yield Request(*key, prompt, decoding, files)
            elif left_out is not None and status != "skipped":
                if status == "completed" and left_out.reason not in _BOUNDS:
                    continue
                yield key, left_out


def estimated(
    runner: Runner, selection: Selection, directory: Path, before: Asked, shared: Sequence[Path] = ()
) -> Estimate:
    """What the run in ``directory`` would still come to. Nothing is asked, and nothing written.

    Args:
        before: what the last command asked, where the directory does not say it.
        shared: run directories whose answers it would take.
    """
    known_run, damage, totals = RunDirectory(directory), Damage(), Totals()
    for record in known_run.records(damage):
        totals.add(record)
    if damage:
        log.warning("%s: %s", directory, damage)
    last = known_run.asked() or before
    recheck = not last.decides(asked_of(selection), totals.instance_ids)
    sources = [*shared, *([directory] if totals.replaced else [])]
    known = paid_answers(sources, lambda key: totals.status(key) != "completed") if sources else {}
    samples = runner.decoding.n
    settled: dict[str, set[int]] = {}
    for key, status in itertools.chain(totals.statuses(), ((key, "completed") for key in known)):
        asked_again = recheck and totals.skip_reason(key) in _BOUNDS and key not in known
        if status in _SETTLED and not asked_again and key[1] < samples:
            settled.setdefault(key[0], set()).add(key[1])

    def wanted() -> Iterator[WantedSamples]:
        for index in selection.requested:
            instance_id = selection.rows.ids[index]
            done = settled.get(instance_id, set())
            if len(done) < samples and selection.verdict(index) is None:
                yield WantedSamples(instance_id, selection.rows[index].prompt, runner.decoding, samples, done)

    return runner.estimate(wanted())


class Run:
    """One run over an open run directory.

    Args:
        announce: tell the tracker even where nothing is left to do: somebody waits for this run's figures.
        evaluate: told the summary when no answer is wanting any more; returns what it found out of the patches, which
            is added to the summary.
        evaluated: told the summary where the last command asked for something else; returns what earlier evaluations
            say of what is asked for now.
        shared: run directories that ask for the same answers: what is there is taken, not asked again.
        passed_over: instances of which the runner can ask for no further sample, see ``RunContext``.
    """

    def __init__(
        self,
        runner: Runner,
        selection: Selection,
        store: RunStore,
        tracker: Tracker,
        info: RunInfo,
        *,
        announce: bool = False,
        evaluate: Callable[[Summary], Summary] | None = None,
        evaluated: Callable[[Summary], Summary] | None = None,
        shared: Sequence[Path] = (),
        passed_over: Container[str] = (),
    ) -> None:
        self.runner = runner
        self.selection = selection
        self.store = store
        self.tracker = tracker
        self.info = info
        self._announce = announce
        self._evaluate = evaluate
        self._found_before = evaluated
        self._sources = [*shared, *([store.directory] if store.totals.replaced else [])]
        self._paid: dict[Key, Record] | None = None
        self._queue: Iterator[Request] | None = None
        self._changed = store.changed
        self._passed_over = passed_over
        self._samples = runner.decoding.n
        self.stop = threading.Event()
        self._unsaved = RecordWriter(store)
        self._started = time.monotonic()
        self._before = store.read_summary()
        self._wall_before = float(self._before.get("wall_s", 0.0))
        if self._changed:
            self._before = {}  # its figures are of other instances
        self._summary_due = 0.0
        self._ended: tuple[float, Mapping[str, float]] | None = None
        self._progress_line: ProgressLine = lambda record, summary: None

    def execute(self) -> int:
        """Do what is left of the run; returns the exit status, as the README states it."""
        with INTERRUPTS.finishing(self.stop, says=self.in_progress):
            status = self.begin()
            if status is not None:
                return status
            error: BaseException | None = None
            with self._progress() as self._progress_line:
                try:
                    if not self.stop.is_set():
                        self.runner.run(self.requests(), self.keep, self.stop)
                except (Exception, KeyboardInterrupt) as raised:  # noqa: BLE001 - the run ends in order, see settle()
                    error = raised
                status = self.settle(error)
            return self.end(status)

    def show_progress(self, line: ProgressLine) -> None:
        """Tell ``line`` of each record from now on, with the summary as of then."""
        self._progress_line = line

    def in_progress(self) -> str:
        """What a first Ctrl-C leaves to be finished, in a few words."""
        if self._ended is not None:
            return "writing down what was answered"
        number = self.runner.in_flight
        return (
            f"finishing {number} request{'s' * (number != 1)} in flight" if number else "no further request is sent"
        )

    def begin(self) -> int | None:
        """Tell the tracker; returns the exit status where nothing is left to do.

        What follows, for whoever makes several runs at once: :meth:`requests` and :meth:`keep` until all is answered,
        :meth:`freeze` at that moment, :meth:`settle` and :meth:`end`.
        """
        self._started = time.monotonic()
        summary, first = self.summary(), None
        if self.store.recheck or (self._sources and summary["remaining"] + summary["failed"]):
            # What is known already is taken first: there may be nothing to load a model or open a connection for.
            records = self.store.totals.records
            requests = self._requests()
            first = next(requests, None)
            self._queue = itertools.chain([first] if first is not None else [], requests)
            self._changed = self._changed or self.store.totals.records != records
            summary = self.summary()
        if self._changed and self._found_before is not None:
            try:
                self._before = {**summary, **self._found_before(summary)}
            except (SweInferError, OSError) as error:
                log.error("the verdicts of earlier evaluations are left out: %s", error)
            summary = self.summary()
        if first is not None or summary["remaining"] or summary["failed"]:
            self.tracker.start(self.info)
            return None
        log.info("nothing is left to do: every instance is completed or skipped")
        status = 0
        unreadable = self._before.get("unreadable_records", 0) != summary["unreadable_records"]
        changed = self._changed or unreadable or self._before.get("instances") != summary["instances"]
        if changed and not self._written(summary):
            status = 1
        elif summary["completed"] > summary.get("evaluated", 0):  # the last try ended before it was
            status = self._evaluated(summary)
        if self._announce or self._changed:
            self.tracker.start(self.info)
            return self._tracked(self.summary(), status)
        return status

    def freeze(self) -> None:
        """The answering is over: time and figures are those of now, whatever goes on beside."""
        if self._ended is None:
            self._ended = (time.monotonic(), dict(self.runner.stats()))

    def end(self, status: int) -> int:
        """Write the summary, evaluate the patches, and tell the tracker; returns the exit status, given that of the
        answering."""
        self.freeze()
        summary = self.summary()
        if INTERRUPTS.stopping and (summary["failed"] or summary["remaining"]):
            status = INTERRUPTED
        elif status == 0 and (summary["failed"] or summary["remaining"]):
            status = 1
        if not self._written(summary):
            status = status or 1
        elif status == 0:
            status = self._evaluated(summary)
            summary = self.summary()
        return self._tracked(summary, status)

    def _tracked(self, summary: Summary, status: int) -> int:
        """Tell the tracker how the run ended; returns the exit status."""
        try:
            self.tracker.finish(summary, layout.result_files(self.store.directory), status)
        except KeyboardInterrupt:
            return INTERRUPTED
        return status

    def _evaluated(self, summary: Summary) -> int:
        """Evaluate the patches, where somebody does; returns the exit status. What goes wrong costs no answer, and
        ``swe-infer-evaluate`` does it again."""
        if self._evaluate is None:
            return 0
        try:
            with INTERRUPTS.stoppable():
                found = self._evaluate(summary)
        except KeyboardInterrupt:
            log.warning("not all patches were evaluated; the same command does it, or swe-infer-evaluate")
            return INTERRUPTED
        except (SweInferError, OSError) as error:
            log.error("the patches were not evaluated: %s", error)
            return 0
        self._before = {**summary, **found}
        return 0 if self._written(self.summary()) else 1

    def _written(self, summary: Summary) -> bool:
        """Write what is derived from the records, and make sure of those; whether all of it is on the disk."""
        try:
            self.store.write_summary(summary)
            self.store.check()
        except StoreError as error:
            log.error("%s; the same command mends it once the disk can be written", error)
            return False
        return True

    def summary(self) -> Summary:
        """The run's summary as of now; money as Decimal."""
        now, stats = self._ended or (time.monotonic(), self.runner.stats())
        summary = self.store.totals.summary(
            instances=len(self.selection),
            samples=self._samples,
            wall_s=self._wall_before + now - self._started,
            stats=stats,
        )
        if self._before.get("completed") == summary["completed"]:  # what an evaluation added still holds
            return {**self._before, **summary}
        return summary

    def settle(self, error: BaseException | None) -> int:
        """Say what ended the answering, if not its end, and see that every answer is on the disk; returns the exit
        status so far."""
        if isinstance(error, BudgetExceeded):
            left = self.summary()["remaining"]
            log.error("%s; still to be answered: %d, by the same command with a larger budget", error, left)
            status = error.exit_status
        else:
            status = 0 if error is None else _told(error)
        try:
            saved = self._unsaved.wait()
        except KeyboardInterrupt:
            saved = self._unsaved.give_up()
        return status if saved else status or 1

    def requests(self) -> Iterator[Request]:
        """What is left to ask; what is left out is recorded when its turn comes."""
        return self._requests() if self._queue is None else self._queue

    def _requests(self) -> Iterator[Request]:
        totals = self.store.totals
        asked = outstanding(
            self.selection,
            self.runner.decoding,
            totals,
            recheck=self.store.recheck,
            passed_over=self._passed_over,
        )
        for wanted in asked:
            if not isinstance(wanted, Request):
                if self.stop.is_set():  # many samples may be left out one after the other
                    return
                key, skip = wanted
                self._append(record_of(key, skip, None))
            elif (record := self._paid_before(wanted.key)) is not None:
                self._append(record)
            else:
                yield wanted
        self.store.all_decided()

    def _paid_before(self, key: Key) -> Record | None:
        """The record of an answer that is to be had without asking, or None."""
        if not self._sources:
            return None
        if self._paid is None:
            totals = self.store.totals
            self._paid = paid_answers(
                self._sources, lambda k: totals.counts(k[0]) and totals.status(k) != "completed"
            )
        return self._paid.pop(key, None)

    def keep(self, request: Request, outcome: Outcome) -> None:
        """Keep one outcome the moment it exists."""
        with INTERRUPTS.put_off():  # a second Ctrl-C must not come between an answer and the disk
            patch = self._patch(request, outcome) if isinstance(outcome, Completion) else None
            self._append(record_of(request.key, outcome, patch))

    def _append(self, record: Record) -> None:
        if not self._unsaved.add(record):
            self.stop.set()
            return
        now = time.monotonic()
        summary = self.summary()
        self.tracker.record(record, summary)
        self._progress_line(record, summary)
        if now >= self._summary_due:
            self._summary_due = now + _SUMMARY_INTERVAL_S
            self.store.write_summary(summary, soon=True)

    def _patch(self, request: Request, outcome: Completion) -> PatchResult:
        try:
            from swe_infer.patches.pipeline import make_patch  # a finished run has no need of it

            return make_patch(outcome.text, request.files)
        except Exception:  # a fault in our code must not cost a paid answer; re-extraction mends it
            log.exception("%s: the patch could not be taken from the answer", request.instance_id)
            return PatchResult("", "none", reason="internal error while extracting; the answer is kept")

    @contextmanager
    def _progress(self) -> Iterator[ProgressLine]:
        summary = self.summary()
        total = summary["instances"] * self._samples
        progress = Progress(total, already_done=total - summary["remaining"] - summary["failed"], stream=sys.stderr)
        try:
            yield lambda record, totals: progress.update(record, totals, totals["stats"])
        finally:
            progress.close()


def _told(error: BaseException) -> int:
    """Log what ended the answering of a run; returns its exit status."""
    if isinstance(error, StoreError):  # exit status 2 is for what is known before anything is paid for
        log.error("%s", error)
        return 1
    if isinstance(error, SweInferError):
        log.error("%s", error)
        return error.exit_status
    if isinstance(error, OSError | MemoryError):
        log.error("stopped: %s", " ".join(str(error).split()) or type(error).__name__)
        return 1
    if isinstance(error, KeyboardInterrupt):
        if INTERRUPTS.count > 1:
            log.warning("stopped at once; what was finished is kept")
        return INTERRUPTED
    # a fault in our code: the run still ends in order, and the trace says where
    log.error("stopped by an unforeseen error", exc_info=error)
    return 1
