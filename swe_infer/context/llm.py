"""``context=llm``: the files that the model itself chooses from the paths of the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from swe_infer.context.base import Commit, CountTokens, FileRequests, Row, Shown
from swe_infer.context.repository import RepositoryContext, required
from swe_infer.context.tree import fit_paths
from swe_infer.context.windows import Range, equal_weights, path_and_place, windows_of_words
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.patches.diff import PathIndex
from swe_infer.patches.reasoning import without_reasoning
from swe_infer.text import fenced_parts
from swe_infer.types import Prompt

_MOST_FILES = 1000
_ISSUE = "problem_statement"

_ITEM = re.compile(r"\s*(?:[-*+\u2022]|\d{1,4}[.):])\s+")
_LINES = re.compile(r"(?::\d+(?:-\d+)?)?[,;:.]?$")
"""A line number and punctuation after a path."""
_LONGEST_LINE = 1000
_PLACE = re.compile(r"(?<=[\w`'\"*])(:\d{1,9}(?:-\d{1,9})?)(?!\d)")


@dataclass(frozen=True, kw_only=True)
class LlmContext(RepositoryContext):
    """Sends one request for each instance, which shows the issue and the repository's paths, and shows the files that
    the answer names. Paths that are not in the repository are left out, because models invent some. Without any valid
    path the prompt shows the READMEs alone.
    """

    files: Annotated[int, Option("Maximum number of files that the model may choose.", "answer")] = 5
    max_tokens: Annotated[
        int,
        Option("Maximum tokens of the list of paths, and of the files, without line numbers.", "answer"),
    ] = 32000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.files <= _MOST_FILES:
            raise ConfigError(f"context.files={self.files}: must be between 1 and {_MOST_FILES}")

    @property
    def rules(self) -> str:
        return "llm-1"

    @property
    def required_columns(self) -> Mapping[str, str]:
        return {_ISSUE: "context=llm"}

    @property
    def file_requests(self) -> FileRequests:
        return self

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        return self.choose_answered("", row, commit, count_tokens)

    @property
    def names_lines(self) -> bool:
        return True

    def choose_answered(
        self, answer: str, row: Row, commit: Commit | None, count_tokens: CountTokens, lines: int | None = None
    ) -> Shown:
        """See :class:`swe_infer.context.base.FileRequests`."""
        repository = required(commit)
        named = self._named(answer, repository)
        windows = None if lines is None else windows_of_words(equal_weights(row.get(_ISSUE)), lines, named)
        return self._show(repository, named, count_tokens, windows=windows)

    def prompt(self, row: Row, commit: Commit | None, count_tokens: CountTokens, most_tokens: int | None) -> Prompt:
        """See :class:`swe_infer.context.base.FileRequests`."""
        issue = row.get(_ISSUE)
        if not isinstance(issue, str) or not issue.strip():
            raise DataError(f"the row's {_ISSUE} is missing or blank")
        limit = self.max_tokens
        if most_tokens is not None:
            limit = max(1, min(limit, most_tokens - count_tokens(self._text(issue, [], is_whole=False))))
        paths = _files(required(commit))
        lines = fit_paths(paths, limit, count_tokens)
        text = self._text(issue, lines, is_whole=len(lines) == len(paths))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError("the prompt contains an unpaired surrogate") from None
        return Prompt(None, text)

    def _text(self, issue: str, lines: Sequence[str], *, is_whole: bool) -> str:
        note = "Not all files are listed. A folder is followed by the number of its files.\n\n"
        most = f"at most {self.files} files" if self.files > 1 else "the file"
        return (
            "You will be given an issue and the paths of the files in a repository, as it is before the issue is "
            f"fixed. Choose {most} that one has to read to fix the issue.\n\n"
            f"<issue>\n{issue}\n</issue>\n\n<paths>\n" + "\n".join(lines) + "\n</paths>\n\n"
            f"{'' if is_whole else note}"
            "Answer with the paths of the files, the most important one first, one path on each line, between two "
            "lines with three backticks:\n\n```\nfolder/file\n```\n"
        )

    def _named(self, answer: str, commit: Commit) -> dict[str, list[Range]]:
        """The files that an answer names, in its order, each with the lines that it names there. The last fence with
        any counts, then the whole text."""
        lines = without_reasoning(answer).text.splitlines()
        index: PathIndex | None = None
        for part in (*fenced_parts(lines), lines):
            if index is None and any(line.strip() for line in part):
                index = PathIndex(dict.fromkeys(_files(commit), ""))
            named: dict[str, list[Range]] = {}
            for path, place in [] if index is None else [_path_in(line, index) for line in part]:
                if path is not None and (path in named or len(named) < self.files):
                    named.setdefault(path, []).extend([] if place is None else [place])
            if named:
                return named
        return {}


def _files(commit: Commit) -> list[str]:
    return [path for path, entry in commit.paths().items() if entry.type != "submodule"]


def _path_in(line: str, index: PathIndex) -> tuple[str | None, Range | None]:
    """The file that a line names, and the lines after its path; None if it names none."""
    for text in _readings(line[:_LONGEST_LINE]):
        cleaned = index.clean(text)
        if cleaned and (path := index.find(cleaned)) is not None and (path == cleaned or "/" in cleaned):
            place = _PLACE.search(line[:_LONGEST_LINE])
            return path, None if place is None else path_and_place(f"_{place[1]}")[1]
    return None, None


def _readings(line: str) -> Iterator[str]:
    """What may be the path in a line: the whole line, or a word without the mark of a list, a line number, …"""
    yield line.strip()
    without_mark = _ITEM.sub("", line, count=1).strip()
    yield without_mark
    for word in without_mark.split()[:1]:
        yield _LINES.sub("", word.strip("`'\"*"))
