"""Finds runs of lines in a file, in time linear in both: each different line is one character, a run is a string."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from swe_infer.patches.diff import split_lines

__all__ = ["FileIndexes", "Likeness", "LineIndex"]

Likeness = Literal["exact", "trailing", "around"]
"""What two lines may differ in: nothing, white space at their ends, white space around them."""

_KEYS: dict[Likeness, Callable[[str], str]] = {"exact": str, "trailing": str.rstrip, "around": str.strip}


class LineIndex:
    """The lines of a file, without their newlines."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self._codes: dict[Likeness, dict[str, str]] = {}
        self._texts: dict[Likeness, str] = {}

    def text(self, likeness: Likeness) -> str:
        """The whole file, one character for a line."""
        if likeness not in self._texts:
            codes: dict[str, str] = {}
            key = _KEYS[likeness]
            # Code 0 is kept for lines that the file does not hold.
            self._texts[likeness] = "".join([codes.setdefault(key(line), chr(len(codes) + 1)) for line in self.lines])
            self._codes[likeness] = codes
        return self._texts[likeness]

    def encode(self, lines: Sequence[str], likeness: Likeness) -> str:
        """``lines`` in the same alphabet; a line that the file does not hold is ``\\0``."""
        self.text(likeness)
        codes, key = self._codes[likeness], _KEYS[likeness]
        return "".join([codes.get(key(line), "\0") for line in lines])

    def places(self, lines: Sequence[str], likeness: Likeness, limit: int = 2) -> list[int]:
        """Where ``lines`` stand, as indices of their first line; at most ``limit`` of them."""
        text, wanted = self.text(likeness), self.encode(lines, likeness)
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
