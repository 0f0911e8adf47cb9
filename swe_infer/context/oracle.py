"""``context=oracle``: the files that the gold patch edits, as SWE-bench's oracle setting shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swe_infer.context.base import Commit, CountTokens, Row, Shown
from swe_infer.context.gold import COLUMN, gold_changes
from swe_infer.context.repository import RepositoryContext, required
from swe_infer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class OracleContext(RepositoryContext):
    """The files that the gold patch changes, removes, renames or copies, in the patch's order."""

    @property
    def rules(self) -> str:
        return "oracle-1"

    @property
    def required_columns(self) -> Mapping[str, str]:
        return {COLUMN: "context=oracle"}

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        changes = gold_changes(row)
        paths = [change.old_path for change in changes if change.old_path is not None]
        repository = required(commit)
        tree = repository.entries(paths)
        absent = next((path for path in paths if path not in tree), None)
        if absent is not None:
            raise DataError(f"the gold patch edits {absent}, which is not in the repository at the base commit")
        created = any(change.old_path is None for change in changes)
        return self._show(repository, paths, count_tokens, creates_file=created)
