"""Finds lines of a file that the model breaks differently, such as a call on one line that the file has on five.

Lines are compared by their tokens, without parentheses and without commas before a closing bracket. The match must be
unique, and begin and end where lines of the file do. Lines that begin alike must be indented alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from swe_infer.patches.diff import Line

_TOKEN = re.compile(r"\w+|[^\w\s]")
_COUNTED = re.compile(r"\n|\w+|,(?!\s*[)\]}])|[^\w\s(),]")
"""A token that counts, or the end of a line."""
_FIRST_CODE = ord("\n") + 1
FEWEST_TOKENS = 6
"""Tokens of the shortest text that is looked for. Shorter ones differ too little from others."""


@dataclass(slots=True)
class TokenIndex:
    """The tokens of a file, each distinct one encoded as one character.

    Args:
        starts: for each line and for the end, the number of tokens before it.
        line_at: the line that begins with each token that begins one.
    """

    lines: Sequence[str]
    codes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    starts: list[int] = field(default_factory=list)
    line_at: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with suppress(ValueError):  # more distinct tokens than characters: none is known
            self.codes = {x: chr(code) for code, x in enumerate(dict.fromkeys(_tokens(self.lines)), _FIRST_CODE)}
        self.codes["\n"] = "\n"
        parts = self._encoded(self.lines)
        self.text = "".join(parts)
        self.starts = [*accumulate(map(len, parts), initial=0)]
        self.line_at = {start: number for number, start in enumerate(self.starts[:-1]) if parts[number]}

    def _encoded(self, lines: Sequence[str]) -> list[str]:
        """The tokens of each line. One that the file does not have is ``\\0``."""
        return "".join([self.codes.get(token, "\0") for token in _tokens(lines)]).split("\n")[:-1]

    def find(self, old: Sequence[str]) -> range | None:
        """The only lines of the file with the tokens of ``old``."""
        start = self._start(old)
        if start is None:
            return None
        found = self._range(start, self.starts[start] + sum(map(len, self._encoded(old))), old)
        return found if found and _blanks(self.lines[found.start : found.stop]) == _blanks(old) else None

    def align(self, lines: Sequence[Line]) -> list[tuple[Line, int | None]] | None:
        """The lines of a hunk with those of the file in place of the old ones, each with its index in the file."""
        old = [line.text for line in lines if line.tag != "+"]
        counts = map(len, self._encoded(old))
        at = self._start(old)
        if at is None:
            return None
        token = self.starts[at]
        aligned: list[tuple[Line, int | None]] = []
        for tag, group in groupby(lines, key=lambda line: line.tag):
            part = list(group)
            if tag == "+":
                aligned += [(line, None) for line in part]
                continue
            token += sum(next(counts) for _ in part)
            found = self._range(at, token, [line.text for line in part])
            if found is None:
                return None
            blank = tag == "-" and bool(part[0].text.strip())  # blank lines before removed ones are kept
            for number in found:
                text = self.lines[number].removesuffix("\r")
                blank = blank and not text.strip()
                aligned.append((Line(" " if blank else tag, text), number))
            at = found.stop
        return aligned if _blanks([line.text for line, at in aligned if at is not None]) == _blanks(old) else None

    def _start(self, old: Sequence[str]) -> int | None:
        """The line that the only match begins; None if lines that both have are indented differently."""
        parts = self._encoded(old)
        pattern = "".join(parts)
        at = self.text.find(pattern) if len(pattern) >= FEWEST_TOKENS and "\0" not in pattern else -1
        if at < 0 or self.text.find(pattern, at + 1) >= 0:
            return None
        token = at
        for line, tokens in zip(old, parts, strict=True):
            number = self.line_at.get(token) if tokens else None
            if number is not None and _indent(self.lines[number]) != _indent(line):
                return None
            token += len(tokens)
        return self.line_at.get(at)

    def _range(self, start: int, token: int, old: Sequence[str]) -> range | None:
        """The lines from ``start`` up to a token; None if the token is inside a line, or if brackets are cut."""
        stop = start
        while stop < len(self.lines) and self.starts[stop] < token:
            stop += 1
        depth = _depth(old)
        while stop < len(self.lines) and self.starts[stop + 1] == token and _depth(self.lines[start:stop]) > depth:
            stop += 1
        found = self.lines[start:stop]
        return range(start, stop) if self.starts[stop] == token and _depth(found) == depth else None


def tokens_of(line: str) -> list[str]:
    """Words and single other characters of a line."""
    return _TOKEN.findall(line)


def _tokens(lines: Sequence[str]) -> list[str]:
    """The tokens that count, with ``\\n`` behind those of each line."""
    return _COUNTED.findall("\n".join([*lines, ""]))


def _blanks(lines: Sequence[str]) -> int:
    """The number of blank lines between others."""
    shown = "".join("x" if line.strip() else " " for line in lines)
    return shown.strip().count(" ")


def _depth(lines: Sequence[str]) -> int:
    """The number of parentheses that ``lines`` open and do not close."""
    return sum(line.count("(") - line.count(")") for line in lines)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
