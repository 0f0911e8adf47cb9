"""``selection=shortest``: the smallest patch that applies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from swe_infer.patches.diff import PatchError, parse_as_git
from swe_infer.run_directory.predictions import Candidate, Choice
from swe_infer.selection.base import LoadFiles


@dataclass(frozen=True, kw_only=True)
class Shortest:
    """Of the patches that apply, the one with the fewest added and removed lines; of several, the first. Without one,
    the first answer."""

    name: ClassVar[str] = "shortest"

    def choose(self, candidates: Sequence[Candidate], files: LoadFiles) -> Choice | None:
        sizes = [(changed_lines(one.patch), index) for index, one in enumerate(candidates) if one.applies]
        if not sizes:
            return Choice(0, f"no patch applies; {candidates[0]} is the first answer")
        lines, index = min(sizes)
        return Choice(index, f"{candidates[index]} changes the fewest lines of {len(sizes)} that apply: {lines}")


def changed_lines(patch: str) -> int:
    """The added and removed lines of a patch."""
    try:
        return sum(line.tag != " " for file in parse_as_git(patch) for hunk in file.hunks for line in hunk.lines)
    except PatchError:  # of another version of the extractor
        return sum(line.startswith(("+", "-")) for line in patch.split("\n"))
