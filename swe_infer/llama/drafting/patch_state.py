"""Tracks the position of an output in a unified diff: file, hunk, and next line of the file.

The format is that of GNU diff and git. Wrong line numbers are corrected by matching the text of lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from swe_infer.llama.drafting.files import SourceFile

CONTEXT = 3
"""Context lines that git shows around a change."""

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)")


@dataclass(slots=True)
class DiffStyle:
    """How a model writes diffs, as observed so far.

    Args:
        context: lines shown before a change.
        headings: whether section headings follow ``@@``.
        git_headers: whether ``diff --git`` lines precede ``---``; None: not observed.
    """

    context: int = CONTEXT
    headings: bool = True
    git_headers: bool | None = None


@dataclass(slots=True)
class DraftHunk:
    """Progress through one hunk.

    Args:
        at: next line of the old file, from 0.
        old, new: lines remaining on each side according to the header; None: unknown.
        run: context lines since the start of the hunk or the last change.
        removed, added: lines of the current change, without signs.
        first: first line of the hunk.
        context: context lines around a change.
    """

    source: SourceFile | None
    at: int
    old: int | None = None
    new: int | None = None
    run: int = 0
    changed: bool = False
    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    first: int = 0
    context: int = CONTEXT

    def copy(self) -> DraftHunk:
        return replace(self, removed=list(self.removed), added=list(self.added))

    @property
    def complete(self) -> bool:
        return self.old is not None and self.new is not None and self.old <= 0 and self.new <= 0

    def upcoming(self, offset: int = 0) -> str | None:
        """The old file's next line; None past its end or for an unknown file."""
        place = self.at + offset
        if self.source is None or not 0 <= place < len(self.source.lines):
            return None
        return self.source.lines[place]

    def consume(self, sign: str, text: str) -> None:
        """Advance by one line of the hunk."""
        if sign != "+":
            self._find(text)
            self.at += 1
            if self.old is not None:
                self.old -= 1
        if sign != "-" and self.new is not None:
            self.new -= 1
        if sign == " ":
            self.run += 1
            self.removed, self.added = [], []
            return
        if sign == "-":
            if self.added:
                self.removed, self.added = [], []
            self.removed.append(text)
        else:
            self.added.append(text)
        self.run, self.changed = 0, True

    def _find(self, text: str) -> None:
        if self.source is None or self.upcoming() == text or not text.strip():
            return
        place = self.source.nearest(text, self.at)
        if place is not None:
            self.at = place


class PatchState:
    """Parses an output's text, line by line.

    Attributes:
        current: the incomplete line.
        style: how the model writes diffs; shared with its other outputs.
        path: current file; None before the first.
        hunk: None outside hunks.
        offset: lines added minus lines removed by the file's hunks so far.
        touched: paths so far, in order.
        view: the last lines of the new file in the hunk.
    """

    def __init__(self, files: Mapping[str, SourceFile], style: DiffStyle | None = None) -> None:
        self.files = files
        self.style = style or DiffStyle()
        self.current = ""
        self.previous = ""
        self.path: str | None = None
        self.hunk: DraftHunk | None = None
        self.offset = 0
        self.lines = 0
        self.touched: list[str] = []
        self.view: list[str] = []
        self.tagged = False
        self.fence = ""

    def push(self, text: str) -> list[str]:
        """Append text. Returns the lines that it completes, without line ends."""
        *done, self.current = (self.current + text).split("\n")
        for line in done:
            self._line(line)
            self.previous = line
            self.lines += 1
        return done

    @property
    def source(self) -> SourceFile | None:
        return None if self.path is None else self.files.get(self.path)

    def new_hunk(self, at: int, old: int | None, new: int | None) -> DraftHunk:
        """Create a hunk of the current file at line ``at``, with the counts of its header if known."""
        context = self.style.context
        if old is not None and new is not None and 0 < old < 2 * context and new:
            context = max(1, min(old // 2, context))  # the header has fewer lines than two full contexts
        return DraftHunk(self.source, at, old, new, first=at, context=context)

    def _line(self, line: str) -> None:
        hunk = self.hunk
        if hunk is not None and not self._ends(hunk, line):
            self._body(hunk, line)
        else:
            self.hunk, self.view = None, []
            self._header(line)

    def _ends(self, hunk: DraftHunk, line: str) -> bool:
        """Whether ``line`` is outside the hunk, regardless of its header."""
        if line.startswith(("@@ -", "diff --git ", "</patch>", "```")):
            return True
        return hunk.complete and not line.startswith("\\")

    def _body(self, hunk: DraftHunk, line: str) -> None:
        sign, text = (line[0], line[1:]) if line else (" ", "")
        if sign == "\\":
            return
        if sign not in " +-":
            sign, text = " ", line
        if sign != " " and not hunk.changed and hunk.run and hunk.first:
            self.style.context = hunk.run
        hunk.consume(sign, text)
        self.offset += (sign == "+") - (sign == "-")
        if sign != "-":
            self.view = [*self.view[-2:], text]

    def _header(self, line: str) -> None:
        if line.startswith("@@ -"):
            self._start_hunk(line)
        elif line.startswith("diff --git a/"):
            self.style.git_headers = True
            self._start_file(line[13:].partition(" b/")[0])
        elif line.startswith("--- a/"):
            if self.style.git_headers is None:
                self.style.git_headers = False
            self._start_file(line[6:].rstrip())
        elif line.startswith("+++ b/"):
            self._start_file(line[6:].rstrip())
        elif line.startswith("<patch>"):
            self.tagged = True
        elif line.startswith(("```", "~~~")):
            self.fence = "" if self.fence else line[:3]

    def _start_file(self, path: str) -> None:
        if path != self.path:
            self.path, self.offset = path, 0
            if path not in self.touched:
                self.touched.append(path)

    def _start_hunk(self, line: str) -> None:
        match = _HUNK.match(line)
        if match is None:
            self.hunk = self.new_hunk(0, None, None)
            return
        start, old, _, new, heading = match.groups(default="1")
        self.hunk = self.new_hunk(max(0, int(start) - 1), int(old), int(new))
        expected = "" if self.source is None else self.source.heading(self.hunk.at)
        if heading or expected:
            self.style.headings = bool(heading)
