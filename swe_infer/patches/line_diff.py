"""A difference of two lists of lines, in time linear in them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from swe_infer.patches.diff import Line

__all__ = ["line_diff"]

_LARGEST_EXACT = 10_000
"""Lines before times lines after, up to which a stretch is compared exactly; larger ones count as replaced."""


def line_diff(old: Sequence[str], new: Sequence[str]) -> list[Line]:
    """What turns ``old`` into ``new``: kept, removed and added lines, in order.

    Patience diff: lines that stand once on either side are anchors, and what lies between them is compared exactly
    where it is small. The result is right for any input, and short where the two are alike.
    """
    lines: list[Line] = []
    at_old = at_new = 0
    for anchor_old, anchor_new in [*_anchors(old, new), (len(old), len(new))]:
        lines.extend(_stretch(old[at_old:anchor_old], new[at_new:anchor_new]))
        if anchor_old < len(old):
            lines.append(Line(" ", old[anchor_old]))
        at_old, at_new = anchor_old + 1, anchor_new + 1
    return lines


def _anchors(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """The longest run of common unique lines that stand in the same order on both sides."""
    old_counts, new_counts = Counter(old), Counter(new)
    places = {line: at for at, line in enumerate(new) if new_counts[line] == 1}
    pairs = [(at, places[line]) for at, line in enumerate(old) if old_counts[line] == 1 and line in places]
    tails: list[int] = []
    tail_pairs: list[int] = []
    previous: list[int] = []
    for number, (_, at_new) in enumerate(pairs):
        length = bisect_left(tails, at_new)
        previous.append(tail_pairs[length - 1] if length else -1)
        tails[length : length + 1] = [at_new]
        tail_pairs[length : length + 1] = [number]
    chain: list[tuple[int, int]] = []
    number = tail_pairs[-1] if tail_pairs else -1
    while number >= 0:
        chain.append(pairs[number])
        number = previous[number]
    return chain[::-1]


def _stretch(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
    start = 0
    while start < len(old) and start < len(new) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    yield from (Line(" ", text) for text in old[:start])
    yield from _middle(old[start : len(old) - end], new[start : len(new) - end])
    yield from (Line(" ", text) for text in old[len(old) - end :])


def _middle(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
    exact = len(old) * len(new) <= _LARGEST_EXACT
    opcodes = (
        SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if exact
        else [("replace", 0, len(old), 0, len(new))]
    )
    for kind, old_from, old_to, new_from, new_to in opcodes:
        if kind == "equal":
            yield from (Line(" ", text) for text in old[old_from:old_to])
            continue
        yield from (Line("-", text) for text in old[old_from:old_to])
        yield from (Line("+", text) for text in new[new_from:new_to])
