"""The main loop of a run: instances -> requests -> completions -> patches -> store, tracker, progress.

A runner turns requests into completions. Everything that happens to a completion afterwards happens here.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from swe_infer.conf_files import suggestion
from swe_infer.data.base import TEXT_COLUMN, Dataset, Rows
from swe_infer.data.choices import load_file_choices
from swe_infer.data.images import with_images
from swe_infer.data.select import Selection, select
from swe_infer.errors import BudgetExceeded, ConfigError, DataError, StoreError, SweInferError
from swe_infer.feedback.base import Feedback, NoFeedback
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.prompt_format import PromptFiles
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.figures import (
    Summary,
    Totals,
    cost_per_resolved,
    selection_figures,
    without_infrastructure_failures,
)
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.record_writer import RecordWriter
from swe_infer.run_directory.records import Damage, Key, Record, purpose_of
from swe_infer.run_directory.store import (
    RunStore,
    auxiliary_record,
    record_of,
    reusable_auxiliary,
    reusable_records,
)  # fmt: skip
from swe_infer.runners.base import PendingSamples, Runner
from swe_infer.runners.choices import LENGTH_SKIPS, RECHECKED_SKIPS, FileChoiceRequests, lacks_answer
from swe_infer.runners.progress import Progress, SweepView
from swe_infer.runners.turns import FurtherTurns
from swe_infer.tracking.base import RunInfo, Tracker
from swe_infer.types import (
    Completion,
    DataShard,
    Decoding,
    EditFormat,
    Estimate,
    Outcome,
    PatchResult,
    Prompt,
    Request,
    Skip,
    TokenCounter,
)

if TYPE_CHECKING:
    from swe_infer.context.base import Context
    from swe_infer.prompts.prompt import PromptRenderer
    from swe_infer.repositories import Repositories
    from swe_infer.selection.judge import JudgeSelector

log = logging.getLogger(__name__)

ProgressLine = Callable[[Record, Summary], None]
"""Called with each record and the summary that includes it."""

_SUMMARY_INTERVAL_S = 5.0
_FINISHED = ("completed", "skipped")
_COMPARED_PROMPTS = 16
"""Number of recorded instances whose prompts are compared with the present ones when a run is resumed."""
_MESSAGE_TOKENS = 4000
"""An upper bound on the tokens of a feedback message, for estimates."""


class _LazyCounter:
    """Loads the runner's token counter when the first prompt is counted. A finished run never loads it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._counter: TokenCounter | None = None

    def _loaded(self) -> TokenCounter:
        if self._counter is None:
            self._counter = self._runner.token_counter()
        return self._counter

    @property
    def name(self) -> str:
        return self._loaded().name

    @property
    def exact(self) -> bool:
        return self._loaded().exact

    def __call__(self, prompt: Prompt) -> int:
        return self._loaded()(prompt)


@dataclass(frozen=True, slots=True)
class PromptSource:
    """How the prompts of a run are rendered from its rows.

    Args:
        repositories: None if the context reads none.
    """

    context: Context
    renderer: PromptRenderer
    repositories: Repositories | None

    def open(self, dataset: Dataset, count_tokens: TokenCounter) -> Rows:
        """The rows of a dataset with their prompts.

        Raises:
            ConfigError: no row has a column that the context or the prompt needs.
            DataError: the dataset cannot be read.
        """
        if self.context.gives_text and self.renderer.is_plain:
            return with_images(dataset.open(), dataset.images)
        from swe_infer.prompts.rows import RenderedRows

        raw = (dataset if self.context.gives_text else dataset.without_prompts()).open()
        for name, option in {**self.context.required_columns, **self.renderer.required_columns}.items():
            if name not in raw.columns:
                raise ConfigError(f"{option}: the dataset has no column {name!r}{suggestion(name, raw.columns)}")
        column = dataset.text_column or TEXT_COLUMN
        rendered = RenderedRows(raw, self.context, self.renderer, self.repositories, count_tokens, column)
        return with_images(rendered, dataset.images)


def select_instances(
    runner: Runner,
    dataset: Dataset,
    shard: DataShard,
    prompts: PromptSource | None = None,
    rows: Rows | None = None,
) -> Selection:
    """The instances of a run, in the runner's order. Prompts are counted lazily.

    Args:
        prompts: None: the rows' own prompts are used.
        rows: the opened dataset with its prompts; None: it is opened.

    Raises:
        DataError: the dataset cannot be read.
    """
    counter = _LazyCounter(runner)
    if rows is None:
        rows = with_images(dataset.open(), dataset.images) if prompts is None else prompts.open(dataset, counter)
    return select(
        rows,
        dataset,
        count_tokens=counter,
        reserved_output_tokens=runner.decoding.max_new_tokens,
        context_window=runner.context_window,
        shard=shard,
        order=runner.order,
        image_fault=runner.image_fault,
    )


def _warn_of_skips(reasons: Mapping[str, int], asked: int, example: tuple[str, Skip] | None) -> None:
    """Warn that every instance is skipped.

    Args:
        reasons: samples by the reason of their skip.
        asked: number of covered samples, skipped ones included.
    """
    if not reasons or sum(reasons.values()) < asked:
        return
    counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    detail = "" if example is None else f"; {example[0]}: {example[1].message}"
    log.warning("every instance is skipped, so none has an answer (%s)%s", counts, detail)


def coverage_of(selection: Selection, turns: int = 0) -> Coverage:
    """The instances and length bounds of a selection, with a number of further turns."""
    ids = tuple(selection.rows.ids[index] for index in sorted(selection.requested))
    return Coverage(ids, selection.lengths.min_tokens, selection.lengths.max_tokens, turns=turns)


def pending_requests(
    selection: Selection,
    decoding: Decoding,
    totals: Totals,
    *,
    recheck: bool = False,
    over_budget: Container[str] = (),
    is_waiting: Callable[[int], bool] = lambda index: False,
    edit_format: EditFormat | None = None,
) -> Iterator[Request | tuple[tuple[str, int], Skip]]:
    """The samples that are neither completed nor skipped: a request, or a key and the reason to skip it.

    Rows are read and prompts counted lazily.

    Args:
        recheck: the records were made with other bounds on a prompt's length. Samples that were skipped for their
            length are requested if they are within the bounds now; completed ones outside the bounds are skipped.
        over_budget: instances of which no further sample is requested; may grow during the iteration.
        is_waiting: whether a row has no prompt yet. Its samples are left out.
        edit_format: see :class:`Run`.
    """
    bounded = selection.lengths.min_tokens is not None or selection.lengths.max_tokens is not None
    for index in selection.requested:
        instance_id = selection.rows.ids[index]

        def is_open(key: tuple[str, int]) -> bool:
            if lacks_answer(totals, key, recheck=recheck):
                return True
            return recheck and bounded and totals.status(key) == "completed"

        pending = filter(is_open, ((instance_id, sample) for sample in range(decoding.n)))
        first = next(pending, None)
        if first is None or is_waiting(index):
            continue
        skip = selection.skip_for(index)
        instance = selection.rows[index] if skip is None else None
        for key in itertools.chain((first,), pending):
            if instance_id in over_budget:
                break
            status = totals.status(key)
            if instance is not None and status != "completed":
                form = instance.edit_format or edit_format
                yield Request(*key, instance.prompt, decoding, instance.files, form)
            elif skip is not None and totals.skip_reason(key) != skip.reason:
                if status == "completed" and skip.reason not in LENGTH_SKIPS:
                    continue
                yield key, skip


class Remainder:
    """The samples of a run without an answer in its records, or in those of runs whose answers it reuses. Reads the
    records, and writes no file.

    Args:
        directory: the run directory, which need not exist.
        before: the coverage of the last command, used if the directory states none.
        shared: run directories whose completions the run would reuse.
        feedback, edit_format: see :class:`Run`.
        judges: whether a model judges the samples of an instance.
    """

    def __init__(
        self,
        selection: Selection,
        decoding: Decoding,
        directory: Path,
        before: Coverage,
        shared: Sequence[Path] = (),
        feedback: Feedback = NoFeedback(),  # noqa: B008 - immutable
        edit_format: EditFormat | None = None,
        *,
        judges: bool = False,
    ) -> None:
        self.selection = selection
        self.damage = Damage()
        self.skips: Counter[str] = Counter()
        """Instances that :meth:`pending` has left out, by reason."""
        self._decoding = decoding
        self._example: tuple[str, Skip] | None = None
        recorded, totals = RunDirectory(directory), Totals(covered_turns=feedback.turns)
        for record in recorded.records(self.damage, auxiliary=True):
            totals.add_record(record)
        totals.add_damage(self.damage)
        self.cost_usd = totals.cost_usd
        """Dollars of all records."""
        last = recorded.coverage() or before
        recheck = not last.decides(coverage_of(selection), totals.instance_ids)
        sources = [*shared, *([directory] if totals.replaced else [])]
        reusable = reusable_records(sources, lambda key: totals.status(key) != "completed") if sources else {}
        self._totals = totals
        self._reusable = reusable.keys()
        self._turns = FurtherTurns(feedback, selection, directory, decoding.n, edit_format, sources)
        self._judged = {name for name, one in recorded.selected().items() if one.rule == "judge"} if judges else None
        self._files = _file_requests(selection, decoding, [directory, *sources])
        self._assumed: set[int] = set()
        """Rows that the model has to choose the files of first."""
        self._finished: dict[str, set[int]] = {}
        for key, status in itertools.chain(totals.statuses(), ((key, "completed") for key in reusable)):
            reason = totals.skip_reason(key)
            again = key not in reusable and (reason in RECHECKED_SKIPS or (recheck and reason in LENGTH_SKIPS))
            if status in _FINISHED and not again and key[1] < decoding.n:
                self._finished.setdefault(key[0], set()).add(key[1])

        ids = {selection.rows.ids[index] for index in selection.requested}
        self.failed = sum(status == "failed" and key[0] in ids for key, status in totals.statuses())
        """Samples whose last attempt failed. They are to be requested again."""

    def count(self) -> int:
        """The number of samples without an answer. Reads no prompt, so it includes instances that will be skipped."""
        ids = (self.selection.rows.ids[index] for index in self.selection.requested)
        return sum(self._decoding.n - len(self._finished.get(instance_id, ())) for instance_id in ids)

    def _file_requests(self, planned: set[str] | None) -> Iterator[PendingSamples]:
        """The requests for files to show. Their prompts show none afterwards."""
        for index in self.selection.requested:
            instance_id = self.selection.rows.ids[index]
            is_done = len(self._finished.get(instance_id, ())) >= self._decoding.n
            if self._files is None or is_done or (planned is not None and instance_id in planned):
                continue
            if self._files.is_waiting(index) and (request := self._files.request(index)) is not None:
                yield PendingSamples(instance_id, request.prompt, self._decoding, 1)
                self._assumed.add(index)
                self._files.assume_none(index)

    def pending(self, planned: set[str] | None = None, *, longest: bool = False) -> Iterator[PendingSamples]:
        """The samples to request. Reads and counts prompts.

        Args:
            planned: instances that earlier runs of a sweep with the same identity will answer, which are left out.
                Grows by the instances of this run.
            longest: with the most files that the model may choose.
        """
        for index in self.selection.requested:
            instance_id = self.selection.rows.ids[index]
            done = self._finished.get(instance_id, set())
            if len(done) >= self._decoding.n or (planned is not None and instance_id in planned):
                continue
            if (skip := self.selection.skip_for(index)) is None:
                prompt = self.selection.rows[index].prompt
                further = self._most_further_tokens(index) if longest else 0
                yield PendingSamples(instance_id, prompt, self._decoding, self._decoding.n, done, further)
                if planned is not None:
                    planned.add(instance_id)
            else:
                self.skips[skip.reason] += 1
                self._example = self._example or (instance_id, skip)

    def estimate(self, runner: Runner, planned: set[str] | None = None) -> Estimate:
        """Estimates the requests of :meth:`pending`. Further turns after recorded answers are included; those that
        depend on later answers are in the upper bounds only."""
        requests = None if self._files is None else runner.estimate(self._file_requests(planned))
        before = None if planned is None else set(planned)
        estimate = runner.estimate(itertools.chain(self.pending(planned), self._pending_turns()))
        if requests is not None and self._assumed:
            self.skips.clear()  # the samples are read again
            longest = runner.estimate(itertools.chain(self.pending(before, longest=True), self._pending_turns()))
            estimate = replace(requests + estimate.up_to(longest), instances=estimate.instances)
        if self._turns.most:
            estimate = estimate.with_further(runner.estimate(self._further_turns()))
        if self._judged is not None and self._decoding.n > 1:
            turns = estimate.further_turns
            estimate = replace(estimate.with_further(runner.estimate(self._to_judge())), further_turns=turns)
        return estimate

    def _to_judge(self) -> Iterator[PendingSamples]:
        """The requests to judge samples, as long as they can be."""
        for index in self.selection.requested:
            instance_id = self.selection.rows.ids[index]
            if (self._judged is not None and instance_id in self._judged) or self.selection.skip_for(
                index
            ) is not None:
                continue
            tokens = self._decoding.n * self._decoding.max_new_tokens
            prompt = self.selection.rows[index].prompt
            yield PendingSamples(instance_id, prompt, self._decoding, 1, further_tokens=tokens)

    def _most_further_tokens(self, index: int) -> int:
        """The most tokens of files that a model has yet to choose."""
        return self._files.max_tokens if self._files is not None and index in self._assumed else 0

    def _pending_turns(self) -> Iterator[PendingSamples]:
        for turn in range(1, self._turns.most + 1):
            for found in self._turns.pending(turn, self._totals):
                if self._turns.reusable(found) is None:
                    prompt = found.request(self.selection.rows[found.index].prompt, self._decoding).prompt
                    yield PendingSamples(found.key[0], prompt, self._decoding, 1)

    def _further_turns(self) -> Iterator[PendingSamples]:
        tokens = self._decoding.max_new_tokens + _MESSAGE_TOKENS
        for one in self._pending_turns():
            for count in range(1, self._turns.most - len(one.prompt.turns) + 1):
                yield replace(one, further_tokens=count * tokens)  # after a recorded answer, so its files are chosen
        for index in self.selection.requested:
            instance_id = self.selection.rows.ids[index]
            done = self._finished.get(instance_id, set())
            answered = {sample for sample in done if (instance_id, sample) not in self._reusable}
            if len(answered) >= self._decoding.n or self.selection.skip_for(index) is not None:
                continue
            prompt = self.selection.rows[index].prompt
            one = PendingSamples(instance_id, prompt, self._decoding, self._decoding.n, answered)
            files = self._most_further_tokens(index)
            for count in range(1, self._turns.most + 1):
                yield replace(one, further_tokens=files + count * tokens, separate=True)

    def warn(self) -> None:
        """Log a warning if :meth:`pending` has left out every instance."""
        _warn_of_skips(self.skips, len(self.selection.requested), self._example)


def _file_requests(
    selection: Selection, decoding: Decoding, directories: Sequence[Path], sources: Sequence[Path] = ()
) -> FileChoiceRequests | None:
    """The requests for files to show; None if prompts need none.

    Args:
        directories: whose choices are set.
        sources: see :class:`.choices.FileChoiceRequests`.
    """
    choices = selection.rows.file_choices
    if choices is None:
        return None
    load_file_choices(choices, selection.rows.ids, directories)
    return FileChoiceRequests(choices, selection, decoding, sources)


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
        self._files = _file_requests(selection, runner.decoding, [store.directory], self._sources)
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
        _warn_of_skips(self.store.totals.skip_reasons(), asked, self._skip_example)

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
            if totals.auxiliary_status("judge", instance_id, prompt.sha256) in _FINISHED:
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
    if isinstance(error, OSError | MemoryError):
        log.error("stopped: %s", " ".join(str(error).split()) or type(error).__name__)
        return 1
    if isinstance(error, KeyboardInterrupt):
        if INTERRUPTS.count > 1:
            log.warning("stopped at once; finished answers are kept")
        return INTERRUPTED
    # a fault in our code: the run is still finalized
    log.error("stopped by an unexpected error", exc_info=error)
    return 1
