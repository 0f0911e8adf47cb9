"""``selection=judge``: the run's model chooses among the patches that apply.

One request for each instance shows the issue and the patches with different results. The answer is in the run's
records under the digest of its prompt, so other candidates need another request, and the same ones none.

Source: large language models as judges (Zheng et al. 2023, arXiv:2306.05685), which also describes their biases.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from swe_infer.errors import SweInferError
from swe_infer.files import open_regular
from swe_infer.patches.reasoning import without_reasoning
from swe_infer.run_directory import layout
from swe_infer.run_directory.predictions import Candidate, Choice
from swe_infer.run_directory.records import purpose_of, records_of
from swe_infer.selection.base import FilesOfRows, InstanceSelector, LoadFiles, SelectionRule
from swe_infer.selection.majority import Majority
from swe_infer.selection.results import PatchResults
from swe_infer.text import fenced_parts
from swe_infer.types import Prompt

_MOST_PATCHES = 16
"""Patches in one request; those with the most votes are shown."""
_MOST_CHARACTERS = 120_000
"""Of all patches in a request."""
_LONGEST_PATCH = 20_000
_LONGEST_ISSUE = 40_000

_NUMBER = re.compile(r"\W*(?:(?:the )?(?:best )?(?:patch|answer|number)(?: is)?\W{0,3})*(\d{1,3})\W*", re.IGNORECASE)
_NAMED = re.compile(r"\bpatch\W{0,3}(\d{1,3})\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The patch that a model chooses among those that apply and have different results.

    :class:`JudgeSelector` applies this rule with the model's answers. Without them it is :class:`.majority.Majority`.
    """

    name: ClassVar[str] = "judge"

    def choose(self, candidates: Sequence[Candidate], files: LoadFiles) -> Choice | None:
        return _by_majority(candidates, files, "no model was requested to judge")


def selector_of(rule: SelectionRule, rows: FilesOfRows, directory: Path) -> InstanceSelector:
    """The selector of a rule for the run in ``directory``."""
    if isinstance(rule, Judge):
        return JudgeSelector(rule, rows, JudgeAnswers(directory))
    return InstanceSelector(rule, rows)


class JudgeAnswers:
    """The answers of the model in the records of a run, which may be running."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / layout.RECORDS
        self._file = 0
        self._offset = 0
        self._answers: dict[tuple[str, str], str] = {}

    def find(self, instance_id: str, prompt: Prompt) -> str | None:
        """The answer to a prompt; None if it is not recorded. Reads the records that are new since the last call.

        Raises:
            OSError: the records cannot be read.
        """
        self._read_new()
        return self._answers.get((instance_id, prompt.sha256))

    def _read_new(self) -> None:
        try:
            file = os.fdopen(open_regular(self._path), "rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:  # the file was replaced
                self._file, self._offset, self._answers = status.st_ino, 0, {}
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                for record in records_of(line) if b'"judge"' in line else ():
                    if purpose_of(record) == Judge.name and record["status"] == "completed":
                        key = (record["instance_id"], str(record.get("prompt_sha256")))
                        self._answers[key] = record.get("full_output") or ""


class JudgeSelector(InstanceSelector):
    """Selects by the answers of the model, and by :class:`.majority.Majority` where it has named no patch.

    Args:
        rows: gives issues and files.
    """

    def __init__(self, rule: Judge, rows: FilesOfRows, answers: JudgeAnswers) -> None:
        super().__init__(rule, rows)
        self._rows = rows
        self._answers = answers

    def prompt(self, instance_id: str, candidates: Sequence[Candidate]) -> Prompt | None:
        """The prompt of the request; None if fewer than two different results apply.

        Raises:
            SweInferError, OSError: the issue is not available.
        """
        shown = self._shown(instance_id, candidates)
        return None if len(shown) < 2 else self._prompt(instance_id, [candidates[index] for index in shown])

    def _choose(self, instance_id: str, candidates: Sequence[Candidate]) -> Choice | None:
        shown = self._shown(instance_id, candidates)

        def files() -> Mapping[str, str]:
            return self._rows(instance_id)

        if not shown:
            choice = Majority().choose(candidates, files)
            return choice and replace(choice, reason=f"no patch applies, so none is judged; {choice.reason}")
        if len(shown) == 1:
            return Choice(shown[0], f"{candidates[shown[0]]}: all patches that apply have its result")
        try:
            prompt = self._prompt(instance_id, [candidates[index] for index in shown])
            answer = self._answers.find(instance_id, prompt)
        except (SweInferError, OSError) as error:
            return _by_majority(candidates, files, f"the judge's answer cannot be read ({error})")
        if answer is None:
            return _by_majority(candidates, files, "the judge has not answered")
        number = named_patch(answer, len(shown))
        if number is None:
            return _by_majority(candidates, files, "the judge's answer names none of the patches")
        index = shown[number - 1]
        return Choice(index, f"{candidates[index]}: the judge chose it among {len(shown)} different patches")

    def _shown(self, instance_id: str, candidates: Sequence[Candidate]) -> list[int]:
        """The first candidate of each result, in order; of very many results, those with the most votes."""
        applying = [index for index, one in enumerate(candidates) if one.applies]
        if len({candidates[index].patch for index in applying}) < 2:
            return applying[:1]
        try:
            results = PatchResults(self._rows(instance_id))
        except (SweInferError, OSError):
            results = PatchResults({})
        keys = {index: results.key(candidates[index].patch) for index in applying}
        votes = Counter(keys.values())
        first = {key: index for index, key in reversed(keys.items())}
        return sorted(sorted(first.values(), key=lambda index: (-votes[keys[index]], index))[:_MOST_PATCHES])

    def _prompt(self, instance_id: str, patches: Sequence[Candidate]) -> Prompt:
        longest = min(_LONGEST_PATCH, _MOST_CHARACTERS // len(patches))
        parts = [
            f'<patch number="{number}">\n{_cut(one.patch, longest)}\n</patch>'
            for number, one in enumerate(patches, 1)
        ]
        text = (
            f"You will be given an issue of a software repository and {len(patches)} patches that were proposed to "
            "fix it. Each of them applies. Choose the patch that is most likely to fix the issue completely without "
            "breaking anything else.\n\n"
            f"<issue>\n{_cut(self._rows.issue(instance_id), _LONGEST_ISSUE)}\n</issue>\n\n"
            + "\n\n".join(parts)
            + "\n\n"
            "End your answer with the number of the patch alone, between two lines with three backticks:\n\n"
            "```\nnumber\n```\n"
        )
        return Prompt(None, text.encode(errors="replace").decode())


def named_patch(answer: str, count: int) -> int | None:
    """The number of the patch that an answer names; None if it names none of them.

    The last fence that contains only a number counts; without one the last line that does; without one the only
    patch that the text names.

    Args:
        count: patches are numbered from 1 to this number.
    """
    lines = without_reasoning(answer).text.splitlines()
    for part in (*fenced_parts(lines), lines):
        for line in reversed(part):
            if (match := _NUMBER.fullmatch(line[:200])) is not None and 1 <= int(match[1]) <= count:
                return int(match[1])
    named = {int(number) for line in lines for number in _NAMED.findall(line[:2000])}
    return named.pop() if len(named) == 1 and 1 <= min(named) <= count else None


def _by_majority(candidates: Sequence[Candidate], files: LoadFiles, why: str) -> Choice | None:
    choice = Majority().choose(candidates, files)
    return choice and replace(choice, reason=f"by majority, as {why}; {choice.reason}", rule=Majority.name)


def _cut(text: str, most: int) -> str:
    text = text.strip("\n")
    return text if len(text) <= most else f"{text[:most]}\n(cut: {len(text) - most:,} more characters)"
