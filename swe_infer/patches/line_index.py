"""Finds sequences of lines in a file, and the blocks that a line begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal

from swe_infer.patches.diff import PatchError, PathIndex, split_lines
from swe_infer.patches.reflow import TokenIndex
from swe_infer.patches.typography import plain

MatchLevel = Literal["exact", "trailing", "around", "typography"]
"""In what two lines may differ: nothing, trailing white space, white space on both sides, or also the style of quotes
and typographic characters for ASCII ones, such as no-break spaces."""

_WHITE = " \t\r\f\v"
MATCH_KEYS: dict[MatchLevel, Callable[[str], str]] = {
    "exact": str,
    "trailing": lambda line: line.rstrip(_WHITE),
    "around": lambda line: line.strip(_WHITE),
    "typography": lambda line: plain(line).replace('"', "'").strip(_WHITE),
}
"""Two lines match at a level if their keys are equal."""
MATCH_LEVELS: tuple[MatchLevel, ...] = ("exact", "trailing", "around", "typography")
MOST_LOCATIONS = 64
"""A hunk that matches more locations than this is refused without comparing context, anchors or numbers."""
_WORD = re.compile(r"\w{2,}")
_DEFINED = re.compile(r"[(:{<=]")
_LONGEST_NAME = 200


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
            keys = list(map(MATCH_KEYS[level], self.lines))
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
        codes, key = self._codes[level], MATCH_KEYS[level]
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
            depth = len(indent_of(self.lines[start]))
            end = start + 1
            while end < len(self.lines):
                line = self.lines[end]
                if line.strip() and len(indent_of(line)) <= depth and line.lstrip()[0] not in "{})]#":
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
            self._words = LineIndex([words_of(line) for line in self.lines])
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
    """The files of a prompt, with the index of each one and that of their paths. Each is built on first use."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files
        self._made: dict[str, LineIndex] = {}

    @cached_property
    def paths(self) -> PathIndex:
        return PathIndex(self.files)

    def __getitem__(self, path: str) -> LineIndex:
        if path not in self._made:
            self._made[path] = LineIndex([line.removesuffix("\n") for line in split_lines(self.files[path])])
        return self._made[path]


def indent_of(text: str) -> str:
    """The blanks and tabs that ``text`` begins with."""
    return text[: len(text) - len(text.lstrip(" \t"))]


def words_of(line: str) -> str:
    """The words of two letters or more, without the punctuation between them."""
    return " ".join(_WORD.findall(line))


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
