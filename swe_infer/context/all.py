"""``context=all``: every file of the repository, within the limit of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from swe_infer.context.base import Commit, CountTokens, Row, Shown
from swe_infer.context.bm25 import SearchedFiles
from swe_infer.context.repository import required


@dataclass(frozen=True, kw_only=True)
class AllContext(SearchedFiles):
    """The files in the order of their paths."""

    max_tokens: int | None = 100000

    @property
    def rules(self) -> str:
        return "all-1"

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        repository = required(commit)
        return self._show(repository, self._searched(repository), count_tokens)
