"""Finds the one place in a file where a hunk fits, forgiving what models get wrong about white space and context.

A place is taken only if no other fits as well. Context may differ from the file; removed lines may differ
in white space alone, and then take the file's; added lines keep the model's text, and take an indentation
only where the lines around them show by how much the hunk is shifted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from swe_infer.patches.diff import Hunk, Line, PatchError, split_lines
from swe_infer.patches.edit import PlacedLine

MatchLevel = Literal["exact", "trailing", "around"]
"""What two lines may differ in: nothing, white space at their ends, white space around them."""

_KEYS: dict[MatchLevel, Callable[[str], str]] = {"exact": str, "trailing": str.rstrip, "around": str.strip}
MATCH_LEVELS: tuple[MatchLevel, ...] = ("exact", "trailing", "around")
_MOST_PLACES = 64
"""More places than this for the core of a hunk, and it is not looked at closer."""

FORGIVEN: dict[MatchLevel, str | None] = {
    "exact": None,
    "trailing": "forgave white space at line ends",
    "around": "forgave indentation",
}
_NUMBERED = re.compile(r"[ \t]{0,8}(?P<number>\d{1,7})(?:[:|]? (?P<rest>.*)|[:|]?)$", re.DOTALL)

_Shift = tuple[str, str]
"""An indentation as the model wrote it, and as the file has it; equal beginnings removed."""


class HunkNotFound(PatchError):
    """A hunk has no place, or more than one; ``str(error)`` says which."""


class LineIndex:
    """Finds runs of lines in a file in time linear in both: each different line is one character, a run is a string.

    Raises:
        HunkNotFound: when first used, for a file of more different lines than there are characters.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self._codes: dict[MatchLevel, dict[str, str]] = {}
        self._texts: dict[MatchLevel, str] = {}

    def text(self, level: MatchLevel) -> str:
        """The whole file, one character for a line."""
        if level not in self._texts:
            codes: dict[str, str] = {}
            key = _KEYS[level]
            try:
                # Code 0 is kept for lines that the file does not hold.
                text = "".join([codes.setdefault(key(line), chr(len(codes) + 1)) for line in self.lines])
            except ValueError:
                raise HunkNotFound("is of a file with more different lines than can be told apart") from None
            self._texts[level], self._codes[level] = text, codes
        return self._texts[level]

    def encode(self, lines: Sequence[str], level: MatchLevel) -> str:
        """``lines`` in the same alphabet; a line that the file does not hold is ``\\0``."""
        self.text(level)
        codes, key = self._codes[level], _KEYS[level]
        return "".join([codes.get(key(line), "\0") for line in lines])

    def places(self, lines: Sequence[str], level: MatchLevel, limit: int = 2) -> list[int]:
        """Where ``lines`` stand, as indices of their first line; at most ``limit`` of them."""
        text, wanted = self.text(level), self.encode(lines, level)
        found: list[int] = []
        if not wanted or "\0" in wanted:
            return found
        at = text.find(wanted)
        while at >= 0 and len(found) < limit:
            found.append(at)
            at = text.find(wanted, at + 1)
        return found


class FileIndexes:
    """The index of each file of a prompt, made when it is first asked for."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files
        self._made: dict[str, LineIndex] = {}

    def __getitem__(self, path: str) -> LineIndex:
        if path not in self._made:
            self._made[path] = LineIndex([line.removesuffix("\n") for line in split_lines(self.files[path])])
        return self._made[path]


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


def locate_hunk(hunk: Hunk, index: LineIndex) -> Placement:
    """Place ``hunk`` in the file of ``index``.

    Raises:
        HunkNotFound: no place fits, or several fit equally.
    """
    if not hunk.changes:
        raise HunkNotFound("changes nothing")
    if not any(line.tag != "+" and line.text.strip() for line in hunk.lines):
        raise HunkNotFound("has no old line to find its place by")
    numbered = without_line_numbers(hunk.lines)
    variants = [(hunk.lines, None)] if numbered is None else [(hunk.lines, None), (numbered, "dropped line numbers")]
    for lines, note in variants:
        placement = _whole(lines, index) or _without_outer_context(lines, index) or _in_parts(lines, index)
        if placement is not None:
            return Placement(placement.lines, [*([note] if note else []), *placement.repairs])
    raise HunkNotFound("has old lines that stand nowhere in the file")


def _whole(lines: Sequence[Line], index: LineIndex) -> Placement | None:
    """All old lines in one run."""
    old = [line.text for line in lines if line.tag != "+"]
    for level in MATCH_LEVELS:
        places = index.places(old, level)
        if len(places) > 1:
            raise HunkNotFound("fits more than one place")
        if places:
            return _settled(lines, range(places[0], places[0] + len(old)), index, level)
    return None


def _settled(
    lines: Sequence[Line], ats: Sequence[int | None], index: LineIndex, level: MatchLevel, *notes: str
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
    word = FORGIVEN[level]
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
    for level in MATCH_LEVELS:
        found = _cores(lead, old, trail, index, level)
        if not found:
            continue
        found.sort(key=lambda candidate: -candidate.weight)
        best = found[0]
        if len(found) > 1 and not _stands_out(best, found[1], index, level):
            raise HunkNotFound("fits more than one place once context that the file does not have is left out")
        if not _convincing(best, lead, old, trail, index, level):
            continue
        first, last = best.at - best.above, best.at + len(old) + best.below
        kept = [*lead[len(lead) - best.above :], *core, *trail[: best.below]]
        placement = _settled(kept, range(first, last), index, level, "dropped context that the file does not have")
        if placement is not None:
            return placement
    return None


def _stands_out(best: _Core, second: _Core, index: LineIndex, level: MatchLevel) -> bool:
    """Whether more fits at one place than chance would have it: two lines, or one that the file has only once."""
    if best.weight <= second.weight:
        return False
    if best.weight >= second.weight + 2:
        return True
    text = index.text(level)
    return any(
        text.count(text[at]) == 1 and index.lines[at].strip()
        for at in range(best.at - best.above, best.end + best.below)
    )


def _cores(
    lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, level: MatchLevel
) -> list[_Core]:
    above = index.encode([line.text for line in lead], level)
    below = index.encode([line.text for line in trail], level)
    blank_above = [not line.text.strip() for line in lead]
    blank_below = [not line.text.strip() for line in trail]
    text = index.text(level)
    weight = sum(bool(line.strip()) for line in old)
    found = []
    for at in _core_places(lead, old, trail, index, level):
        up = _same_back(above, text, at)
        down = _same_on(below, text, at + len(old))
        fits = weight + blank_above[len(lead) - up :].count(False) + blank_below[:down].count(False)
        found.append(_Core(at, at + len(old), up, down, fits))
    return found


def _core_places(
    lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, level: MatchLevel
) -> list[int]:
    """Where the core may stand: by its own old lines, or else by the nearest context with something in it."""
    if any(text.strip() for text in old):
        places = index.places(old, level, _MOST_PLACES + 1)
        _refuse_many(places)
        return places
    gaps: set[int] = set()
    upper = _until_text([line.text for line in reversed(lead)])[::-1]
    if upper:
        gaps.update(at + len(upper) for at in index.places([*upper, *old], level, _MOST_PLACES + 1))
    lower = _until_text([line.text for line in trail])
    if lower:
        gaps.update(index.places([*old, *lower], level, _MOST_PLACES + 1))
    _refuse_many(gaps)
    return sorted(gaps)


def _refuse_many(places: Sequence[int] | set[int]) -> None:
    if len(places) > _MOST_PLACES:
        raise HunkNotFound("fits more than one place")


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
    best: _Core, lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, level: MatchLevel
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
    return not (other and index.places(other[-1:], level, 1))


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


def settle(lines: Sequence[Line], base: Sequence[str | None]) -> list[str] | None:
    """The texts that ``lines`` get from the file.

    Args:
        base: the file's line for each old line of ``lines``; None for one that is left out.

    Returns:
        A text for each of ``lines``: the file's for kept and removed ones, the model's for added ones, shifted as the
        old lines are. None where it is not clear by how much.
    """
    shifts_removed: set[_Shift] = set()
    shifts_kept: set[_Shift] = set()
    known: dict[str, str | None] = {}
    old = iter(base)
    texts: list[str] = []
    carriage_return = False
    for line in lines:
        text = next(old) if line.tag != "+" else None
        texts.append(line.text if text is None else text)
        if text is None or not text.strip():
            continue
        carriage_return = text.endswith("\r")
        written, has = _indent(line.text), _indent(text)
        (shifts_removed if line.tag == "-" else shifts_kept).add(_shift(written, has))
        known[written] = has if known.get(written, has) == has else None
    for number, line in enumerate(lines):
        if line.tag == "+":
            text = _shifted(line.text, shifts_removed, shifts_kept, known)
            if text is None:
                return None
            texts[number] = text.removesuffix("\r") + "\r" * carriage_return
    return texts


def _shifted(text: str, removed: set[_Shift], kept: set[_Shift], known: dict[str, str | None]) -> str | None:
    if not text.strip():
        return text
    shifts = removed or kept
    if len(shifts) > 1:
        has = known.get(_indent(text))
        return None if has is None else has + text.lstrip(" \t")
    written, has = next(iter(shifts), ("", ""))
    if not removed and (written, has) == ("", " "):
        return text  # the context has lost its sign, not its indentation; added lines have kept theirs
    if not text.startswith(written):
        return None
    return has + text[len(written) :]


def reindent(old: Sequence[str], base: Sequence[str], new: Sequence[str]) -> list[str] | None:
    """``new`` as it stands in the file, where ``old`` differs from ``base`` in white space alone.

    Three cases are clear: all old lines are shifted alike; only the first one is, because it was written right behind
    a tag; each indentation of ``old`` stands for one of ``base``. None in any other. Lines of ``new`` that are
    lines of ``old`` become the file's.
    """
    pairs = [(written, has) for written, has in zip(old, base, strict=True) if has.strip()]
    shifts = [_shift(_indent(written), _indent(has)) for written, has in pairs]
    same = {written: has for written, has in pairs if written.rstrip() == has.rstrip()}
    ends = "\r" if any(has.endswith("\r") for _, has in pairs) else ""
    first = next((n for n, text in enumerate(new) if text.strip()), 0)
    settled: list[str] = []
    for number, text in enumerate(new):
        shift: _Shift | None
        if not text.strip() or len(set(shifts)) <= 1:
            shift = shifts[0] if shifts else ("", "")
        elif len(set(shifts[1:])) == 1 and shifts[1] == ("", ""):
            shift = shifts[0] if number == first or _left_of(new[first + 1 :], _indent(pairs[0][1])) else ("", "")
        else:
            has = {_indent(base_line) for written, base_line in pairs if _indent(written) == _indent(text)}
            shift = (_indent(text), has.pop()) if len(has) == 1 else None
        if shift is None or (text.strip() and not text.startswith(shift[0])):
            return None
        moved = shift[1] + text[len(shift[0]) :] if text.strip() else text
        settled.append(same.get(text, moved.removesuffix("\r") + ends))
    return settled


def _left_of(lines: Sequence[str], indent: str) -> bool:
    """Whether some line begins further left than ``indent``: the lines are not written in the file's columns."""
    return any(line.strip() and len(_indent(line)) < len(indent) for line in lines)


def _indent(text: str) -> str:
    return text[: len(text) - len(text.lstrip(" \t"))]


def _shift(written: str, has: str) -> _Shift:
    """What must be taken off the front and put there instead."""
    if written.endswith(has):
        return (written[: len(written) - len(has)], "")
    if has.endswith(written):
        return ("", has[: len(has) - len(written)])
    return (written, has)


def without_line_numbers(lines: Sequence[Line]) -> list[Line] | None:
    """The lines without the prompt's line numbers, where all old ones carry some that count upwards; else None."""
    numbers: list[int] = []
    stripped: list[Line] = []
    added = [line for line in lines if line.tag == "+" and line.text.strip()]
    added_numbered = bool(added) and all(_NUMBERED.match(line.text) for line in added)
    for line in lines:
        match = _NUMBERED.match(line.text)
        if line.tag != "+" and line.text.strip():
            if match is None:
                return None
            numbers.append(int(match["number"]))
        takes = match is not None and (line.tag != "+" or added_numbered)
        stripped.append(replace(line, text=match["rest"] or "") if takes and match else line)
    counts = all(later > earlier for earlier, later in pairwise(numbers))
    return stripped if numbers and counts else None
