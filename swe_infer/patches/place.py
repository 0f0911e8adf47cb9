"""Finds the one place in a file where a hunk fits, forgiving what models get wrong about white space and context.

A place is taken only if no other fits as well. Context may differ from the file; removed lines may differ
in white space alone, and then take the file's; added lines keep the model's text, and take an indentation
only where the lines around them show by how much the hunk is shifted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from swe_infer.patches.diff import Hunk, Line
from swe_infer.patches.edit import PlacedLine
from swe_infer.patches.line_index import Likeness, LineIndex
from swe_infer.patches.whitespace import settle, without_line_numbers

__all__ = ["Misfit", "Placement", "place"]

_LIKENESSES: tuple[Likeness, ...] = ("exact", "trailing", "around")
_MOST_PLACES = 64
"""More places than this for the core of a hunk, and it is not looked at closer."""

_WORDS: dict[Likeness, str | None] = {
    "exact": None,
    "trailing": "forgave white space at line ends",
    "around": "forgave indentation",
}


class Misfit(Exception):
    """A hunk has no place, or more than one; ``str(error)`` says which."""


@dataclass(slots=True)
class Placement:
    """Where the lines of a hunk stand, in the file's order, and what had to be forgiven."""

    lines: list[PlacedLine]
    repairs: list[str]


@dataclass(slots=True)
class _Core:
    """One place for a hunk's core, with the context lines that fit above and below it.

    Args:
        at: the index of the first old line of the core, or of the gap for a core without old lines.
        end: the index behind the last one.
        weight: lines that fit and are not blank, context and core together.
    """

    at: int
    end: int
    above: int
    below: int
    weight: int


def place(hunk: Hunk, index: LineIndex) -> Placement:
    """Place ``hunk`` in the file of ``index``.

    Raises:
        Misfit: no place fits, or several fit equally.
    """
    if not hunk.changes:
        raise Misfit("changes nothing")
    if not any(line.tag != "+" and line.text.strip() for line in hunk.lines):
        raise Misfit("has no old line to find its place by")
    numbered = without_line_numbers(hunk.lines)
    variants = [(hunk.lines, None)] if numbered is None else [(hunk.lines, None), (numbered, "dropped line numbers")]
    for lines, note in variants:
        placement = _whole(lines, index) or _without_outer_context(lines, index) or _in_parts(lines, index)
        if placement is not None:
            return Placement(placement.lines, [*([note] if note else []), *placement.repairs])
    raise Misfit("has old lines that stand nowhere in the file")


def _whole(lines: Sequence[Line], index: LineIndex) -> Placement | None:
    """All old lines in one run."""
    old = [line.text for line in lines if line.tag != "+"]
    for likeness in _LIKENESSES:
        places = index.places(old, likeness)
        if len(places) > 1:
            raise Misfit("fits more than one place")
        if places:
            return _settled(lines, range(places[0], places[0] + len(old)), index, likeness)
    return None


def _settled(
    lines: Sequence[Line], ats: Sequence[int | None], index: LineIndex, likeness: Likeness, *notes: str
) -> Placement | None:
    """The placement of ``lines`` whose old lines stand at ``ats``; None where white space stays unsettled."""
    texts = settle(lines, [None if at is None else index.lines[at] for at in ats])
    if texts is None:
        return None
    remaining = iter(ats)
    placed: list[PlacedLine] = []
    for line, text in zip(lines, texts, strict=True):
        if line.tag == "+":
            placed.append(PlacedLine(replace(line, text=text), None))
            continue
        at = next(remaining)
        if at is not None:
            placed.append(PlacedLine(replace(line, text=text), at))
    word = _WORDS[likeness]
    return Placement(placed, [*([word] if word else []), *notes])


def _split(lines: Sequence[Line]) -> tuple[list[Line], list[Line], list[Line]]:
    """Leading context, the core from the first change to the last, trailing context."""
    changed = [number for number, line in enumerate(lines) if line.tag != " "]
    first, last = changed[0], changed[-1] + 1
    return list(lines[:first]), list(lines[first:last]), list(lines[last:])


def _without_outer_context(lines: Sequence[Line], index: LineIndex) -> Placement | None:
    """The core with as much of its context as fits, where one place has clearly more of it than any other."""
    lead, core, trail = _split(lines)
    old = [line.text for line in core if line.tag != "+"]
    for likeness in _LIKENESSES:
        found = _cores(lead, old, trail, index, likeness)
        if not found:
            continue
        found.sort(key=lambda candidate: -candidate.weight)
        best = found[0]
        if len(found) > 1 and not _stands_out(best, found[1], index, likeness):
            raise Misfit("fits more than one place once context that the file does not have is left out")
        if not _convincing(best, lead, old, trail, index, likeness):
            continue
        first, last = best.at - best.above, best.at + len(old) + best.below
        kept = [*lead[len(lead) - best.above :], *core, *trail[: best.below]]
        placement = _settled(kept, range(first, last), index, likeness, "dropped context that the file does not have")
        if placement is not None:
            return placement
    return None


def _stands_out(best: _Core, second: _Core, index: LineIndex, likeness: Likeness) -> bool:
    """Whether more fits at one place than chance would have it: two lines, or one that the file has only once."""
    if best.weight <= second.weight:
        return False
    if best.weight >= second.weight + 2:
        return True
    text = index.text(likeness)
    return any(
        text.count(text[at]) == 1 and index.lines[at].strip()
        for at in range(best.at - best.above, best.end + best.below)
    )


def _cores(
    lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, likeness: Likeness
) -> list[_Core]:
    above = index.encode([line.text for line in lead], likeness)
    below = index.encode([line.text for line in trail], likeness)
    blank_above = [not line.text.strip() for line in lead]
    blank_below = [not line.text.strip() for line in trail]
    text = index.text(likeness)
    weight = sum(bool(line.strip()) for line in old)
    found = []
    for at in _core_places(lead, old, trail, index, likeness):
        up = _same_back(above, text, at)
        down = _same_on(below, text, at + len(old))
        fits = weight + blank_above[len(lead) - up :].count(False) + blank_below[:down].count(False)
        found.append(_Core(at, at + len(old), up, down, fits))
    return found


def _core_places(
    lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, likeness: Likeness
) -> list[int]:
    """Where the core may stand: by its own old lines, or else by the nearest context with something in it."""
    if any(text.strip() for text in old):
        places = index.places(old, likeness, _MOST_PLACES + 1)
        _refuse_many(places)
        return places
    gaps: set[int] = set()
    upper = _until_text([line.text for line in reversed(lead)])[::-1]
    if upper:
        gaps.update(at + len(upper) for at in index.places([*upper, *old], likeness, _MOST_PLACES + 1))
    lower = _until_text([line.text for line in trail])
    if lower:
        gaps.update(index.places([*old, *lower], likeness, _MOST_PLACES + 1))
    _refuse_many(gaps)
    return sorted(gaps)


def _refuse_many(places: Sequence[int] | set[int]) -> None:
    if len(places) > _MOST_PLACES:
        raise Misfit("fits more than one place")


def _until_text(texts: Sequence[str]) -> list[str]:
    """The first of ``texts`` up to one that is not blank; empty where all are blank."""
    for number, text in enumerate(texts):
        if text.strip():
            return list(texts[: number + 1])
    return []


def _same_back(wanted: str, text: str, end: int) -> int:
    """How many characters before ``end`` are the last ones of ``wanted``."""
    count = 0
    while count < len(wanted) and count < end and wanted[-1 - count] == text[end - 1 - count]:
        count += 1
    return count


def _same_on(wanted: str, text: str, start: int) -> int:
    """How many characters from ``start`` on are the first ones of ``wanted``."""
    count = 0
    while count < len(wanted) and start + count < len(text) and wanted[count] == text[start + count]:
        count += 1
    return count


def _convincing(
    best: _Core, lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, likeness: Likeness
) -> bool:
    """Whether what fits says more than what does not.

    Removed lines must stand in the file, so they speak for themselves. An addition between context of which one
    side is missing could as well belong to the other side, wherever that stands.
    """
    dropped = [*lead[: len(lead) - best.above], *trail[best.below :]]
    missing = sum(bool(line.text.strip()) for line in dropped)
    if any(text.strip() for text in old):
        return best.weight >= 2 or missing == 0
    if best.weight < 2 or best.weight < missing:
        return False
    if best.above and best.below:
        return True
    other = _until_text([line.text for line in (trail if best.above else reversed(lead))])
    return not (other and index.places(other[-1:], likeness, 1))


def _in_parts(lines: Sequence[Line], index: LineIndex) -> Placement | None:
    """Each group of changes by its own context, in order: for hunks whose context leaves lines out."""
    groups = list(_groups(lines))
    if len(groups) < 2:
        return None
    placed: list[PlacedLine] = []
    repairs: list[str] = []
    after = 0
    for group in groups:
        if not any(line.tag != "+" and line.text.strip() for line in group):
            return None
        placement = _whole(group, index) or _without_outer_context(group, index)
        if placement is None:
            return None
        ats = [item.at for item in placement.lines if item.at is not None]
        fresh = [item for item in placement.lines if item.at is None or item.at >= after or item.line.tag != " "]
        if not ats or any(item.at is not None and item.at < after for item in fresh):
            return None
        placed.extend(fresh)
        repairs.extend(note for note in placement.repairs if note not in repairs)
        after = max(after, ats[-1] + 1)
    return Placement(placed, ["split a hunk whose context leaves lines out", *repairs])


def _groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Runs of changes, each with the context on both sides of it; context between two runs goes with both."""
    start = 0
    at = 0
    while at < len(lines):
        while at < len(lines) and lines[at].tag == " ":
            at += 1
        if at == len(lines):
            return
        while at < len(lines) and lines[at].tag != " ":
            at += 1
        end = at
        while end < len(lines) and lines[end].tag == " ":
            end += 1
        yield list(lines[start:end])
        start = at
