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
        repository = required(commit)
        paths, creates_file = edited_files(row, repository)
        return self._show(repository, paths, count_tokens, creates_file=creates_file)


def edited_files(row: Row, commit: Commit) -> tuple[list[str], bool]:
    """The files that the gold patch edits, in the patch's order, and whether it creates one.

    Raises:
        DataError: the row has no readable gold patch, or one for another commit.
    """
    changes = gold_changes(row)
    paths = [change.old_path for change in changes if change.old_path is not None]
    tree = commit.entries(paths)
    absent = next((path for path in paths if path not in tree), None)
    if absent is not None:
        raise DataError(f"the gold patch edits {absent}, which is not in the repository at the base commit")
    return paths, any(change.old_path is None for change in changes)
