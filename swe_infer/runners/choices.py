"""Requests for the files that prompts show (:class:`swe_infer.data.choices.FileChoices`), one for each instance.

Their answers are in the run's records, so a run that was killed pays for none of them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from swe_infer.data.choices import FileChoices, load_file_choices
from swe_infer.data.images import NOT_ACCEPTED
from swe_infer.data.select import LengthFilter, Selection
from swe_infer.errors import INFRASTRUCTURE_ERRORS
from swe_infer.run_directory.records import Record, purpose_of
from swe_infer.run_directory.store import reusable_auxiliary
from swe_infer.run_directory.totals import Totals
from swe_infer.types import Completion, Decoding, Failure, Outcome, Prompt, Request

NOT_AVAILABLE = "RepositoryNotAvailable"
"""A reason to skip that every command tries again, see :mod:`swe_infer.prompts.rows`."""
RECHECKED_SKIPS = (NOT_AVAILABLE, NOT_ACCEPTED)
"""Reasons to skip that every command checks again."""
LENGTH_SKIPS = ("PromptTooShort", "PromptTooLong")
"""Reasons to skip that depend on ``dataset.min_tokens`` and ``max_tokens``, which a later command may change."""
FAILED = "ContextRequestFailed"
"""The error of samples whose files could not be chosen. Failures of infrastructure keep their own name."""


def lacks_answer(totals: Totals, key: tuple[str, int], *, recheck: bool) -> bool:
    """Whether a sample without an answer is requested, or checked for a reason to skip it.

    Args:
        recheck: its prompt must be checked against other bounds on its length.
    """
    if totals.status(key) not in ("completed", "skipped"):
        return True
    reason = totals.skip_reason(key)
    return reason in RECHECKED_SKIPS or (recheck and reason in LENGTH_SKIPS)


class FileChoiceRequests:
    """The requests of one run.

    Args:
        sources: directories of runs with the same identity, whose choices are reused.
    """

    def __init__(
        self, choices: FileChoices, selection: Selection, decoding: Decoding, sources: Sequence[Path] = ()
    ) -> None:
        self._choices = choices
        self._selection = selection
        self._decoding = decoding
        self._sources = sources
        self._failures: dict[str, Failure] = {}

    @classmethod
    def of(
        cls, selection: Selection, decoding: Decoding, directories: Sequence[Path], sources: Sequence[Path] = ()
    ) -> FileChoiceRequests | None:
        """The requests for a selection, None if its prompts need none. Sets the choices in ``directories``."""
        choices = selection.rows.file_choices
        if choices is None:
            return None
        load_file_choices(choices, selection.rows.ids, directories)
        return cls(choices, selection, decoding, sources)

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of the files of an instance."""
        return self._choices.max_tokens

    def waiting(self, totals: Totals, *, recheck: bool) -> Iterator[int]:
        """The rows that need files for a sample, in the order of the selection."""
        for index in self._selection.requested:
            keys = ((self._selection.rows.ids[index], sample) for sample in range(self._decoding.n))
            if not self._choices.is_chosen(index) and any(lacks_answer(totals, key, recheck=recheck) for key in keys):
                yield index

    def reuse(self, indices: Sequence[int]) -> Iterator[Record]:
        """The records of choices for these rows that other runs have paid for. They are set after their record."""
        by_id = {self._selection.rows.ids[index]: index for index in indices}
        if not by_id or not self._sources:
            return
        wanted = reusable_auxiliary(self._sources, lambda r: purpose_of(r) == "context" and r["instance_id"] in by_id)
        for record in wanted.values():
            index = by_id[record["instance_id"]]
            if not self._choices.is_chosen(index):
                yield record
                self._choices.choose(index, record.get("full_output") or "")

    def request(self, index: int) -> Request | None:
        """The request for the files of a row; None if the row cannot be shown."""
        prompt = self._choices.request(index, _most_tokens(self._selection.lengths))
        if not isinstance(prompt, Prompt):
            return None
        return Request(self._selection.rows.ids[index], 0, prompt, self._decoding, {}, purpose="context")

    def use(self, index: int, outcome: Outcome) -> None:
        """Set the files of a row. A request that was not sent, as it is too long, chooses none."""
        if isinstance(outcome, Failure):
            self._failures[self._selection.rows.ids[index]] = outcome
        else:
            self._choices.choose(index, outcome.text if isinstance(outcome, Completion) else "")

    def is_waiting(self, index: int) -> bool:
        """Whether the files of a row are not chosen."""
        return not self._choices.is_chosen(index)

    def assume_none(self, index: int) -> None:
        """Choose no files, for an estimate."""
        self._choices.choose(index, "")

    def failure(self, index: int) -> Failure | None:
        """The error of the samples of a row whose request failed; None without one. The request has its cost."""
        failed = self._failures.get(self._selection.rows.ids[index])
        if failed is None or not self.is_waiting(index):
            return None
        kind = failed.error_type if failed.error_type in INFRASTRUCTURE_ERRORS else FAILED
        name = "" if kind == failed.error_type else f"{failed.error_type}: "
        return Failure(kind, f"the request for the files to show failed: {name}{failed.message}", attempts=0)


def _most_tokens(lengths: LengthFilter) -> int | None:
    window = lengths.context_window
    return None if window is None else window - lengths.reserved_output_tokens
