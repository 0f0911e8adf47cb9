"""``context=given``: the row brings its finished prompt."""

from __future__ import annotations

from dataclasses import dataclass

from swe_infer.context.base import Commit, Context, CountTokens, Row, Shown


@dataclass(frozen=True, kw_only=True)
class GivenContext(Context):
    """The row's own text shows what it shows."""

    @property
    def rules(self) -> str:
        return "given"

    @property
    def gives_text(self) -> bool:
        return True

    @property
    def needs_repository(self) -> bool:
        return False

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        return Shown()
