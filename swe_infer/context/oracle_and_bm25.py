"""``context=oracle_and_bm25``: the files that the gold patch edits, then the files that match the issue best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swe_infer.context.base import Commit, CountTokens, Row, Shown
from swe_infer.context.bm25 import Bm25Context
from swe_infer.context.gold import COLUMN
from swe_infer.context.oracle import edited_files


@dataclass(frozen=True, kw_only=True)
class OracleAndBm25Context(Bm25Context):
    """The gold patch's files are ranked first and do not count as any of the ``k`` retrieved files."""

    @property
    def rules(self) -> str:
        return "oracle_and_bm25-1"

    @property
    def required_columns(self) -> Mapping[str, str]:
        return {COLUMN: "context=oracle_and_bm25", **super().required_columns}

    def _choose(self, row: Row, commit: Commit, count_tokens: CountTokens, lines: int | None) -> Shown:
        gold, creates_file = edited_files(row, commit)
        return self._show_ranked(row, gold, creates_file, commit, count_tokens, lines)
