"""Finds the one location in a file that a hunk matches, tolerating differences in white space and context.

The location must be unambiguous. Context may differ from the file. Removed lines may differ only in white space, and
then become the file's. Added lines keep the model's text, except for indentation, which is adjusted if the lines
around them show by how much the hunk is shifted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from swe_infer.patches.diff import Hunk, Line
from swe_infer.patches.edit import PlacedLine
from swe_infer.patches.indentation import file_indents, resolve_whitespace
from swe_infer.patches.line_index import (
    MATCH_LEVELS,
    MOST_LOCATIONS,
    HunkNotFound,
    LineIndex,
    MatchLevel,
    anchored,
    within,
    words_of,
)
from swe_infer.patches.line_numbers import without_line_numbers
from swe_infer.patches.reflow import FEWEST_TOKENS, tokens_of
from swe_infer.patches.typography import plain_typography

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

GUESSED_BY_NUMBER = "guessed one of several equal places by the line number"
_SHORTEST_ALONE = 12
"""Characters of removed lines that identify a place near the header's line number without any context."""
REFLOWED = "ignored line breaks"
_IMPORT = re.compile(r"(?:import|from)\s[^()\\]*[^()\\,\s]\s*$")
"""An import at the left margin that ends in its line."""
_FEWEST_EQUAL = 2
"""Lines that must equal the file's where removed lines differ in punctuation."""
_SIMILAR = 0.9
_SHORTEST_SIMILAR, _LONGEST_SIMILAR = 20, 500
"""Characters of a removed line that may differ in punctuation."""
_LEAST_WRITTEN = 0.75
"""The share of the tokens of a file's line that a removed line must have to match it."""


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
    keyed = [line if line.tag == "+" else replace(line, text=words_of(line.text)) for line in lines]
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


def _sides(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    """The old and the added lines."""
    old, new = [line.text for line in lines if line.tag != "+"], [line.text for line in lines if line.tag == "+"]
    return old, new


def _with_texts(lines: Sequence[Line], sides: tuple[list[str], list[str]]) -> list[Line]:
    """``lines`` with other texts for the old and the added ones."""
    olds, news = map(iter, sides)
    return [replace(line, text=next(news if line.tag == "+" else olds)) for line in lines]


def _unnumbered(lines: Sequence[Line], index: LineIndex) -> list[Line] | None:
    texts = without_line_numbers(*_sides(lines), index)
    return None if texts is None else _with_texts(lines, texts)
