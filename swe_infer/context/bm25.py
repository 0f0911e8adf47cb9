"""``context=bm25``: the files that match the issue best by BM25, without an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from swe_infer.context.base import Commit, CountTokens, Row, Shown
from swe_infer.context.reading import as_shown
from swe_infer.context.repository import Order, RepositoryContext, required
from swe_infer.context.term_cache import TermCache
from swe_infer.context.terms import Ranking, TermCounts, count_terms, hash_of, rank
from swe_infer.context.tree import is_code, is_test
from swe_infer.context.windows import windows_of_words
from swe_infer.context.words import split_words
from swe_infer.errors import ConfigError, DataError, ObjectTooLarge
from swe_infer.options import Option

ISSUE = "problem_statement"

_MOST_FILES = 1000
_READ_AT_ONCE = 500
"""Files, which are in memory together."""
_SUFFIX = re.compile(r"(?:\*?\.)?([\w.+-]+)")
_ANY = "*"


@dataclass(frozen=True, kw_only=True)
class SearchedFiles(RepositoryContext):
    """The options of contexts that look for files in the whole repository."""

    file_types: Annotated[
        tuple[str, ...] | None,
        Option(
            "Suffixes of the files, such as [.py]; null: source code of every language; ['*']: any file.", "answer"
        ),
    ] = None
    tests: Annotated[bool, Option("Include test files.", "answer")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file_types is not None and not self.file_types:
            raise ConfigError("context.file_types is an empty list: name suffixes such as .py, or null")
        for name in self.file_types or ():
            if name != _ANY and not _SUFFIX.fullmatch(name):
                raise ConfigError(f"context.file_types: {name!r} is not a suffix; give one such as .py")

    def _searched(self, commit: Commit) -> list[str]:
        """The paths of the files to look at, sorted."""
        has_type = self._has_type
        return sorted(
            path
            for path, entry in commit.paths().items()
            if entry.type in ("regular", "executable") and has_type(path) and (self.tests or not is_test(path))
        )

    @cached_property
    def _has_type(self) -> Callable[[str], bool]:
        if self.file_types is None:
            return is_code
        if _ANY in self.file_types:
            return lambda path: True
        suffixes = tuple(_SUFFIX.sub(r".\1", name).lower() for name in self.file_types)
        return lambda path: path.lower().endswith(suffixes)


@dataclass(frozen=True, kw_only=True)
class Bm25Context(SearchedFiles):
    """The ``k`` files that match the issue best. A document is a file's path and content, as in SWE-bench.

    The terms of files are cached by the id of their content, so each commit costs the files that are new in it.
    """

    k: Annotated[int, Option("Maximum number of files that are retrieved.", "answer")] = 20
    max_tokens: int | None = 27000
    order: Annotated[
        Order,
        Option("Of the files in the prompt: path, as in SWE-bench; rank: best first; reversed: best last.", "answer"),
    ] = "path"
    k1: Annotated[float, Option("BM25: how slowly repeated terms saturate; Pyserini's default.", "answer")] = 0.9
    b: Annotated[float, Option("BM25: how much long files are penalized, 0 to 1; Pyserini's default.", "answer")] = (
        0.4
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= _MOST_FILES:
            raise ConfigError(f"context.k={self.k}: must be between 1 and {_MOST_FILES}")
        if not 0 <= self.k1 <= 1000:
            raise ConfigError(f"context.k1={self.k1}: must be between 0 and 1000")
        if not 0 <= self.b <= 1:
            raise ConfigError(f"context.b={self.b}: must be between 0 and 1")

    @property
    def rules(self) -> str:
        return "bm25-1"

    @property
    def required_columns(self) -> Mapping[str, str]:
        return {ISSUE: f"context={self.rules.partition('-')[0]}"}

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        return self._choose(row, required(commit), count_tokens, None)

    @property
    def names_lines(self) -> bool:
        return True

    def choose_lines(self, row: Row, commit: Commit | None, count_tokens: CountTokens, lines: int) -> Shown:
        return self._choose(row, required(commit), count_tokens, lines)

    def _choose(self, row: Row, commit: Commit, count_tokens: CountTokens, lines: int | None) -> Shown:
        return self._show_ranked(row, (), False, commit, count_tokens, lines)

    def _show_ranked(
        self,
        row: Row,
        first: Sequence[str],
        creates_file: bool,
        commit: Commit,
        count_tokens: CountTokens,
        lines: int | None,
    ) -> Shown:
        """Shows the files in ``first``, then the best other ones."""
        ranking = self.rank(row, commit)
        windows = None if lines is None else windows_of_words(word_weights(row[ISSUE], ranking), lines)
        retrieved = [path for path in ranking.scores if path not in first][: self.k]
        return self._show(
            commit,
            [*first, *retrieved],
            count_tokens,
            creates_file=creates_file,
            order=self.order,
            counts_all=True,
            windows=windows,
        )

    def rank(self, row: Row, commit: Commit) -> Ranking:
        """Ranks the files of a commit for a row's issue.

        Raises:
            DataError: the row has no issue.
            RepositoryError: the repository cannot be read.
        """
        issue = row.get(ISSUE)
        if not isinstance(issue, str) or not issue.strip():
            raise DataError(f"the row's {ISSUE} is missing or blank")
        return rank(self._counts(commit), count_terms(issue), k1=self.k1, b=self.b)

    @cached_property
    def _cache(self) -> TermCache:
        return TermCache()

    def _counts(self, commit: Commit) -> dict[str, TermCounts]:
        """The terms of the files to look at. Binary and huge files are left out."""
        paths = self._searched(commit)
        ids = {path: oid for path, entry in commit.entries(paths).items() if (oid := entry.oid) is not None}
        by_id = self._cache.get(dict.fromkeys(ids.values()))
        path_of = {oid: path for path, oid in ids.items() if oid not in by_id}
        unknown = [*path_of.values(), *(path for path in paths if path not in ids)]
        by_path: dict[str, TermCounts | None] = {}
        for at in range(0, len(unknown), _READ_AT_ONCE):
            counted = _counted(commit, unknown[at : at + _READ_AT_ONCE])
            by_path |= counted
            new = {ids[path]: counts for path, counts in counted.items() if path in ids}
            self._cache.put(new)
            by_id |= new
        found = {path: by_id[ids[path]] if path in ids else by_path[path] for path in paths}
        return {path: counts for path, counts in found.items() if counts is not None}


def word_weights(issue: str, ranking: Ranking) -> dict[str, float]:
    """The weights of an issue's words that occur in a file."""
    hashes = {word: hash_of(word) for word in split_words(issue)}
    return {word: ranking.weights[term] for word, term in hashes.items() if term in ranking.weights}


def _counted(commit: Commit, paths: Sequence[str]) -> dict[str, TermCounts | None]:
    """The terms of files by path; None for a file that is binary, or too large to read."""
    try:
        contents: Mapping[str, bytes] = commit.read(paths)
    except ObjectTooLarge:
        if len(paths) == 1:
            return {paths[0]: None}
        return {path: counts for one in paths for path, counts in _counted(commit, [one]).items()}
    texts = {path: as_shown(contents[path])[0] for path in paths}
    return {path: None if text is None else count_terms(text) for path, text in texts.items()}
