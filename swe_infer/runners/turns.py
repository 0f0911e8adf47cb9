"""Finds the answers in a run directory that need a further turn, and continues their conversations.

Everything is derived from the records, so a run that was killed in any turn goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swe_infer.data.select import Selection
from swe_infer.errors import DataError
from swe_infer.feedback.base import Feedback
from swe_infer.feedback.message import without_lone_surrogates
from swe_infer.run_directory import layout
from swe_infer.run_directory.records import Key, Record, key_of, located_records, record_at, turn_of
from swe_infer.run_directory.store import conversation_digest, reusable_turns
from swe_infer.run_directory.totals import Totals
from swe_infer.types import Decoding, EditFormat, Prompt, Request, Skip, Turn

log = logging.getLogger(__name__)

NO_ANSWER = "(no answer)"
"""Replaces an empty answer in a conversation: Anthropic refuses empty messages."""


@dataclass(frozen=True, slots=True)
class PendingTurn:
    """A further turn that has no record yet.

    Args:
        index: the row of the instance.
        earlier: the completed records of the turns before, the first answer first.
        message: the message to send.
        files, edit_format: as in :class:`swe_infer.types.Request`.
    """

    index: int
    key: Key
    earlier: Sequence[Record]
    message: str
    files: Mapping[str, str]
    edit_format: EditFormat | None

    def request(self, prompt: Prompt, decoding: Decoding) -> Request:
        """The request, where ``prompt`` is that of the first answer."""
        sent = (without_lone_surrogates(record.get("feedback") or "") for record in self.earlier[1:])
        replies = [*sent, self.message]
        turns = tuple(
            Turn(_answer(prompt, record), reply) for record, reply in zip(self.earlier, replies, strict=True)
        )
        return Request(*self.key, replace(prompt, turns=turns), decoding, self.files, self.edit_format)

    def is_about(self, prompt: Prompt) -> bool:
        """Whether the recorded answer is one to this prompt. The dataset may have changed since."""
        return self.earlier[0].get("prompt_sha256") in (None, prompt.sha256)


def _answer(prompt: Prompt, record: Record) -> str:
    answer = without_lone_surrogates(prompt.with_prefill(record.get("full_output") or ""))
    return answer if answer.strip() else NO_ANSWER


class FurtherTurns:
    """The further turns of one run.

    Args:
        directory: the run directory.
        samples: of each instance.
        edit_format: the form of answer that prompts request if rows do not state it.
        sources: directories of runs with the same identity, whose turns are reused.
    """

    def __init__(
        self,
        feedback: Feedback,
        selection: Selection,
        directory: Path,
        samples: int,
        edit_format: EditFormat | None,
        sources: Sequence[Path],
    ) -> None:
        self._feedback = feedback
        self._selection = selection
        self._directory = directory
        self._samples = samples
        self._edit_format = edit_format
        self._sources = sources
        self._reusable: dict[tuple[Key, str], Record] | None = None
        self._lengths = replace(selection.lengths, min_tokens=None, max_tokens=None)

    @property
    def most(self) -> int:
        """Further turns of each sample, at most."""
        return self._feedback.turns

    def pending(self, turn: int, totals: Totals) -> Iterator[PendingTurn]:
        """The samples whose last answer is of the turn before ``turn`` and needs another one, in the order of the
        selection.

        Args:
            totals: of the records so far.
        """
        rows = self._selection.rows
        located = self._located(turn, totals)
        for index in self._selection.requested:
            offsets = located.pop(rows.ids[index], {})
            inputs: tuple[Mapping[str, str], EditFormat | None] | None = None
            for sample in sorted(offsets):
                key = (rows.ids[index], sample)
                earlier = self._read(key, offsets[sample])
                if earlier is None:
                    continue
                try:
                    if inputs is None:
                        files, edit_format = rows.inputs_of_check(index)
                        inputs = files, edit_format or self._edit_format
                except DataError as error:
                    log.warning("%s: no further turn: %s", key[0], error)
                    break
                message = self._message(earlier[-1], *inputs)
                if message is not None:
                    yield PendingTurn(index, key, earlier, message, *inputs)

    def reusable(self, pending: PendingTurn) -> Record | None:
        """The record of the same turn that another run has paid for, or None."""
        if not self._sources:
            return None
        if self._reusable is None:
            instances = {self._selection.rows.ids[index] for index in self._selection.requested}
            self._reusable = reusable_turns(self._sources, lambda key: key[0] in instances)
        return self._reusable.pop((pending.key, conversation_digest(pending.earlier, pending.message)), None)

    def overflow(self, prompt: Prompt) -> Skip | None:
        """Why a conversation does not fit into the context window, or None."""
        return self._lengths.check(prompt)

    def _message(self, record: Record, files: Mapping[str, str], edit_format: EditFormat | None) -> str | None:
        try:
            return self._feedback.message(record, files, edit_format)
        except Exception:  # a fault in our code must not end the run
            log.exception("%s: no further turn, the message could not be written", record["instance_id"])
            return None

    def _located(self, turn: int, totals: Totals) -> dict[str, dict[int, list[int]]]:
        """By instance and sample, the offsets of the records of all turns before ``turn``."""
        candidates = {key: [-1] * turn for key, _ in totals.statuses() if self._is_candidate(key, turn, totals)}
        if not candidates:
            return {}
        for offset, record in located_records(self._directory / layout.RECORDS):
            key, number = key_of(record), turn_of(record)
            if key in candidates and record["status"] == "completed" and number < turn:
                candidates[key][number] = offset
        located: dict[str, dict[int, list[int]]] = {}
        for (instance_id, sample), offsets in candidates.items():
            if -1 not in offsets:
                located.setdefault(instance_id, {})[sample] = offsets
        return located

    def _is_candidate(self, key: Key, turn: int, totals: Totals) -> bool:
        return (
            totals.status(key) == "completed"
            and totals.turn(key) == turn - 1
            and key[1] < self._samples
            and totals.counts(key[0])
            and totals.unanswered_turn(key) != "skipped"
            and self._feedback.may_need_turn(totals.patch_status(key))
        )

    def _read(self, key: Key, offsets: Sequence[int]) -> list[Record] | None:
        path = self._directory / layout.RECORDS
        found = [record_at(path, offset, key, turn) for turn, offset in enumerate(offsets)]
        records = [record for record in found if record is not None]
        return records if len(records) == len(found) else None
