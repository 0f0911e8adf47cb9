"""Describes the parts of an answer that match nowhere, and what the files contain there.

All work is bounded: few mismatches are described, and similarity is computed for few places of a file.
"""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from swe_infer.feedback.message import MOST_LINES, quoted
from swe_infer.patches.diff import PathIndex
from swe_infer.patches.lenient import parse_leniently
from swe_infer.patches.line_index import LineIndex
from swe_infer.patches.reasoning import without_reasoning
from swe_infer.patches.replace import find_replacements
from swe_infer.run_directory.records import Record
from swe_infer.types import EditFormat

_MOST_DESCRIBED = 3
_MOST_EDITS = 200
_MOST_CHARACTERS = 1 << 21
"""Longer files are not searched."""
_MOST_PLACES = 8
"""Places of a file that are compared with the old lines."""
_MOST_POSITIONS = 50
"""Positions of one line in a file that count."""
_WINDOW = 1000
"""Lines before and after the stated position that are searched for a similar line."""
_LONGEST_COMPARED = 200
_LEAST_SIMILAR = 0.6
_MARGIN = 2
"""Further lines that are shown before and after the closest ones."""
_MOST_PATHS = 2000


@dataclass(frozen=True, slots=True)
class _Expected:
    """Lines that an answer expects in a file.

    Args:
        label: names the part of the answer and its lines.
        path: as the answer writes it; None if it names no file.
        line: index of the first line by the answer; None if it does not say.
    """

    label: str
    path: str | None
    lines: Sequence[str]
    line: int | None = None


def describe_mismatches(record: Record, files: Mapping[str, str], edit_format: EditFormat | None) -> list[str]:
    """One paragraph for each of the first parts of an answer whose old lines are not in their file."""
    index = PathIndex(files)
    found: list[str] = []
    for expected in itertools.islice(_expected_lines(record, index, edit_format), _MOST_EDITS):
        path = None if expected.path is None else index.find(index.clean(expected.path)) or index.clean(expected.path)
        content = None if path is None else files.get(path)
        if path is None:
            continue
        paragraph = _missing_file(path, files) if content is None else _mismatch(expected, path, content)
        if paragraph is not None and paragraph not in found:
            found.append(paragraph)
        if len(found) == _MOST_DESCRIBED:
            break
    return found


def _expected_lines(record: Record, index: PathIndex, edit_format: EditFormat | None) -> Iterator[_Expected]:
    patch = record.get("model_patch") or ""
    if patch:
        for section in parse_leniently(patch.split("\n"), index):
            path = section.patch.old_path
            count = len(section.patch.hunks)
            for number, hunk in enumerate(section.patch.hunks, 1):
                old = [line.text for line in hunk.lines if line.tag != "+"]
                line = None if hunk.header is None else max(0, hunk.header.old_start - 1)
                label = f"Hunk {number} of {count} for {path}: these context and removed lines"
                yield _Expected(label, path, old, line)
        return
    answer = without_reasoning(record.get("full_output") or "").text
    replacements, _ = find_replacements(answer, edit_format) if edit_format != "unified_diff" else ([], None)
    if not replacements:
        replacements, _ = find_replacements(answer)
    for number, replacement in enumerate(replacements, 1):
        if replacement.old is not None:
            lines = replacement.old.replace("\r\n", "\n").removesuffix("\n").split("\n")
            label = f"Edit {number} of {len(replacements)}: these lines to replace"
            yield _Expected(label, replacement.path, lines)


def _missing_file(path: str, files: Mapping[str, str]) -> str | None:
    """The closest path to one that does not exist; None without a close one."""
    known = list(itertools.islice(files, _MOST_PATHS))
    close = difflib.get_close_matches(path[-_LONGEST_COMPARED:], known, n=1)
    return f"There is no file {path}. The closest path is {close[0]}." if close else None


def _mismatch(expected: _Expected, path: str, content: str) -> str | None:
    """What the file contains instead of the expected lines; None if it contains them, apart from white space."""
    old = list(expected.lines)
    if not any(line.strip() for line in old) or len(content) > _MOST_CHARACTERS:
        return None
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    keys = [line.strip() for line in lines]
    wanted = [line.strip() for line in old]
    if LineIndex(lines).find_all(old, "around", 1):
        return None
    text = f"{expected.label} are not in {path}:\n\n{quoted(old)}"
    place, what = _closest_place(wanted[:MOST_LINES], keys, expected.line), "The closest lines of"
    if place is None and expected.line is not None and expected.line < len(lines):
        place, what = expected.line, "No lines are similar. At the stated position, the lines of"
    if place is None:
        return f"{text}\n\nNo lines of {path} are similar."
    first = max(0, place - _MARGIN)
    last = min(len(lines), place + min(len(old), MOST_LINES - 2 * _MARGIN) + _MARGIN)
    return f"{text}\n\n{what} {path}, {first + 1} to {last}, are:\n\n{quoted(lines[first:last])}"


def _closest_place(wanted: Sequence[str], keys: Sequence[str], stated: int | None) -> int | None:
    """The index of the first line of the place in ``keys`` that is most similar to ``wanted``; None without one."""
    positions: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        if key and len(found := positions.setdefault(key, [])) < _MOST_POSITIONS:
            found.append(position)
    votes: Counter[int] = Counter()
    for offset, key in enumerate(wanted):
        for position in positions.get(key, ()):
            votes[max(0, position - offset)] += len(key)

    def distance(place: int) -> int:
        return 0 if stated is None else abs(place - stated)

    places = sorted(votes, key=lambda place: (-votes[place], distance(place), place))[:_MOST_PLACES]
    if not places and (similar := _similar_line(wanted, keys, stated)) is not None:
        places = [similar]

    def similarity(place: int) -> float:
        there = keys[place : place + len(wanted)]
        return difflib.SequenceMatcher(None, wanted, there, autojunk=False).ratio()

    return max(places, key=lambda place: (similarity(place), -distance(place), -place), default=None)


def _similar_line(wanted: Sequence[str], keys: Sequence[str], stated: int | None) -> int | None:
    """The place of the line that is most similar to the longest line of ``wanted``, near the stated position."""
    offset = max(range(len(wanted)), key=lambda number: len(wanted[number]))
    centre = (stated or 0) + offset
    first = max(0, centre - _WINDOW)
    matcher = difflib.SequenceMatcher(None, "", wanted[offset][:_LONGEST_COMPARED], autojunk=False)
    best: tuple[float, int] | None = None
    for position, key in enumerate(keys[first : centre + _WINDOW], first):
        matcher.set_seq1(key[:_LONGEST_COMPARED])
        if matcher.real_quick_ratio() < _LEAST_SIMILAR or matcher.quick_ratio() < _LEAST_SIMILAR:
            continue
        ratio = matcher.ratio()
        if ratio >= _LEAST_SIMILAR and (best is None or ratio > best[0]):
            best = (ratio, position)
    return None if best is None else max(0, best[1] - offset)
