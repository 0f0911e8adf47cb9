"""``context=none``: the issue alone."""

from __future__ import annotations

from dataclasses import dataclass

from swe_infer.context.base import Commit, CountTokens, Row, Shown
from swe_infer.context.repository import RepositoryContext, required


@dataclass(frozen=True, kw_only=True)
class NoContext(RepositoryContext):
    """Shows no files except, with ``context.readmes=true``, the READMEs."""

    readmes: bool = False

    @property
    def rules(self) -> str:
        return "none-1"

    @property
    def needs_repository(self) -> bool:
        return self.readmes

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        return self._show(required(commit), (), count_tokens) if self.readmes else Shown()
