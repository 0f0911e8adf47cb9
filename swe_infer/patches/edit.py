"""Applies located hunks to a file, writes the resulting patch, and computes line diffs."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from swe_infer.patches.diff import CONTEXT, FilePatch, Line, split_lines, write_file

MOST_CURRENT_VIEWS = 16
"""The number of changes of one patch that may be located in the current content instead of the base."""

_LARGEST_EXACT = 10_000
"""Old lines times new lines, up to which a range is compared exactly; larger ones are replaced as a whole."""


class Conflict(Exception):
    """Two hunks change the same lines."""


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """A line of a located hunk.

    Args:
        at: the index in the file of a kept or removed line; None for an added one.
    """

    line: Line
    at: int | None


@dataclass(frozen=True, slots=True)
class _Group:
    """Changes without a kept line between them: removed base lines, and added (text, no_newline) by gap."""

    removed: tuple[int, ...]
    added: tuple[tuple[int, tuple[tuple[str, bool], ...]], ...]


@dataclass(slots=True, eq=False)
class _Added:
    text: str
    no_newline: bool
    gone: bool = False


@dataclass(slots=True)
class FileEdit:
    """The lines of a file, with the removed and added ones.

    ``added[gap]`` comes before base line ``gap``; ``len(base)`` is the gap at the end. Base lines are never changed
    in place, so removed and added lines stay in the hunks' order.
    """

    content: str
    base: list[str] = field(init=False)
    final_newline: bool = field(init=False)
    removed: set[int] = field(default_factory=set)
    added: dict[int, list[_Added]] = field(default_factory=dict)
    _marked: set[int] = field(default_factory=set)
    _done: set[_Group] = field(default_factory=set)

    def __post_init__(self) -> None:
        lines = split_lines(self.content)
        self.final_newline = not lines or lines[-1].endswith("\n")
        self.base = [line.removesuffix("\n") for line in lines]

    @property
    def changed(self) -> bool:
        return bool(self.removed or any(self.added.values()))

    def apply_to_base(self, placed: Sequence[PlacedLine]) -> bool:
        """Applies a hunk that was located in the base. Returns False if it was already applied.

        Raises:
            Conflict: it removes a removed line, or adds where another hunk has added.
        """
        fresh = [group for group in _groups_of(placed) if group not in self._done]
        for group in fresh:
            gaps = {gap for gap, _ in group.added}
            if not self.removed.isdisjoint(group.removed) or any(self.added.get(gap) for gap in gaps):
                raise Conflict
        for group in fresh:
            self._done.add(group)
            self.removed.update(group.removed)
            for gap, lines in group.added:
                self.added[gap] = [_Added(text, no_newline) for text, no_newline in lines]
        self._marked.update(p.at for p in placed if p.line.no_newline and p.at is not None)
        return bool(fresh)

    def current(self) -> list[tuple[str, int, _Added | None]]:
        """The current lines: text, index of the base line or gap, and the added line or None."""
        lines: list[tuple[str, int, _Added | None]] = []
        for index in range(len(self.base) + 1):
            lines.extend((added.text, index, added) for added in self.added.get(index, ()))
            if index < len(self.base) and index not in self.removed:
                lines.append((self.base[index], index, None))
        return lines

    def apply_to_current(self, placed: Sequence[PlacedLine], lines: list[tuple[str, int, _Added | None]]) -> None:
        """Applies a hunk that was located in ``lines``, the result of :meth:`current`."""
        previous: tuple[int, _Added | None] | None = None
        following = [lines[p.at][1:] if p.at is not None else None for p in placed]
        for number, item in enumerate(placed):
            if item.at is not None:
                _, index, added = lines[item.at]
                previous = (index, added)
                if item.line.tag == "-" and added is None:
                    self.removed.add(index)
                elif item.line.tag == "-" and added is not None:
                    added.gone = True
                continue
            fresh = _Added(item.line.text, item.line.no_newline)
            if previous is None:
                next_old = next((f for f in following[number:] if f is not None), (0, None))
                cells = self.added.setdefault(next_old[0], [])
                cells.insert(cells.index(next_old[1]) if next_old[1] in cells else len(cells), fresh)
                previous = (next_old[0], fresh)
            elif previous[1] is None:
                self.added.setdefault(previous[0] + 1, []).insert(0, fresh)
                previous = (previous[0] + 1, fresh)
            else:
                cells = self.added[previous[0]]
                cells.insert(cells.index(previous[1]) + 1, fresh)
                previous = (previous[0], fresh)
        for gap, cells in self.added.items():
            self.added[gap] = [cell for cell in cells if not cell.gone]

    def result(self) -> str:
        """The file's new content."""
        lines = [text for text, _, _ in self.current()]
        return "\n".join(lines) + "\n" * (bool(lines) and self._ends_in_newline())

    def write(self, patch: FilePatch) -> str:
        """The patch from the base to the result."""
        groups = list(self._groups())
        hunks: list[list[Line]] = []
        starts: list[tuple[int, int]] = []
        shift = 0
        for first, last in groups:
            lines = list(self._hunk(max(0, first - CONTEXT), min(len(self.base), last + CONTEXT), last))
            before = max(0, first - CONTEXT)
            hunks.append(lines)
            starts.append((before, before + shift))
            shift += sum(line.tag == "+" for line in lines) - sum(line.tag == "-" for line in lines)
        return write_file(patch, hunks, starts)

    def _groups(self) -> Iterator[tuple[int, int]]:
        """The ranges ``[first, last)`` of base lines with changes. Near ones are merged."""
        points = {(index, index + 1) for index in self.removed}
        points |= {(gap, gap) for gap, cells in self.added.items() if cells}
        if self._rewrites_last():
            points.add((len(self.base) - 1, len(self.base)))
        current: tuple[int, int] | None = None
        for first, last in sorted(points):
            if current is not None and first - current[1] <= 2 * CONTEXT:
                current = (current[0], max(current[1], last))
                continue
            if current is not None:
                yield current
            current = (first, last)
        if current is not None:
            yield current

    def _hunk(self, start: int, end: int, last_change: int) -> Iterator[Line]:
        count = len(self.base)
        for index in range(start, end + 1):
            if index < end or index == last_change:
                yield from self._added_lines(index)
            if index == end:
                return
            cut = index == count - 1 and not self.final_newline
            gone = index in self.removed
            if not gone and index == count - 1 and self._rewrites_last():
                yield Line("-", self.base[index], cut)
                yield Line("+", self.base[index])
                continue
            yield Line("-" if gone else " ", self.base[index], cut)

    def _added_lines(self, gap: int) -> Iterator[Line]:
        cells = self.added.get(gap, [])
        for number, cell in enumerate(cells):
            final = number == len(cells) - 1 and self._is_last(gap) and not self._ends_in_newline()
            yield Line("+", cell.text, final)

    def _is_last(self, gap: int) -> bool:
        """Whether the result has no line after ``gap``."""
        rest = range(len(self.base) - 1, gap - 1, -1)
        return all(index in self.removed and not self.added.get(index + 1) for index in rest)

    def _rewrites_last(self) -> bool:
        """Whether the base's last line gets a newline because lines are added after it."""
        count = len(self.base)
        return not self.final_newline and bool(self.added.get(count)) and count > 0 and count - 1 not in self.removed

    def _ends_in_newline(self) -> bool:
        """Whether the result ends in a newline: by the hunk that added the last line, or else as the base."""
        last_gap = max((gap for gap, cells in self.added.items() if cells), default=-1)
        if last_gap < 0 or not self._is_last(last_gap):
            last_kept = len(self.base) - 1
            return self.final_newline or last_kept in self.removed
        if self.added[last_gap][-1].no_newline:
            return False
        return self.final_newline or bool(self._marked)


def _groups_of(placed: Sequence[PlacedLine]) -> Iterator[_Group]:
    removed: list[int] = []
    added: list[tuple[int, tuple[tuple[str, bool], ...]]] = []
    run: list[tuple[str, bool]] = []
    gap = next((item.at for item in placed if item.at is not None), 0)
    for item in placed:
        if item.at is None:
            run.append((item.line.text, item.line.no_newline))
            continue
        if run:
            added.append((gap, tuple(run)))
            run = []
        if item.line.tag == "-":
            removed.append(item.at)
        elif removed or added:
            yield _Group(tuple(removed), tuple(added))
            removed, added = [], []
        gap = item.at + 1
    if run:
        added.append((gap, tuple(run)))
    if removed or added:
        yield _Group(tuple(removed), tuple(added))


def line_diff(old: Sequence[str], new: Sequence[str]) -> list[Line]:
    """Returns the kept, removed and added lines that turn ``old`` into ``new``, in linear time.

    Patience diff: lines that are unique on both sides are anchors, and small ranges between them are compared
    exactly. The result is correct for any input, and short if the two are similar.
    """
    lines: list[Line] = []
    at_old = at_new = 0
    for anchor_old, anchor_new in [*_anchors(old, new), (len(old), len(new))]:
        lines.extend(_diff_between_anchors(old[at_old:anchor_old], new[at_new:anchor_new]))
        if anchor_old < len(old):
            lines.append(Line(" ", old[anchor_old]))
        at_old, at_new = anchor_old + 1, anchor_new + 1
    return lines


def without_newlines(lines: Sequence[Line]) -> list[Line]:
    """The lines of a :func:`line_diff` of lines with their newlines, as lines of a hunk."""
    return [Line(line.tag, line.text.removesuffix("\n"), not line.text.endswith("\n")) for line in lines]


def _anchors(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """The longest sequence of common unique lines in the same order on both sides."""
    old_counts, new_counts = Counter(old), Counter(new)
    positions = {line: at for at, line in enumerate(new) if new_counts[line] == 1}
    pairs = [(at, positions[line]) for at, line in enumerate(old) if old_counts[line] == 1 and line in positions]
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


def _diff_between_anchors(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
    start = 0
    while start < len(old) and start < len(new) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    yield from (Line(" ", text) for text in old[:start])
    yield from _diff_middle(old[start : len(old) - end], new[start : len(new) - end])
    yield from (Line(" ", text) for text in old[len(old) - end :])


def _diff_middle(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
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
