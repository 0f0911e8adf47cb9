"""The files of a prompt, by path, line number and section heading."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

_HEADING_LENGTH = 80
_PYTHON = re.compile(r"[ \t]*((?:class|(?:async[ \t]+)?def)[ \t].*)")
_PLAIN = re.compile(r"([A-Za-z_$].*)")


class SourceFile:
    """Lines of a file, without line ends. Line numbers start at 0 here, at 1 in a diff."""

    def __init__(self, path: str, content: str) -> None:
        self.path = path
        self.lines = content.split("\n")
        if self.lines[-1] == "":
            self.lines.pop()

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places = defaultdict(list)
        for number, line in enumerate(self.lines):
            places[line].append(number)
        return places

    def nearest(self, line: str, around: int) -> int | None:
        """The number of the line with this text that is closest to ``around``; None if there is none."""
        places = self._places.get(line)
        if not places:
            return None
        at = bisect_left(places, around)
        return min(places[max(0, at - 1) : at + 1], key=lambda place: abs(place - around))

    @cached_property
    def _headings(self) -> tuple[list[int], list[str]]:
        pattern = _PYTHON if self.path.endswith((".py", ".pyi")) else _PLAIN
        numbers, texts = [], []
        for number, line in enumerate(self.lines):
            match = pattern.match(line)
            if match is not None:
                numbers.append(number)
                texts.append(match[1][:_HEADING_LENGTH].rstrip())
        return numbers, texts

    def heading(self, number: int) -> str:
        """The section heading that git shows after ``@@`` for a hunk at line ``number``: the last heading before
        it."""
        numbers, texts = self._headings
        at = bisect_left(numbers, number)
        return texts[at - 1] if at else ""


def rank_files(files: Mapping[str, SourceFile], issue: str) -> tuple[list[str], list[str]]:
    """Rank paths by how likely a patch touches them, those named by the issue first.

    The second list is front matter such as the README, which prompts show but patches rarely change.
    """

    def named(path: str) -> bool:
        module = path.rpartition(".")[0].replace("/", ".")
        return path in issue or module in issue

    front = [path for path in files if "/" not in path and path.endswith((".rst", ".md", ".txt"))]
    code = [path for path in files if path not in front]
    return sorted(code, key=lambda path: not named(path)), front
