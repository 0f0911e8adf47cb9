"""``selection=first``: sample 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from swe_infer.run_directory.predictions import Candidate, Choice, first_sample
from swe_infer.selection.base import LoadFiles


@dataclass(frozen=True, kw_only=True)
class First:
    """Sample 0, of the first run that has it. An instance without a sample 0 is not submitted."""

    name: ClassVar[str] = "first"

    def choose(self, candidates: Sequence[Candidate], files: LoadFiles) -> Choice | None:
        return first_sample(candidates)
