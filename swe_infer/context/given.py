"""``context=given``: the row contains its finished prompt."""

from __future__ import annotations

from dataclasses import dataclass

from swe_infer.context.base import Commit, Context, CountTokens, Row, Shown


@dataclass(frozen=True, kw_only=True)
class GivenContext(Context):
    """Chooses no files: the row's own text already contains them."""

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
