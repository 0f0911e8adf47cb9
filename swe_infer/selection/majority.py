"""``selection=majority``: the result that most patches have.

Sources: self-consistency (Wang et al. 2022, arXiv:2203.11171), which takes the most frequent answer of several
samples; Agentless (Xia et al. 2024, arXiv:2407.01489, section 3.3), which votes for patches by their result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from swe_infer.errors import SweInferError
from swe_infer.run_directory.predictions import Candidate, Choice
from swe_infer.selection.base import LoadFiles
from swe_infer.selection.results import PatchResults


@dataclass(frozen=True, kw_only=True)
class Majority:
    """The first answer with the most frequent result, see :class:`.results.PatchResults`.

    Only patches that apply vote. If there is none, those that could not be checked vote; otherwise all that are not
    empty. Of results with as many votes, the one that comes first in the order of the samples wins.
    """

    name: ClassVar[str] = "majority"

    def choose(self, candidates: Sequence[Candidate], files: LoadFiles) -> Choice | None:
        voters, what = _voters(candidates)
        if not voters:
            return Choice(0, f"no answer contains a patch; {candidates[0]} is the first answer")
        contents: Mapping[str, str] = {}
        by_text = ""
        if len(voters) > 1:
            try:
                contents = files()
            except (SweInferError, OSError) as error:
                by_text = f"; compared by their text, as the files are not available ({error})"
        results = PatchResults(contents)
        keys = {index: results.key(candidates[index].patch) for index in voters}
        votes = Counter(keys.values())  # in the order of the samples
        winner, most = max(votes.items(), key=lambda item: item[1])
        index = next(index for index, key in keys.items() if key == winner)
        tied = sum(count == most for count in votes.values())
        tie = f"; the first of {tied} results with as many" if tied > 1 else ""
        reason = f"{candidates[index]}: {most} of {len(voters)} patches that {what} have this result{tie}{by_text}"
        return Choice(index, reason, most, round(most / len(voters), 6))


def _voters(candidates: Sequence[Candidate]) -> tuple[list[int], str]:
    """The indices of the candidates that vote, and what distinguishes them."""
    patches = {index: one for index, one in enumerate(candidates) if one.patch.strip()}
    if applying := [index for index, one in patches.items() if one.applies]:
        return applying, "apply"
    if unchecked := [index for index, one in patches.items() if one.patch_status == "unchecked"]:
        return unchecked, "could not be checked"
    return list(patches), "do not apply"
