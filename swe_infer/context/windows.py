"""The lines of a file that a prompt shows around the places that a context names (``prompt.lines``)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from swe_infer.context.words import is_term, split_words

Range = tuple[int, int]
"""The first and last of some lines, which are numbered from 1."""

Windows = Callable[[str, str], Sequence[Range]]
"""The lines to show of a file by its path and text, sorted and apart from each other; empty: the whole file."""

_MOST_PLACES = 3
"""Of a file, if they are found by the words of the issue."""
_LEAST_SHARE = 0.5
"""A further place must score at least this share of the best one."""
_PLACE = re.compile(r"(?P<path>.+?):(?P<first>\d{1,9})(?:-(?P<last>\d{1,9}))?")


def path_and_place(text: str) -> tuple[str, Range | None]:
    """Splits ``pkg/a.py:10-20`` or ``pkg/a.py:10``. The place is None if the text names none."""
    match = _PLACE.fullmatch(text)
    if match is None:
        return text, None
    first, last = sorted((int(match["first"]), int(match["last"] or match["first"])))
    return match["path"], (first, last)


def windows_at(places: Iterable[Range], text: str, lines: int) -> list[Range]:
    """The lines from ``lines`` before to ``lines`` after each place. Places outside the file are left out.

    Returns:
        Sorted and apart from each other, with at least two hidden lines in between; empty if they are the whole file.
    """
    total = _total(text)
    merged: list[Range] = []
    for first, last in sorted(places):
        if not 1 <= first <= total:
            continue
        first, last = max(1, first - lines), min(total, last + lines)
        first, last = 1 if first <= 2 else first, total if last >= total - 1 else last
        if merged and first <= merged[-1][1] + 2:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return [] if merged == [(1, total)] else merged


def matching_places(text: str, weights: Mapping[str, float], lines: int) -> list[Range]:
    """The lines that match the issue best: with the rarest of its terms.

    Args:
        weights: of the issue's words.
        lines: shown before and after each place, so that places are not found twice.
    """
    words = [weights.keys() & split_words(line) for line in text.split("\n")]
    containing = Counter(word for found in words for word in found)
    scores = [sum(weights[word] / containing[word] for word in sorted(found)) for found in words]
    best = max(scores)
    places: list[Range] = []
    for index in sorted(range(len(scores)), key=lambda index: (-scores[index], index)):
        number = index + 1
        if len(places) == _MOST_PLACES or scores[index] <= 0 or scores[index] < _LEAST_SHARE * best:
            break
        if all(abs(number - first) > lines for first, _ in places):
            places.append((number, number))
    return places


def windows_of_words(
    weights: Mapping[str, float], lines: int, places: Mapping[str, Sequence[Range]] = MappingProxyType({})
) -> Windows:
    """The lines around the places of a file that match the issue best, or around those that are named.

    Args:
        weights: of the issue's words.
        places: the named ones, by path.
    """

    def windows(path: str, text: str) -> Sequence[Range]:
        return windows_at(places.get(path) or matching_places(text, weights, lines), text, lines)

    return windows


def equal_weights(issue: object) -> dict[str, float]:
    """A weight of 1 for each word of an issue."""
    return dict.fromkeys(filter(is_term, split_words(issue)), 1.0) if isinstance(issue, str) else {}


def excerpt(text: str, windows: Sequence[Range], *, numbers: bool) -> str:
    """A file's lines in ``windows``, with a line in place of each gap that says which lines are not shown.

    Args:
        numbers: write each line's number in the file before it.
    """
    lines = text.split("\n")
    shown: list[str] = []
    before = 0
    for first, last in windows:
        if first > before + 1:
            shown.append(_gap(before + 1, first - 1))
        for number in range(first, last + 1):
            shown.append(f"{number} {lines[number - 1]}" if numbers else lines[number - 1])
        before = last
    if before < len(lines):
        shown.append(_gap(before + 1, len(lines)))
    return "\n".join(shown)


def _gap(first: int, last: int) -> str:
    return f"[lines {first}-{last} are not shown]"


def _total(text: str) -> int:
    return text.count("\n") + 1
