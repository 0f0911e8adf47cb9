"""The main loop of a run: instances -> requests -> completions -> patches -> store, tracker, progress.

A runner turns requests into completions. Everything that happens to a completion afterwards happens here.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from swe_infer.data.select import Selection
from swe_infer.errors import BudgetExceeded, DataError, StoreError, SweInferError
from swe_infer.feedback.base import Feedback, NoFeedback
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.prompt_format import PromptFiles
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import (
    Summary,
    cost_per_resolved,
    selection_figures,
    without_infrastructure_failures,
)
from swe_infer.run_directory.record_writer import RecordWriter
from swe_infer.run_directory.records import Key, Record, purpose_of
from swe_infer.run_directory.store import (
    RunStore,
    auxiliary_record,
    record_of,
    reusable_auxiliary,
    reusable_records,
)  # fmt: skip
from swe_infer.runners.base import Runner
from swe_infer.runners.choices import RECHECKED_SKIPS, FileChoiceRequests, lacks_answer
from swe_infer.runners.progress import Progress, SweepView
from swe_infer.runners.remainder import FINISHED, pending_requests, warn_of_skips
from swe_infer.runners.turns import FurtherTurns
from swe_infer.tracking.base import RunInfo, Tracker
from swe_infer.types import Completion, EditFormat, Outcome, PatchResult, Request, Skip

if TYPE_CHECKING:
    from swe_infer.selection.judge import JudgeSelector

log = logging.getLogger(__name__)

ProgressLine = Callable[[Record, Summary], None]
"""Called with each record and the summary that includes it."""

_SUMMARY_INTERVAL_S = 5.0
_COMPARED_PROMPTS = 16
"""Number of recorded instances whose prompts are compared with the present ones when a run is resumed."""
_COMPARED = (
    "instances", "completed", "failed", "skipped", "unreadable_records", "cost_usd", "possibly_billed_usd",
)  # fmt: skip
"""Figures of a summary that tell whether it is up to date."""


def _as_written(figure: Any) -> float | None:
    """A figure as JSON has it."""
    return None if figure is None else float(figure)


class Run:
    """One run over an open run directory.

    Args:
        always_track: start the tracker even if nothing is left to do, as a W&B agent waits for this run's figures.
        evaluate: called with the summary once every sample has a record; returns the figures of the evaluated
            patches, which are added to the summary.
        evaluated_by: the name of this evaluation. A run that another one has evaluated is evaluated again.
        earlier_verdicts: called with the summary if the last command had another coverage; returns the figures of
            earlier evaluations for the present coverage.
        shared: run directories of runs with the same identity, whose completions are reused.
        over_budget: instances of which the runner can request no further sample, see ``RunContext``.
        edit_format: the form of answer that prompts request if they do not state it themselves; None: not known.
        sweep: the run's sweep, for the progress line; None: the run is alone.
        feedback: decides which answers get further turns.
        judge: selects by the answers of the run's model; None: another rule does.
    """

    def __init__(
        self,
        runner: Runner,
        selection: Selection,
        store: RunStore,
        tracker: Tracker,
        info: RunInfo,
        *,
        always_track: bool = False,
        evaluate: Callable[[Summary], Summary] | None = None,
        evaluated_by: str | None = None,
        earlier_verdicts: Callable[[Summary], Summary] | None = None,
        shared: Sequence[Path] = (),
        over_budget: Container[str] = (),
        edit_format: EditFormat | None = None,
        sweep: SweepView | None = None,
        feedback: Feedback = NoFeedback(),  # noqa: B008 - immutable
        judge: JudgeSelector | None = None,
    ) -> None:
        self.runner = runner
        self.selection = selection
        self.store = store
        self.tracker = tracker
        self.info = info
        self.sweep = sweep
        self._always_track = always_track
        self._evaluate = evaluate
        self._evaluated_by = evaluated_by
        self._earlier_verdicts = earlier_verdicts
        self._sources = [*shared, *([store.directory] if store.totals.replaced else [])]
        self._reusable: dict[Key, Record] | None = None
        self._queue: Iterator[Request] | None = None
        self._changed = store.changed
        self._over_budget = over_budget
        self._edit_format = edit_format
        self._skip_example: tuple[str, Skip] | None = None
        self._last_inputs: tuple[str, tuple[Mapping[str, str], EditFormat | None]] | None = None
        self._indices: dict[str, int] | None = None
        self._recheck = store.recheck or any(map(store.totals.has_skip, RECHECKED_SKIPS))
        self._samples = runner.decoding.n
        self._turns = FurtherTurns(feedback, selection, store.directory, self._samples, edit_format, self._sources)
        self._files = FileChoiceRequests.of(selection, runner.decoding, [store.directory], self._sources)
        self._rounds: Iterator[Iterator[Request]] = iter(())
        self._turns_left = feedback.turns > 0
        """Whether a further turn may have no record yet."""
        self._judge = judge if self._samples > 1 else None
        self._judge_left = self._judge is not None
        """Whether a request to judge samples may have no record yet."""
        self._unavailable = False
        """Whether the prompt of a further turn could not be read. The same command tries again."""
        self._selection_figures: tuple[int, Summary] | None = None
        self.stop = threading.Event()
        self._writer = RecordWriter(store)
        self._stopped_by: str | None = None
        self._started = time.monotonic()
        self._before = store.read_summary()
        self._wall_before = float(self._before.get("wall_s", 0.0))
        if self._changed:
            self._before = {}  # its figures cover other instances
        self._changed = self._changed or store.predictions.changed
        self._summary_due = 0.0
        self._frozen: tuple[float, Mapping[str, float]] | None = None
        """Time and runner figures at the end of generation."""
        self._progress_line: ProgressLine = lambda record, summary: None

    def execute(self) -> int:
        """Run to the end; returns the exit status, as the README states it."""
        with INTERRUPTS.finishing(self.stop, says=self.in_progress):
            status = self.start()
            if status is not None:
                return status
            error: BaseException | None = None
            with self._progress() as self._progress_line:
                try:
                    if not self.stop.is_set():
                        self._generate()
                except (Exception, KeyboardInterrupt) as raised:  # noqa: BLE001 - close_records() reports it
                    error = raised
                status = self.close_records(error)
            return self.finalize(status)

    def _generate(self) -> None:
        if self.most_rounds > 1:
            self.runner.generate_rounds(self.rounds(), self.record_outcome, self.stop)
        else:
            self.runner.generate(self.requests(), self.record_outcome, self.stop)

    def show_progress(self, line: ProgressLine) -> None:
        """Call ``line`` with each further record and its summary."""
        self._progress_line = line

    def in_progress(self) -> str:
        """What the first Ctrl-C waits for, in a few words."""
        if self._frozen is not None:
            return "writing the last records"
        number = self.runner.in_flight
        return (
            f"finishing {number} request{'s' * (number != 1)} in flight" if number else "no further request is sent"
        )

    def start(self) -> int | None:
        """Start the tracker; returns the exit status if nothing is left to do.

        Concurrent runs are continued with :meth:`requests` and :meth:`record_outcome` for each outcome, then
        :meth:`freeze_figures`, :meth:`close_records` and :meth:`finalize`.
        """
        self._started = time.monotonic()
        summary, first = self.summary(), None
        waiting = self._reuse_file_choices()
        if waiting:
            summary = self.summary()
        elif self._recheck or (self._sources and summary["remaining"] + summary["failed"]):
            # Reuse completions first: the run may then need no model and no connection.
            records = self.store.totals.records
            requests = self._requests()
            first = next(requests, None)
            self._queue = itertools.chain([first] if first is not None else [], requests)
            self._changed = self._changed or self.store.totals.records != records
            summary = self.summary()
        if self._changed:
            self._use_earlier_verdicts()
            summary = self.summary()
        first_answers = bool(waiting or first is not None or summary["remaining"] or summary["failed"])
        if first_answers:
            self.store.mark_turns(done=False)
        records = self.store.totals.records
        self._rounds = self._all_rounds(first_answers=first_answers)
        next_round = next(self._rounds, None)
        if next_round is not None:
            self._rounds = itertools.chain([next_round], self._rounds)
            self.tracker.start(self.info)
            import swe_infer.patches.pipeline  # noqa: F401 - before answers wait for it, and not for a finished run

            return None
        if self.store.totals.records != records:  # turns of other runs were reused
            self._changed = True
            summary = self.summary()
        log.info("nothing is left to do: every instance is completed or skipped")
        self._warn_of_skips(summary)
        status = 0
        if (self._changed or self._is_outdated(summary)) and not self._written_with_judgements(summary):
            status = 1
        summary = self.summary()
        evaluates = status == 0 and self._needs_evaluation(summary)
        if evaluates:
            status = self._evaluated(summary)
        if self._always_track or self._changed or evaluates or self.tracker.is_incomplete(self.info):
            self.tracker.start(self.info)
            return self._tracked(self.summary(), status)
        return status

    def _is_outdated(self, summary: Summary) -> bool:
        """Whether the last command wrote another summary, as it was killed before the last one or asked for other
        instances."""
        written, found = cast(Mapping[str, Any], self._before), cast(Mapping[str, Any], summary)
        return any(_as_written(written.get(name, 0)) != _as_written(found[name]) for name in _COMPARED)

    def _reuse_file_choices(self) -> bool:
        """Record the files to show that other runs have paid for; returns whether some are yet to be requested."""
        if self._files is None:
            return False
        waiting = list(self._files.waiting(self.store.totals, recheck=self._recheck))
        for record in self._files.reuse(waiting):
            self._append(record)
            self._changed = True
        return any(map(self._files.is_waiting, waiting))

    def freeze_figures(self) -> None:
        """Generation is over: fix the run's time and the runner's figures, as concurrent runs may go on."""
        if self._frozen is None:
            self._frozen = (time.monotonic(), dict(self.runner.stats()))

    def finalize(self, status: int) -> int:
        """Write the summary, evaluate the patches, and finish the tracker.

        Args:
            status: the exit status so far.

        Returns:
            The run's exit status.
        """
        self.freeze_figures()
        summary = self.summary()
        self._warn_of_skips(summary)
        totals = self.store.totals
        unfinished = summary["failed"] or summary["remaining"] or totals.has_failed_turns
        unfinished = unfinished or (self._judge is not None and totals.has_failed_requests("judge"))
        every_sample_tried = status == 0 and not summary["remaining"]
        if INTERRUPTS.stopping and (unfinished or self._turns_left or self._judge_left):
            status = INTERRUPTED
        elif status == 0 and unfinished:
            status = 1
        is_written = self._written_with_judgements(summary)
        summary = self.summary()
        if not is_written:
            status = status or 1
        elif status == 0 or (every_sample_tried and status == 1 and summary["completed"]):
            status = max(status, self._evaluated(summary))
            summary = self.summary()
        return self._tracked(summary, status)

    def _use_earlier_verdicts(self) -> None:
        """Count the verdicts of earlier evaluations on the present answers and selections."""
        if self._earlier_verdicts is not None:
            summary = self.summary()
            try:
                self._before = {**summary, **self._earlier_verdicts(summary)}
            except (SweInferError, OSError) as error:
                log.error("the verdicts of earlier evaluations are not used: %s", error)

    def _written_with_judgements(self, summary: Summary) -> bool:
        """Write the summary, where the answers of the judge may have changed the selections; False if that fails."""
        if not self._written(summary):
            return False
        if self._judge is None:
            return True
        self._use_earlier_verdicts()
        return self._written(self.summary())

    def _warn_of_skips(self, summary: Summary) -> None:
        asked = summary["instances"] * self._samples
        warn_of_skips(self.store.totals.skip_reasons(), asked, self._skip_example)

    def _tracked(self, summary: Summary, status: int) -> int:
        """Finish the tracker; returns the exit status."""
        try:
            self.tracker.finish(summary, layout.result_files(self.store.directory), status)
        except KeyboardInterrupt:
            return INTERRUPTED
        return status

    def _needs_evaluation(self, summary: Summary) -> bool:
        """Whether the last command ended before the evaluation, or another evaluation is configured now. The verdicts
        of a report that the user passed are kept."""
        if self._evaluate is None or not summary["completed"]:
            return False
        same = summary.get("evaluated_by") in (None, "report", self._evaluated_by)
        return not same or summary["completed"] > summary.get("evaluated", 0)

    def _evaluated(self, summary: Summary) -> int:
        """Evaluate the patches if configured; returns the exit status. A failed evaluation costs no answer:
        ``swe-infer-evaluate`` repeats it."""
        if self._evaluate is None:
            return 0
        try:
            with INTERRUPTS.stoppable():
                found = self._evaluate(summary)
        except KeyboardInterrupt:
            log.warning("not all patches were evaluated; repeat this command or run swe-infer-evaluate")
            return INTERRUPTED
        except (SweInferError, OSError) as error:
            log.error("the patches were not evaluated: %s", error)
            return 0
        self._before = {**summary, **found}
        return 0 if self._written(self.summary()) else 1

    def _written(self, summary: Summary) -> bool:
        """Write the summary, and flush the records; False if either is not on disk."""
        try:
            self.store.write_summary(summary)
            self.store.check()
            figures = self._selection(summary)  # the last selections are made by check()
            if not figures.items() <= summary.items():
                self.store.write_summary({**summary, **figures})
        except StoreError as error:
            log.error("%s; repeat this command once the disk is writable", error)
            return False
        return True

    def summary(self) -> Summary:
        """The run's current summary; dollars are Decimal."""
        now, stats = self._frozen or (time.monotonic(), self.runner.stats())
        summary = self.store.totals.summary(
            instances=len(self.selection),
            samples=self._samples,
            wall_s=self._wall_before + now - self._started,
            stats=stats,
            stopped_by=self._stopped_by,
            unrecorded_usd=self.runner.unrecorded_usd,
        )
        summary |= self._selection(summary)
        if _answers(self._before) == _answers(summary):  # the evaluation still covers every answer
            merged: Summary = {**self._before, **summary}
            if "resolved" in merged:
                resolved = merged["resolved"]
                merged["cost_per_resolved_usd"] = cost_per_resolved(resolved, summary["cost_usd"])
                merged["resolved_rate_without_infrastructure_failures"] = without_infrastructure_failures(
                    resolved, summary
                )
            return merged
        return summary

    def _selection(self, summary: Summary) -> Summary:
        """The figures of the selected answers; counted again only if they have changed."""
        predictions = self.store.predictions
        if self._selection_figures is None or self._selection_figures[0] != predictions.revision:
            self._selection_figures = (predictions.revision, selection_figures(predictions.selected, summary))
        return self._selection_figures[1]

    def close_records(self, error: BaseException | None) -> int:
        """Logs why generation stopped early, and waits until every record is durable.

        Args:
            error: what ended generation; None if it ended by itself.

        Returns:
            The exit status so far.
        """
        self._stopped_by = None if error is None else type(error).__name__
        if isinstance(error, BudgetExceeded):
            summary = self.summary()
            remaining, failed = summary["remaining"], summary["failed"]
            if remaining:
                left = f"remaining samples: {remaining}"
            elif self._judge_left and not self._turns_left:
                left = "the samples of some instances are not judged yet"
            else:
                left = "some further turns are not sent yet" if self._turns_left else ""
            if failed:
                left += f"{', ' if left else ''}failed samples: {failed}"
            log.error("%s; %s; repeat this command with a larger budget", error, left)
            status = error.exit_status
        else:
            status = 0 if error is None else _logged(error)
        try:
            saved = self._writer.wait_until_written()
        except KeyboardInterrupt:
            saved = self._writer.report_unwritten()
        return status if saved else status or 1

    def requests(self) -> Iterator[Request]:
        """The requests to send. Skipped and reused samples are recorded when the iteration reaches them."""
        return self._requests() if self._queue is None else self._queue

    @property
    def most_rounds(self) -> int:
        """The number of rounds of requests, at most."""
        return 1 + (self._files is not None) + self._turns.most + (self._judge is not None)

    def rounds(self) -> Iterator[Iterator[Request]]:
        """The requests for files to show, those for first answers, those of each further turn, and those to judge
        samples; rounds without a request are left out. The outcomes of a round must be recorded before the next one
        is read."""
        return self._rounds

    def _all_rounds(self, *, first_answers: bool) -> Iterator[Iterator[Request]]:
        if first_answers and self._files is not None:
            for requests in (self._requests_for_files(self._files), self.requests()):
                if (first := next(requests, None)) is not None:
                    yield itertools.chain([first], requests)
        elif first_answers:
            yield self.requests()
        else:
            self._turns_left = self._turns_left and not self._has_all_turns()
        yield from self._turn_rounds()
        if self._judge is not None and not self.stop.is_set():
            requests = self._judge_requests(self._judge)
            if (first := next(requests, None)) is not None:
                yield itertools.chain([first], requests)
            self._judge_left = self.stop.is_set()

    def _turn_rounds(self) -> Iterator[Iterator[Request]]:
        for turn in range(1, self._turns.most + 1):
            if not self._turns_left or self.stop.is_set():
                return
            requests = self._turn_requests(turn)
            first = next(requests, None)
            if first is not None:
                yield itertools.chain([first], requests)
        if self._turns_left and not self.stop.is_set():
            self._turns_left = False
            self.store.mark_turns(done=not self._unavailable)

    def _judge_requests(self, judge: JudgeSelector) -> Iterator[Request]:
        """The requests to judge samples. Reused ones are recorded when the iteration reaches them."""
        try:
            self.store.check()  # selects the last answers
        except StoreError:  # the end of the run reports it
            return
        predictions, totals = self.store.predictions, self.store.totals
        known: dict[tuple[str, str, str], Record] | None = None
        for index in self.selection.requested:
            instance_id = self.selection.rows.ids[index]
            if self.stop.is_set():
                return
            selected = predictions.selected.get(instance_id)
            is_judged = selected is None or selected.rule == judge.name
            if is_judged or instance_id in self._over_budget or totals.samples(instance_id) < self._samples:
                continue
            try:
                prompt = judge.prompt(instance_id, predictions.candidates(instance_id))
            except (SweInferError, OSError) as error:
                log.warning("%s: its samples are not judged: %s", instance_id, error)
                continue
            if prompt is None:
                continue
            if totals.auxiliary_status("judge", instance_id, prompt.sha256) in FINISHED:
                continue
            if known is None:
                known = reusable_auxiliary(self._sources, lambda record: purpose_of(record) == "judge")
            if (record := known.get((instance_id, "judge", prompt.sha256))) is not None:
                self._append(record)
            else:
                yield Request(instance_id, 0, prompt, self.runner.decoding, {}, purpose="judge")

    def _has_all_turns(self) -> bool:
        return self.store.turns_done and not self.store.totals.has_failed_turns

    def _turn_requests(self, turn: int) -> Iterator[Request]:
        """The requests of one further turn. Skipped and reused ones are recorded when the iteration reaches them."""
        rows, totals = self.selection.rows, self.store.totals
        changed: list[str] = []
        for pending in self._turns.pending(turn, totals):
            if self.stop.is_set():
                return
            if pending.key[0] in self._over_budget:
                continue
            if (record := self._turns.reusable(pending)) is not None:
                self._append(record)
                continue
            try:
                prompt = rows[pending.index].prompt
            except DataError as error:
                log.warning("%s: no further turn: %s", pending.key[0], error)
                self._unavailable = True
                continue
            if not pending.is_about(prompt):
                changed.append(pending.key[0])
                continue
            request = pending.request(prompt, self.runner.decoding)
            if (skip := self._turns.overflow(request.prompt)) is not None:
                self._append(record_of(request.key, skip, None, request.prompt))
            else:
                yield request
        if changed:
            log.warning(
                "%s: no further turn, the prompt differs from the recorded one (samples: %d)",
                changed[0],
                len(changed),
            )

    def _requests_for_files(self, files: FileChoiceRequests) -> Iterator[Request]:
        for index in list(files.waiting(self.store.totals, recheck=self._recheck)):
            if self.stop.is_set():
                return
            if self.selection.rows.ids[index] not in self._over_budget and (request := files.request(index)):
                yield request

    def _fail_without_files(self, files: FileChoiceRequests) -> None:
        """Record the failure of samples whose files could not be chosen."""
        for index in self.selection.requested:
            if (failure := files.failure(index)) is None:
                continue
            for sample in range(self._samples):
                key = (self.selection.rows.ids[index], sample)
                if self.stop.is_set():
                    return
                if lacks_answer(self.store.totals, key, recheck=self._recheck):
                    self._append(record_of(key, failure, None))

    def _requests(self) -> Iterator[Request]:
        totals = self.store.totals
        if self._files is not None:
            self._fail_without_files(self._files)
        self._compare_prompts()
        pending = pending_requests(
            self.selection,
            self.runner.decoding,
            totals,
            recheck=self.store.recheck,
            over_budget=self._over_budget,
            is_waiting=(lambda index: False) if self._files is None else self._files.is_waiting,
            edit_format=self._edit_format,
        )
        for item in pending:
            if not isinstance(item, Request):
                if self.stop.is_set():  # many skips may follow one another
                    return
                key, skip = item
                self._skip_example = self._skip_example or (key[0], skip)
                self._append(record_of(key, skip, None))
            elif (record := self._reusable_record(item.key)) is not None:
                self._append(record)
            else:
                yield item
        self.store.mark_decided()

    def _compare_prompts(self) -> None:
        """Warn if recorded instances have other prompts now, because the dataset has changed."""
        rows, totals = self.selection.rows, self.store.totals
        recorded = (i for i in self.selection.requested if totals.has_prompt(rows.ids[i]))
        different = [
            rows.ids[index]
            for index in itertools.islice(recorded, _COMPARED_PROMPTS)
            if rows.fault(index) is None and totals.has_other_prompt(rows.ids[index], rows[index].prompt.sha256)
        ]
        if different:
            log.warning(
                "%s: the prompt differs from the recorded one, so this run has answers to different prompts "
                "(%d of the compared instances differ)",
                different[0],
                len(different),
            )

    def _reusable_record(self, key: Key) -> Record | None:
        """The record of a completion that another run has paid for, or None."""
        if not self._sources:
            return None
        if self._reusable is None:
            totals = self.store.totals
            self._reusable = reusable_records(
                self._sources, lambda k: totals.counts(k[0]) and totals.status(k) != "completed"
            )
            if self._reusable:
                log.info("answers that another run paid for are used, at no cost here: %d", len(self._reusable))
        return self._reusable.pop(key, None)

    def record_outcome(self, request: Request, outcome: Outcome) -> None:
        """Extract the patch of a completion, and append the record of the outcome."""
        with INTERRUPTS.put_off():  # a second Ctrl-C must not come between an answer and the disk
            if request.purpose is not None:
                self._append(auxiliary_record(request, outcome))
                index = self._index_of(request.instance_id)
                if request.purpose == "context" and self._files is not None and index is not None:
                    self._files.use(index, outcome)
                return
            patch = outcome.patch or self._patch(request, outcome) if isinstance(outcome, Completion) else None
            self._append(record_of(request.key, outcome, patch, request.prompt))

    def _append(self, record: Record) -> None:
        if not self._writer.write(record):
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
            from swe_infer.patches.pipeline import make_patch  # not loaded for a finished run

            files, edit_format = self._inputs_of_check(request)
            answer = request.prompt.with_prefill(outcome.text)
            return make_patch(answer, files, edit_format or self._edit_format)
        except Exception:  # a fault in our code must not cost a paid answer; it can be extracted again
            log.exception("%s: the patch could not be extracted from the answer", request.instance_id)
            return PatchResult("", "none", reason="internal error while extracting; the answer is kept")

    def _inputs_of_check(self, request: Request) -> tuple[Mapping[str, str], EditFormat | None]:
        """The files of a request's instance, and the form of answer of its row.

        For a request without them, such as one from a batch of an earlier process, both come from the dataset's row.
        """
        if request.files is not None:
            return request.files, request.edit_format
        if self._last_inputs is None or self._last_inputs[0] != request.instance_id:
            self._last_inputs = (request.instance_id, self._inputs_of_row(request))
        return self._last_inputs[1]

    def _inputs_of_row(self, request: Request) -> tuple[Mapping[str, str], EditFormat | None]:
        rows, index = self.selection.rows, self._index_of(request.instance_id)
        if index is not None:
            with suppress(DataError):  # the dataset has changed since
                return rows.inputs_of_check(index)
        prompt = replace(request.prompt, turns=())
        return (PromptFiles(prompt) if rows.has_known_lengths else {}), None

    def _index_of(self, instance_id: str) -> int | None:
        """The row of an instance; None if the dataset does not have it."""
        if self._indices is None:
            self._indices = {name: index for index, name in enumerate(self.selection.rows.ids)}
        return self._indices.get(instance_id)

    @contextmanager
    def _progress(self) -> Iterator[ProgressLine]:
        summary = self.summary()
        total = summary["instances"] * self._samples
        already_done = total - summary["remaining"] - summary["failed"]
        progress = Progress(total, already_done, sys.stderr, totals=summary, sweep=self.sweep)
        try:
            yield lambda record, totals: progress.update(record, totals, totals["stats"])
        finally:
            progress.close()


def _answers(summary: Summary) -> tuple[int | None, int]:
    """Counts that change when an answer is added or replaced."""
    return summary.get("completed"), summary.get("feedback", {}).get("turns", 0)


def _logged(error: BaseException) -> int:
    """Log why generation stopped; returns the exit status."""
    if isinstance(error, StoreError):  # exit status 2 is for errors before anything is paid for
        log.error("%s", error)
        return 1
    if isinstance(error, SweInferError):
        log.error("%s", error)
        return error.exit_status
    if isinstance(error, OSError | MemoryError) or _is_broken_library(error):
        log.error("stopped: %s", " ".join(str(error).split()) or type(error).__name__)
        return 1
    if isinstance(error, KeyboardInterrupt):
        if INTERRUPTS.count > 1:
            log.warning("stopped at once; finished answers are kept")
        return INTERRUPTED
    # a fault in our code: the run is still finalized
    log.error("stopped by an unexpected error", exc_info=error)
    return 1


def _is_broken_library(error: BaseException) -> bool:
    """Whether a package's shared library cannot be loaded: it is for another machine, or memory is short."""
    return isinstance(error, ImportError) and Path(error.path or "").suffix == ".so"
