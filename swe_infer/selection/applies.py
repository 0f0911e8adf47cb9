"""``selection=applies``: the first patch that applies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from swe_infer.run_directory.predictions import Candidate, Choice
from swe_infer.selection.base import LoadFiles


@dataclass(frozen=True, kw_only=True)
class Applies:
    """The first answer whose patch applies, repaired or not; without one, the first answer."""

    name: ClassVar[str] = "applies"

    def choose(self, candidates: Sequence[Candidate], files: LoadFiles) -> Choice | None:
        for index, candidate in enumerate(candidates):
            if candidate.applies:
                return Choice(index, f"{candidate} is the first whose patch applies")
        return Choice(0, f"no patch applies; {candidates[0]} is the first answer")
