"""What a run has left to request: its samples without an answer."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from swe_infer.data.select import Selection
from swe_infer.feedback.base import Feedback, NoFeedback
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Damage
from swe_infer.run_directory.store import reusable_records
from swe_infer.run_directory.totals import Totals
from swe_infer.runners.base import PendingSamples, Runner
from swe_infer.runners.choices import LENGTH_SKIPS, RECHECKED_SKIPS, FileChoiceRequests, lacks_answer
from swe_infer.runners.instances import coverage_of
from swe_infer.runners.turns import FurtherTurns
from swe_infer.types import Decoding, EditFormat, Estimate, Request, Skip

log = logging.getLogger(__name__)

FINISHED = ("completed", "skipped")
_MESSAGE_TOKENS = 4000
"""An upper bound on the tokens of a feedback message, for estimates."""


def warn_of_skips(reasons: Mapping[str, int], asked: int, example: tuple[str, Skip] | None) -> None:
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
        edit_format: see :class:`swe_infer.runners.run.Run`.
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
        feedback, edit_format: see :class:`swe_infer.runners.run.Run`.
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
        self._files = FileChoiceRequests.of(selection, decoding, [directory, *sources])
        self._assumed: set[int] = set()
        """Rows that the model has to choose the files of first."""
        self._finished: dict[str, set[int]] = {}
        for key, status in itertools.chain(totals.statuses(), ((key, "completed") for key in reusable)):
            reason = totals.skip_reason(key)
            again = key not in reusable and (reason in RECHECKED_SKIPS or (recheck and reason in LENGTH_SKIPS))
            if status in FINISHED and not again and key[1] < decoding.n:
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
        warn_of_skips(self.skips, len(self.selection.requested), self._example)
