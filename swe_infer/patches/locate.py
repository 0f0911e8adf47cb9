"""Finds the one location in a file that a hunk matches, tolerating differences in white space and context.

The location must be unambiguous. Context may differ from the file. Removed lines may differ only in white space, and
then become the file's. Added lines keep the model's text, except for indentation, which is adjusted if the lines
around them show by how much the hunk is shifted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal

from swe_infer.patches.diff import Hunk, Line, PatchError, split_lines
from swe_infer.patches.edit import PlacedLine
from swe_infer.patches.reflow import FEWEST_TOKENS, TokenIndex, tokens_of

MatchLevel = Literal["exact", "trailing", "around", "typography"]
"""In what two lines may differ: nothing, trailing white space, white space on both sides, or also the style of quotes
and typographic characters for ASCII ones, such as no-break spaces."""

_WHITE = " \t\r\f\v"
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        "\u2026": "...",
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff"),
    }
)


def _plain(text: str) -> str:
    """``text`` with ASCII characters for typographic ones."""
    return text if text.isascii() else text.translate(_TYPOGRAPHY)


_KEYS: dict[MatchLevel, Callable[[str], str]] = {
    "exact": str,
    "trailing": lambda line: line.rstrip(_WHITE),
    "around": lambda line: line.strip(_WHITE),
    "typography": lambda line: _plain(line).replace('"', "'").strip(_WHITE),
}
MATCH_LEVELS: tuple[MatchLevel, ...] = ("exact", "trailing", "around", "typography")
MOST_LOCATIONS = 64
"""A hunk that matches more locations than this is refused without comparing context, anchors or numbers."""
_NEAR = 10
"""Lines by which a header's line number may be off if it decides between equal places."""
_MISCOUNT = 2
"""Lines by which a header may miscount the hunk if its line number decides. Invented numbers are off by more."""

REPAIR_NOTES: dict[MatchLevel, str | None] = {
    "exact": None,
    "trailing": "ignored trailing white space",
    "around": "ignored indentation",
    "typography": "ignored typographic characters and styles of quotes",
}
_NUMBERED = re.compile(r"[ \t]{0,8}(?P<number>\d{1,7})(?:(?P<mark>[:|→\t ])(?P<rest>.*))?$", re.DOTALL)
_MARKED = re.compile(r"[ \t]{0,8}[L\[]?(?P<number>\d{1,7})(?P<mark> \||[\].:])(?: (?P<rest>.*))?$", re.DOTALL)

GUESSED_BY_NUMBER = "guessed one of several equal places by the line number"
_SHORTEST_ALONE = 12
"""Characters of removed lines that identify a place near the header's line number without any context."""
REFLOWED = "ignored line breaks"
_IMPORT = re.compile(r"(?:import|from)\s[^()\\]*[^()\\,\s]\s*$")
"""An import at the left margin that ends in its line."""
_WORD = re.compile(r"\w{2,}")
_FEWEST_EQUAL = 2
"""Lines that must equal the file's where removed lines differ in punctuation."""
_SIMILAR = 0.9
_SHORTEST_SIMILAR, _LONGEST_SIMILAR = 20, 500
"""Characters of a removed line that may differ in punctuation."""
_LEAST_WRITTEN = 0.75
"""The share of the tokens of a file's line that a removed line must have to match it."""
_DEFINED = re.compile(r"[(:{<=]")
_LONGEST_NAME = 200

_Shift = tuple[str, str]
"""The indentation that the model wrote, and the file's; without a common suffix."""


class HunkNotFound(PatchError):
    """A hunk matches no location, or more than one; ``str(error)`` says which."""


class LineIndex:
    """Finds sequences of lines in a file in linear time: each distinct line is encoded as one character.

    Raises:
        HunkNotFound: on first use, for a file with more distinct lines than there are characters.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self._codes: dict[MatchLevel, dict[str, str]] = {}
        self._texts: dict[MatchLevel, str] = {}
        self._names: dict[str, list[int]] = {}
        self._ends: dict[int, int] = {}
        self._dense: tuple[LineIndex, list[int]] | None = None
        self._tokens: TokenIndex | None = None
        self._words: LineIndex | None = None

    def text(self, level: MatchLevel) -> str:
        """The file, one character per line."""
        if level not in self._texts:
            keys = list(map(_KEYS[level], self.lines))
            try:
                # Code 0 is reserved for lines that are not in the file.
                codes = {key: chr(code) for code, key in enumerate(dict.fromkeys(keys), 1)}
                text = "".join(map(codes.__getitem__, keys))
            except ValueError:
                raise HunkNotFound("is for a file with too many distinct lines") from None
            self._texts[level], self._codes[level] = text, codes
        return self._texts[level]

    def encode(self, lines: Sequence[str], level: MatchLevel) -> str:
        """``lines`` in the same alphabet. A line that is not in the file is ``\\0``."""
        self.text(level)
        codes, key = self._codes[level], _KEYS[level]
        return "".join([codes.get(key(line), "\0") for line in lines])

    def blocks(self, anchor: str) -> list[range]:
        """The blocks whose first line is ``anchor``, or else defines the same name."""
        if not self._names:
            for number, line in enumerate(self.lines):
                for key in {line.strip(), _name_of(line)}:
                    if key and len(key) <= _LONGEST_NAME:
                        self._names.setdefault(key, []).append(number)
        starts = self._names.get(anchor.strip()) or self._names.get(_name_of(anchor), [])
        return [self._block(start) for start in starts[: MOST_LOCATIONS + 1]]

    def _block(self, start: int) -> range:
        """The lines from ``start`` on that are indented further, with closing brackets, comments and blank lines."""
        if start not in self._ends:
            depth = len(_indent(self.lines[start]))
            end = start + 1
            while end < len(self.lines):
                line = self.lines[end]
                if line.strip() and len(_indent(line)) <= depth and line.lstrip()[0] not in "{})]#":
                    break
                end += 1
            self._ends[start] = end
        return range(start, self._ends[start])

    def without_blanks(self) -> tuple[LineIndex, list[int]]:
        """The index of the lines that are not blank, and their indices in the file."""
        if self._dense is None:
            numbers = [number for number, line in enumerate(self.lines) if line.strip()]
            self._dense = LineIndex([self.lines[number] for number in numbers]), numbers
        return self._dense

    def words(self) -> LineIndex:
        """The index of the words of each line."""
        if self._words is None:
            self._words = LineIndex([_words(line) for line in self.lines])
        return self._words

    def tokens(self) -> TokenIndex:
        """The index of the tokens."""
        if self._tokens is None:
            self._tokens = TokenIndex(self.lines)
        return self._tokens

    def find_all(self, lines: Sequence[str], level: MatchLevel, limit: int = 2) -> list[int]:
        """The indices of the first line of up to ``limit`` matches of ``lines``."""
        text, pattern = self.text(level), self.encode(lines, level)
        found: list[int] = []
        if not pattern or "\0" in pattern:
            return found
        at = text.find(pattern)
        while at >= 0 and len(found) < limit:
            found.append(at)
            at = text.find(pattern, at + 1)
        return found


class FileIndexes:
    """The index of each file of a prompt, built on first use."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files
        self._made: dict[str, LineIndex] = {}

    def __getitem__(self, path: str) -> LineIndex:
        if path not in self._made:
            self._made[path] = LineIndex([line.removesuffix("\n") for line in split_lines(self.files[path])])
        return self._made[path]


@dataclass(slots=True)
class Placement:
    """The located lines of a hunk, in the file's order, and the differences that were tolerated."""

    lines: list[PlacedLine]
    repairs: list[str]


@dataclass(slots=True)
class _Core:
    """One location of a hunk's core.

    Args:
        at: the index of the first old line of the core, or of the gap for a core without old lines.
        end: the index after the last one.
        above, below: context lines that match before and after the core.
        weight: non-blank lines that match, in context and core.
    """

    at: int
    end: int
    above: int
    below: int
    weight: int


def locate_hunk(hunk: Hunk, index: LineIndex, between: Callable[[], range | None] | None = None) -> Placement:
    """Locates ``hunk`` in the file of ``index``.

    Of several equal locations, the hunk's anchors decide, then its heading, the end of the file, its line number, and
    the order of the hunks.

    Args:
        between: returns the lines between the hunks before and after this one, if they are in order.

    Raises:
        HunkNotFound: no location matches, or several match equally well.
    """
    if not hunk.changes:
        raise HunkNotFound("changes nothing")
    if not any(line.tag != "+" and line.text.strip() for line in hunk.lines):
        raise HunkNotFound("has no old line to locate it by")
    scopes = anchored(hunk.anchors, index)
    if scopes is None and len(hunk.anchors) > 1:
        raise HunkNotFound("has an anchor that is not in the file")
    choice = _Choice(hunk, index, scopes, between)
    placement, note = _match(hunk, index, choice)
    ats = [item.at for item in placement.lines if item.at is not None]
    if len(hunk.anchors) > 1 and scopes and not within([min(ats)], max(ats) + 1 - min(ats), scopes):
        raise HunkNotFound("is not behind its anchors")
    notes = ["ignored an anchor that the file does not have"] if hunk.anchors and scopes is None else []
    return Placement(placement.lines, [*([note] if note else []), *placement.repairs, *notes])


def _match(hunk: Hunk, index: LineIndex, choice: _Choice) -> tuple[Placement, str | None]:
    """The placement of a hunk by the strictest method that finds one, and a note on how its lines were corrected.

    Raises:
        HunkNotFound: none does, or several locations match.
    """
    variants = list(_variants(hunk.lines, index))
    for lines, note in variants:
        if (placement := _match_whole(lines, index, choice)) is not None:
            return placement, note
    problem = HunkNotFound("has old lines that are not in the file")
    try:
        for lines, note in variants:
            placement = _without_outer_context(lines, index, choice) or _match_in_parts(lines, index)
            if placement is not None:
                return placement, note
    except HunkNotFound as error:
        problem = error
    placement = (
        _match_without_blanks(hunk.lines, index, choice)
        or _match_reflowed(hunk.lines, index)
        or _match_import(hunk.lines, index, choice)
        or _match_words(hunk.lines, index, choice)
        or _match_left_out_words(hunk.lines, index)
    )
    if placement is None:
        raise problem
    return placement, None


def _variants(lines: Sequence[Line], index: LineIndex) -> Iterator[tuple[Sequence[Line], str | None]]:
    """The lines of a hunk as written, then corrections of them, each with a note for the record."""
    yield lines, None
    numbered = _unnumbered(lines, index)
    if numbered is not None:
        yield numbered, "dropped line numbers"
    present = _with_present_lines(lines, index)
    if present is not None:
        yield present, "guessed that lines are not added again that the file has at the same place"


def _with_present_lines(lines: Sequence[Line], index: LineIndex) -> list[Line] | None:
    """``lines`` with added lines as context if the file has them behind the same old lines; None if it has none."""
    changed: list[Line] = []
    run: list[str] = []  # the old lines before
    at: int | None = None  # behind them in the file, if they are there once
    for line in lines:
        if line.tag != "+":
            run.append(line.text)
            at = None
            changed.append(line)
            continue
        if run:
            places = index.find_all(run, "around") if any(text.strip() for text in run) else []
            at = places[0] + len(run) if len(places) == 1 else None
            run = []
        is_present = at is not None and line.text.strip() and at < len(index.lines)
        if at is not None and is_present and index.lines[at].rstrip() == line.text.rstrip():
            changed.append(replace(line, tag=" "))
            at += 1
            continue
        at = None
        changed.append(line)
    found = any(line.tag != old.tag for line, old in zip(changed, lines, strict=True))
    return changed if found and any(line.tag != " " for line in changed) else None


@dataclass(slots=True)
class _Choice:
    """Chooses between the equal locations of a hunk.

    Args:
        numbers: the line of the file for each line in which the locations are counted; None if they are the same.
    """

    hunk: Hunk
    index: LineIndex
    scopes: Sequence[range] | None
    between: Callable[[], range | None] | None
    numbers: Sequence[int] | None = None

    def _in_file(self, places: Sequence[int]) -> dict[int, int]:
        """The places by their lines in the file."""
        return {at if self.numbers is None or at >= len(self.numbers) else self.numbers[at]: at for at in places}

    def by_block(self, places: Sequence[int], size: int) -> tuple[list[int], str]:
        """The places in the blocks that the anchors and the heading name, or all; and what decided."""
        known = self._in_file(places)
        left, word = self._by_block(list(known), size)
        return [known[at] for at in left], word

    def _by_block(self, places: Sequence[int], size: int) -> tuple[list[int], str]:
        left, word = list(places), ""
        if self.scopes is not None and self.hunk.anchors and (found := within(left, size, self.scopes)):
            left, word = found, "an anchor"
            if len(left) > 1:
                left = [at for at in left if any(at == scope.start + 1 for scope in self.scopes)] or left
        if len(left) > 1 and self.hunk.heading:
            scopes = anchored((self.hunk.heading,), self.index)
            if scopes and (found := within(left, size, scopes)) and len(found) < len(left):
                left, word = found, "the heading"
        return left, word

    def __call__(self, places: Sequence[int], size: int, offset: int = 0) -> tuple[int, str] | None:
        """One of several equal places, and the note for the record; None if nothing decides.

        Args:
            offset: the places are those of the hunk's old line ``offset``.
        """
        known = self._in_file(places)
        left, word = self._by_block(list(known), size)
        if len(left) > 1 and self.hunk.at_end:
            last = len(self.index.lines)
            while last and not self.index.lines[last - 1].strip():
                last -= 1
            left, word = [at for at in left if at + size >= last] or left, "the end of the file"
        if len(left) == 1:
            return known[left[0]], f"chose one of several equal places by {word}"
        near = self._by_number(left, offset)
        if near is not None:
            return known[near], GUESSED_BY_NUMBER
        order = self.between() if self.between is not None else None
        if order is not None:
            left = [at for at in left if at in order and at + size <= order.stop]
            if len(left) == 1:
                return known[left[0]], "guessed one of several equal places by the order of the hunks"
        return None

    def _by_number(self, places: Sequence[int], offset: int) -> int | None:
        """The place at or clearly nearest to the header's line number."""
        expected = self._expected(offset)
        return None if expected is None else nearest(places, expected)

    def _expected(self, offset: int) -> int | None:
        """Where the header has the hunk's old line ``offset``, if it counts the hunk's lines about right."""
        header = self.hunk.header
        if header is None or not header.old_start or abs(header.old_count - self.hunk.old_count) > _MISCOUNT:
            return None
        return header.old_start - 1 + offset

    def is_near(self, at: int, offset: int) -> bool:
        """Whether the header's line number supports a place."""
        expected = self._expected(offset)
        return expected is not None and all(abs(line - expected) <= _NEAR for line in self._in_file([at]))


def nearest(places: Sequence[int], expected: int) -> int | None:
    """The one of several places that is at or clearly nearest to ``expected``; None if it is not near."""
    (distance, at), (second, _) = sorted((abs(at - expected), at) for at in places)[:2]
    return at if distance <= _NEAR and second >= 3 * distance + 3 else None


def _match_whole(lines: Sequence[Line], index: LineIndex, choice: _Choice | None = None) -> Placement | None:
    """Matches all old lines as one sequence."""
    old = [line.text for line in lines if line.tag != "+"]
    for level in MATCH_LEVELS:
        places = index.find_all(old, level, MOST_LOCATIONS + 1 if choice else 2)
        if len(places) > 1:
            chosen = choice(places, len(old)) if choice and len(places) <= MOST_LOCATIONS else None
            if chosen is None:
                raise HunkNotFound("matches more than one location")
            at, note = chosen
            return _placement_at(lines, range(at, at + len(old)), index, level, note)
        if places:
            return _placement_at(lines, range(places[0], places[0] + len(old)), index, level)
    return None


def _placement_at(
    lines: Sequence[Line], ats: Sequence[int | None], index: LineIndex, level: MatchLevel, *notes: str
) -> Placement | None:
    """The placement of ``lines`` whose old lines are at ``ats``; None if their white space is ambiguous."""
    base = [None if at is None else index.lines[at] for at in ats]
    if level == "typography":
        lines = _with_texts(lines, plain_typography(*_sides(lines), [text for text in base if text is not None]))
    indented = file_indents(*_sides(lines), base)
    texts = None if indented is None else resolve_whitespace(lines := _with_texts(lines, indented), base)
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
    word = REPAIR_NOTES[level]
    return Placement(placed, [*([word] if word else []), *notes])


def _split(lines: Sequence[Line]) -> tuple[list[Line], list[Line], list[Line]]:
    """Leading context, the core from the first change to the last, trailing context."""
    changed = [number for number, line in enumerate(lines) if line.tag != " "]
    first, last = changed[0], changed[-1] + 1
    return list(lines[:first]), list(lines[first:last]), list(lines[last:])


def _without_outer_context(
    lines: Sequence[Line], index: LineIndex, choice: _Choice | None = None
) -> Placement | None:
    """Matches the core with as much context as possible, if one location has clearly more than any other."""
    lead, core, trail = _split(lines)
    old = [line.text for line in core if line.tag != "+"]
    for level in MATCH_LEVELS:
        found = _cores(lead, old, trail, index, level)
        if not found:
            continue
        found.sort(key=lambda candidate: -candidate.weight)
        notes = ["dropped context that the file does not have"]
        if choice is not None and len(found) > 1:
            places, word = choice.by_block([candidate.at for candidate in found], max(len(old), 1))
            if len(places) == 1:
                found = [candidate for candidate in found if candidate.at in places]
                notes.append(f"chose one of several equal places by {word}")
        best = found[0]
        if len(found) > 1 and not _is_distinctive(best, found[1], index, level):
            close = {candidate.at: candidate for candidate in found if candidate.weight >= best.weight - 1}
            chosen = (
                choice(list(close), max(len(old), 1), len(lead)) if choice is not None and len(close) > 1 else None
            )
            if chosen is None:
                raise HunkNotFound("matches more than one location without the context that the file does not have")
            best = close[chosen[0]]
            notes.append(chosen[1])
        only = len(found) == 1 and sum(len(text.strip()) for text in old) >= _SHORTEST_ALONE
        near = only and choice is not None and choice.is_near(best.at, len(lead))
        if not near and not _is_convincing(best, lead, old, trail, index, level):
            continue
        first, last = best.at - best.above, best.at + len(old) + best.below
        kept = [*lead[len(lead) - best.above :], *core, *trail[: best.below]]
        placement = _placement_at(kept, range(first, last), index, level, *notes)
        if placement is not None:
            return placement
    return None


def _is_distinctive(best: _Core, second: _Core, index: LineIndex, level: MatchLevel) -> bool:
    """Whether the best location is not a coincidence: two more lines match, or one that is unique in the file."""
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
    for at in _core_locations(lead, old, trail, index, level):
        up = _common_suffix(above, text, at)
        down = _common_prefix(below, text, at + len(old))
        fits = weight + blank_above[len(lead) - up :].count(False) + blank_below[:down].count(False)
        found.append(_Core(at, at + len(old), up, down, fits))
    return found


def _core_locations(
    lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, level: MatchLevel
) -> list[int]:
    """The possible locations of the core: by its old lines, or else by the nearest non-blank context."""
    if any(text.strip() for text in old):
        places = index.find_all(old, level, MOST_LOCATIONS + 1)
        _check_count(places)
        return places
    gaps: set[int] = set()
    upper = _through_first_nonblank([line.text for line in reversed(lead)])[::-1]
    if upper:
        gaps.update(at + len(upper) for at in index.find_all([*upper, *old], level, MOST_LOCATIONS + 1))
    lower = _through_first_nonblank([line.text for line in trail])
    if lower:
        gaps.update(index.find_all([*old, *lower], level, MOST_LOCATIONS + 1))
    _check_count(gaps)
    return sorted(gaps)


def _check_count(places: Sequence[int] | set[int]) -> None:
    if len(places) > MOST_LOCATIONS:
        raise HunkNotFound("matches more than one location")


def _through_first_nonblank(texts: Sequence[str]) -> list[str]:
    """The first of ``texts`` through the first non-blank one; empty if all are blank."""
    for number, text in enumerate(texts):
        if text.strip():
            return list(texts[: number + 1])
    return []


def _common_suffix(pattern: str, text: str, end: int) -> int:
    """The number of characters before ``end`` that equal the last ones of ``pattern``."""
    count = 0
    while count < len(pattern) and count < end and pattern[-1 - count] == text[end - 1 - count]:
        count += 1
    return count


def _common_prefix(pattern: str, text: str, start: int) -> int:
    """The number of characters from ``start`` on that equal the first ones of ``pattern``."""
    count = 0
    while count < len(pattern) and start + count < len(text) and pattern[count] == text[start + count]:
        count += 1
    return count


def _is_convincing(
    best: _Core, lead: Sequence[Line], old: Sequence[str], trail: Sequence[Line], index: LineIndex, level: MatchLevel
) -> bool:
    """Whether the matching lines outweigh the missing ones.

    Removed lines are in the file, so they are evidence by themselves. A pure addition whose context matches on one
    side only could as well belong to the other side, if that is elsewhere in the file.
    """
    dropped = [*lead[: len(lead) - best.above], *trail[best.below :]]
    missing = sum(bool(line.text.strip()) for line in dropped)
    if any(text.strip() for text in old):
        return best.weight >= 2 or missing == 0
    if best.weight < 2 or best.weight < missing:
        return False
    if best.above and best.below:
        return True
    other = _through_first_nonblank([line.text for line in (trail if best.above else reversed(lead))])
    return not (other and index.find_all(other[-1:], level, 1))


def _match_without_blanks(lines: Sequence[Line], index: LineIndex, choice: _Choice) -> Placement | None:
    """Matches a hunk whose context has other blank lines than the file, which keeps its own."""
    if any(line.tag == "-" and not line.text.strip() for line in lines):
        return None
    dense, numbers = index.without_blanks()
    kept = [line for line in lines if line.tag == "+" or line.text.strip()]
    if len(kept) == len(lines) and len(numbers) == len(index.lines):
        return None
    choice = replace(choice, numbers=numbers)
    placement = _match_whole(kept, dense, choice) or _without_outer_context(kept, dense, choice)
    if placement is None:
        return None
    placed = [item if item.at is None else replace(item, at=numbers[item.at]) for item in placement.lines]
    between = _between_blanks(placed, lines, index)
    if between is None:
        return None
    return Placement(between, ["ignored blank lines in the context", *placement.repairs])


def _between_blanks(placed: Sequence[PlacedLine], lines: Sequence[Line], index: LineIndex) -> list[PlacedLine] | None:
    """``placed`` with the file's blank lines in front of added lines, where the hunk has blank ones.

    None if lines are added among blank lines of the file, and the hunk does not have them on one side alone.
    """
    wanted: list[list[int]] = []  # blank lines before and after each run of added ones
    blanks = 0
    for number, line in enumerate(lines):
        if line.tag != "+":
            blanks = 0 if line.text.strip() else blanks + 1
            if wanted and not line.text.strip() and number - blanks >= 0 and lines[number - blanks].tag == "+":
                wanted[-1][1] = blanks
        else:
            if number == 0 or lines[number - 1].tag != "+":
                wanted.append([blanks, 0])
            blanks = 0
    runs = iter(wanted)
    found: list[PlacedLine] = []
    for number, item in enumerate(placed):
        before = found[-1].at if found else None
        if item.at is None and (not found or before is not None):
            above, below = next(runs)
            after = next((later.at for later in placed[number:] if later.at is not None), None)
            gap = range(before + 1, after) if before is not None and after is not None else range(0)
            if gap and len(gap) != above + below and bool(above) == bool(below):
                return None
            count = above if len(gap) == above + below else len(gap) if above else 0
            found.extend(PlacedLine(Line(" ", index.lines[at]), at) for at in gap[:count])
        found.append(item)
    return found


def _match_reflowed(lines: Sequence[Line], index: LineIndex) -> Placement | None:
    """Matches a hunk with other line breaks than the file, by its tokens."""
    aligned = index.tokens().align(lines)
    if aligned is None:
        return None
    ats = [at for line, at in aligned if line.tag != "+"]
    return _placement_at([line for line, _ in aligned], ats, index, "exact", REFLOWED)


def _match_import(lines: Sequence[Line], index: LineIndex, choice: _Choice) -> Placement | None:
    """Places added imports next to the import that is next to them in the hunk. Other context does not count.

    The order of imports rarely matters, and models often forget some of them. Imports that the file has are left out.
    """
    lead, core, trail = _split(lines)
    if not all(line.tag == "+" and (_IMPORT.match(line.text) or not line.text.strip()) for line in core):
        return None
    for beside, shift in ((lead[-1:], 1), (trail[:1], 0)):
        places = index.find_all([line.text for line in beside], "trailing")
        if len(places) != 1 or not _IMPORT.match(index.lines[places[0]]):
            continue
        if choice.hunk.header is None or choice.is_near(places[0], len(lead) - shift):
            core = [line for line in core if not index.find_all([line.text], "trailing", 1)]
            kept = [*beside, *core] if shift else [*core, *beside]
            return _placement_at(kept, places, index, "trailing", "guessed a place among the imports")
    return None


def _match_words(lines: Sequence[Line], index: LineIndex, choice: _Choice) -> Placement | None:
    """Matches a hunk whose removed lines differ from the file's only in punctuation, if they are long and similar."""
    keyed = [line if line.tag == "+" else replace(line, text=_words(line.text)) for line in lines]
    found = _without_outer_context(keyed, index.words(), choice)
    if found is None:
        return None
    lead, _, _ = _split(lines)
    first = len(lead) - next(number for number, item in enumerate(found.lines) if item.line.tag != " ")
    kept = lines[first : first + len(found.lines)]
    ats = [item.at for item in found.lines if item.line.tag != "+"]
    old = [line for line in kept if line.tag != "+"]
    pairs = [(line.tag, line.text, index.lines[at]) for line, at in zip(old, ats, strict=True) if at is not None]
    if not all(tag == " " or _are_similar(text.strip(), has.strip()) for tag, text, has in pairs):
        return None
    if sum(text.strip() == has.strip() != "" for _, text, has in pairs) < _FEWEST_EQUAL:
        return None
    return _placement_at(kept, ats, index, "exact", "guessed that removed lines differ from the file in punctuation")


def _words(line: str) -> str:
    return " ".join(_WORD.findall(line))


def _are_similar(text: str, has: str) -> bool:
    if text == has:
        return True
    matcher = SequenceMatcher(None, text, has, autojunk=False)
    return _SHORTEST_SIMILAR <= len(text) <= _LONGEST_SIMILAR and matcher.ratio() >= _SIMILAR


def _match_left_out_words(lines: Sequence[Line], index: LineIndex) -> Placement | None:
    """Matches removed lines that leave out words of the file's lines, if the added lines have these words.

    Then no word of the file is lost. The context must match on both sides, except for one line.
    """
    lead, core, trail = _split(lines)
    old, new = _sides(core)
    if not old or len(old) != len(new) or any(line.tag == " " for line in core):
        return None
    above, below = [line.text for line in lead], [line.text for line in trail]
    upper, lower = _through_first_nonblank(above[::-1])[::-1], _through_first_nonblank(below)
    starts = {at + len(upper) for at in index.find_all(upper, "trailing", MOST_LOCATIONS + 1)}
    starts.update(at - len(old) for at in index.find_all(lower, "trailing", MOST_LOCATIONS + 1))
    if len(starts) > MOST_LOCATIONS:
        return None
    places = [range(at, at + len(old)) for at in starts if at >= 0]
    found = [
        place
        for place in places
        if _adds_words(old, index.lines[place.start : place.stop], new)
        and _have_all_but_one(above, below, index.lines, place)
    ]
    if len(found) != 1:
        return None
    return _placement_at(core, found[0], index, "exact", "guessed that removed lines leave out words of the file's")


def _adds_words(old: Sequence[str], base: Sequence[str], new: Sequence[str]) -> bool:
    """Whether some lines of ``base`` differ from those of ``old``, and only by additional words: both begin alike,
    the tokens of ``old`` are in ``base`` in order, and those of ``base`` are in ``new`` in order."""
    if len(old) != len(base) or any(len(text) > _LONGEST_SIMILAR for text in (*old, *base, *new)):
        return False
    differing = [(o, b, n) for o, b, n in zip(old, base, new, strict=True) if o.strip() != b.strip()]
    for text, has, added in differing:
        removed, kept = tokens_of(text), tokens_of(has)
        if removed[:1] != kept[:1] or not (_is_within(removed, kept) and _is_within(kept, tokens_of(added))):
            return False
        if len(removed) < FEWEST_TOKENS or len(removed) < _LEAST_WRITTEN * len(kept):
            return False
    return bool(differing)


def _is_within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether ``whole`` has the items of ``part`` in this order."""
    rest = iter(whole)
    return all(item in rest for item in part)


def _have_all_but_one(above: Sequence[str], below: Sequence[str], lines: Sequence[str], place: range) -> bool:
    """Whether the file has the context around a place, all but one line of it at most, and some on either side."""
    missing = 0
    for texts, near in (
        (above, lines[max(place.start - len(above), 0) : place.start]),
        (below, lines[place.stop : place.stop + len(below)]),
    ):
        shown = [text.rstrip() for text in texts if text.strip()]
        known = {line.rstrip() for line in near}
        absent = sum(text not in known for text in shown)
        if absent == len(shown):
            return False
        missing += absent
    return missing <= 1


def _match_in_parts(lines: Sequence[Line], index: LineIndex) -> Placement | None:
    """Matches each group of changes by its own context, for hunks whose context leaves lines out."""
    groups = list(_groups(lines))
    if len(groups) < 2:
        return None
    placed: list[PlacedLine] = []
    repairs: list[str] = []
    after = 0
    for group in groups:
        if not any(line.tag != "+" and line.text.strip() for line in group):
            return None
        placement = _match_whole(group, index) or _without_outer_context(group, index)
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
    """Groups of changes, each with the context on both sides. Context between two groups belongs to both."""
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


def resolve_whitespace(lines: Sequence[Line], base: Sequence[str | None]) -> list[str] | None:
    """Resolves the differences in white space between ``lines`` and the file.

    Args:
        base: the file's line for each old line of ``lines``; None for one that is left out.

    Returns:
        A text for each of ``lines``: the file's for kept and removed ones, the model's for added ones, shifted like
        the old lines. None if the shift is ambiguous.
    """
    shifts_removed: set[_Shift] = set()
    shifts_kept: set[_Shift] = set()
    known: dict[str, str | None] = {}
    old = iter(base)
    texts: list[str] = []
    ends: list[str] = []  # of old lines
    for line in lines:
        text = next(old) if line.tag != "+" else None
        texts.append(line.text if text is None else text)
        if line.tag != "+":
            ends.append("\r" if text is not None and text.endswith("\r") else "")
        if text is None or not text.strip():
            continue
        written, has = _indent(line.text), _indent(text)
        (shifts_removed if line.tag == "-" else shifts_kept).add(_shift(written, has))
        known[written] = has if known.get(written, has) == has else None
    if all(line.tag == "+" or line.text == text for line, text in zip(lines, texts, strict=True)):
        return texts  # the old lines are the file's, so the white space of the added ones is intended
    if len(ends) > 1 and set(ends[:-1]) == {"\r"}:
        ends[-1] = "\r"  # the file's last line may have no line end
    added_ends = line_ends(lines, ends)
    for number, line in enumerate(lines):
        if line.tag == "+":
            text = _shifted(line.text, shifts_removed, shifts_kept, known)
            if text is None:
                return None
            texts[number] = text.removesuffix("\r") + added_ends[number]
    return texts


def line_ends(lines: Sequence[Line], old_ends: Sequence[str]) -> list[str]:
    """The line end of each of ``lines``: an added one gets that of the removed line that it replaces, or else of the
    old line before it, or else of the first old line.

    Args:
        old_ends: ``\\r`` or empty for each old line.
    """
    ends: list[str] = []
    at = replaced = added = 0  # old lines so far; removed and added lines of this change
    for line in lines:
        if line.tag != "+":
            replaced = replaced + 1 if line.tag == "-" and not added else int(line.tag == "-")
            added = 0
            ends.append(old_ends[at])
            at += 1
            continue
        near = at - replaced + min(added, replaced - 1) if replaced else at - 1
        ends.append(old_ends[max(near, 0)] if old_ends else "")
        added += 1
    return ends


def _shifted(text: str, removed: set[_Shift], kept: set[_Shift], known: dict[str, str | None]) -> str | None:
    if not text.strip():
        return text
    shifts = removed or kept
    if len(shifts) > 1:
        has = known.get(_indent(text))
        return None if has is None else has + text.lstrip(" \t")
    written, has = next(iter(shifts), ("", ""))
    if not removed and (written, has) == ("", " "):
        return text  # the context lost its sign, not its indentation; added lines kept theirs
    if not text.startswith(written):
        return None
    return has + text[len(written) :]


def reindent(old: Sequence[str], base: Sequence[str], new: Sequence[str]) -> list[str] | None:
    """``new`` with the file's indentation, where ``old`` differs from ``base`` only in white space.

    Three cases are unambiguous: all old lines are shifted alike; only the first one is, because it directly follows a
    tag; each indentation of ``old`` corresponds to one of ``base``. Returns None in any other. Lines of ``new`` that
    are lines of ``old`` become the file's. The result has no ``\\r`` at line ends.
    """
    pairs = [(written, has) for written, has in zip(old, base, strict=True) if has.strip()]
    shifts = [_shift(_indent(written), _indent(has)) for written, has in pairs]
    same = {
        written: has.removesuffix("\r") for written, has in pairs if _plain(written).rstrip() == _plain(has).rstrip()
    }
    copies = {written: has.removesuffix("\r") for written, has in pairs}
    first = next((n for n, text in enumerate(new) if text.strip()), 0)
    settled: list[str] = []
    for number, text in enumerate(new):
        shift: _Shift | None
        if not text.strip() or len(set(shifts)) <= 1:
            shift = shifts[0] if shifts else ("", "")
        elif len(set(shifts[1:])) == 1 and shifts[1] == ("", ""):
            shift = shifts[0] if number == first or _left_of(new[first + 1 :], _indent(pairs[0][1])) else ("", "")
        else:
            indents = {_indent(base_line) for written, base_line in pairs if _indent(written) == _indent(text)}
            shift = (_indent(text), indents.pop()) if len(indents) == 1 else None
        if shift is None or (text.strip() and not text.startswith(shift[0])):
            return None
        moved = shift[1] + text[len(shift[0]) :] if text.strip() else text
        moved = same.get(text, moved.removesuffix("\r"))
        has = copies.get(text, moved)
        settled.append(has if _KEYS["typography"](has) == _KEYS["typography"](moved) else moved)
    return settled


def file_indents(
    old: Sequence[str], new: Sequence[str], base: Sequence[str | None]
) -> tuple[list[str], list[str]] | None:
    """Old and new lines with the file's steps of indentation: tabs, or so many blanks.

    Args:
        base: the file's line for each old line; None for one that is left out.

    Returns:
        None if it is ambiguous how many blanks a tab stands for.
    """
    pairs = {(_indent(text), _indent(line or "")) for text, line in zip(old, base, strict=True) if text.strip()}
    pairs = {(written, has) for written, has in pairs if written and has}
    units = {_unit(written, has) for written, has in pairs if ("\t" in written) != ("\t" in has)}
    blanks = {(len(written), len(has)) for written, has in pairs if set(written) == set(has) == {" "}}
    if not units and len({written for written, _ in blanks}) > 1:
        units = {(" " * max(written // has, 1), " " * max(has // written, 1)) for written, has in blanks}
        if len(units) > 1 or any(written % has and has % written for written, has in blanks):
            units = set()  # not another step, but another depth
    if not units:
        return list(old), list(new)
    unit = units.pop()
    if units or unit is None:
        return None
    return [_converted(text, *unit) for text in old], [_converted(text, *unit) for text in new]


def _unit(written: str, has: str) -> tuple[str, str] | None:
    """The step of indentation that the model wrote, and the file's."""
    if set(written) == {"\t"} and len(has) % len(written) == 0:
        return "\t", " " * (len(has) // len(written))
    if set(has) == {"\t"} and len(written) % len(has) == 0:
        return " " * (len(written) // len(has)), "\t"
    return None


def _converted(text: str, step: str, file_step: str) -> str:
    rest = _indent(text)
    count = 0
    while rest.startswith(step):
        rest, count = rest[len(step) :], count + 1
    return file_step * count + rest + text.lstrip(" \t") if text.strip() else text


def _left_of(lines: Sequence[str], indent: str) -> bool:
    """Whether some line is indented less than ``indent``, so the lines do not use the file's indentation."""
    return any(line.strip() and len(_indent(line)) < len(indent) for line in lines)


def _indent(text: str) -> str:
    return text[: len(text) - len(text.lstrip(" \t"))]


def _shift(written: str, has: str) -> _Shift:
    """The prefix to remove and the prefix to add instead."""
    if written.endswith(has):
        return (written[: len(written) - len(has)], "")
    if has.endswith(written):
        return ("", has[: len(has) - len(written)])
    return (written, has)


def split_line_numbers(
    texts: Sequence[str], *, spaced: bool = True, marked: bool = False
) -> list[tuple[int | None, str]]:
    """For each text its line number (``12 x``, ``12: x``, ``12|x``, ``12<tab>x``) and the rest; None without one.

    Args:
        spaced: a blank behind each ``:`` or ``|`` belongs to the number, if all lines have one.
        marked: only numbers such as ``12 | x``, ``12. x``, ``[12] x`` and ``L12: x`` count.
    """
    matches = [(_MARKED if marked else _NUMBERED).match(text) for text in texts]
    rests = [match["rest"] or "" for match in matches if match and match["mark"] not in (None, " ", "\t")]
    spaced = spaced and not marked and all(rest.startswith(" ") for rest in rests if rest.strip())
    found: list[tuple[int | None, str]] = []
    for text, match in zip(texts, matches, strict=True):
        if match is None:
            found.append((None, text))
            continue
        rest = match["rest"] or ""
        found.append((int(match["number"]), rest[1:] if spaced and match["mark"] in (":", "|", "→") else rest))
    return found


def without_line_numbers(
    old: Sequence[str], new: Sequence[str], index: LineIndex
) -> tuple[list[str], list[str]] | None:
    """Old and new lines without line numbers; None if they have none, or if the numbers are inconsistent.

    All old lines must have increasing numbers. New lines must have numbers in all lines, or in none, or exactly in
    the lines that are old lines too.
    """
    spaced, tight = (_without_line_numbers(old, new, spaced=spaced) for spaced in (True, False))
    for texts in (spaced, tight, _without_line_numbers(old, new, spaced=True, marked=True)):
        if texts is not None and index.find_all(texts[0], "trailing", 1):
            return texts
    # Without a match, only new lines with numbers have the same indentation as the old ones for sure.
    return spaced if spaced == tight or (spaced and tight and spaced[1] != tight[1]) else None


def _without_line_numbers(
    old: Sequence[str], new: Sequence[str], *, spaced: bool, marked: bool = False
) -> tuple[list[str], list[str]] | None:
    split = split_line_numbers([*old, *new], spaced=spaced, marked=marked)
    olds, news = split[: len(old)], split[len(old) :]
    numbers = [number for (number, _), text in zip(olds, old, strict=True) if number is not None or text.strip()]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers) or any(later <= earlier for earlier, later in pairwise(known)):
        return None
    possible = range(known[0] - 1, known[-1] + len(new) + 2)
    written = [(number in possible, text) for (number, _), text in zip(news, new, strict=True) if text.strip()]
    copies = set(old)
    own = [number for (number, _), text in zip(news, new, strict=True) if text.strip()]
    if own and own[0] is not None and own == list(range(own[0], own[0] + len(own))):
        # Each line has a number, those of the new file or numbers of its content.
        if _has_numbers(rest for _, rest in olds) and not _has_numbers(rest for _, rest in news):
            return None
        rests = [rest for _, rest in news]
    elif all(is_numbered for is_numbered, _ in written):
        rests = [rest for _, rest in news]
    elif any(is_numbered and text not in copies for is_numbered, text in written):
        return None
    else:
        rests = [rest if text in copies else text for (_, rest), text in zip(news, new, strict=True)]
    return [rest for _, rest in olds], rests


def _has_numbers(texts: Iterable[str]) -> bool:
    return any(number is not None for number, _ in split_line_numbers(list(texts)))


def plain_typography(old: Sequence[str], new: Sequence[str], base: Sequence[str]) -> tuple[list[str], list[str]]:
    """Old and new lines without the typographic characters that ``old`` has in place of those of ``base``."""
    foreign = {char for text in old for char in text if ord(char) in _TYPOGRAPHY}
    foreign -= {char for text in base for char in text}
    table = {ord(char): _TYPOGRAPHY[ord(char)] for char in foreign}
    return [text.translate(table) for text in old], [text.translate(table) for text in new]


def _sides(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    """The old and the added lines."""
    old, new = [line.text for line in lines if line.tag != "+"], [line.text for line in lines if line.tag == "+"]
    return old, new


def _with_texts(lines: Sequence[Line], sides: tuple[list[str], list[str]]) -> list[Line]:
    """``lines`` with other texts for the old and the added ones."""
    olds, news = map(iter, sides)
    return [replace(line, text=next(news if line.tag == "+" else olds)) for line in lines]


def _name_of(line: str) -> str:
    """The start of a line up to the name that it defines: ``class A`` of ``class A(B):``. Empty for a single word."""
    name = _DEFINED.split(line.strip(), maxsplit=1)[0].rstrip()
    return name if " " in name else ""


def anchored(anchors: Sequence[str], index: LineIndex) -> list[range] | None:
    """The blocks that the last of nested ``anchors`` begins; None if one is not in the file, or not behind the one
    before it."""
    scopes = [range(len(index.lines))]
    for anchor in anchors:
        blocks = index.blocks(anchor)
        inner = [block for block in blocks if any(block.start in scope for scope in scopes)]
        first = min(scope.start for scope in scopes)
        scopes = inner or [range(block.start, len(index.lines)) for block in blocks if block.start >= first]
        if not scopes:
            return None
    return scopes


def within(places: Sequence[int], size: int, scopes: Sequence[range]) -> list[int]:
    """Those of ``places``, of ``size`` lines each, that begin in one of ``scopes`` or contain its first line."""
    return [at for at in places if any(at in scope or at <= scope.start < at + size for scope in scopes)]


def _unnumbered(lines: Sequence[Line], index: LineIndex) -> list[Line] | None:
    texts = without_line_numbers(*_sides(lines), index)
    return None if texts is None else _with_texts(lines, texts)
