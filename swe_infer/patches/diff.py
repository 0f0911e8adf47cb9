"""Unified diffs with git's extensions: their parts, and how they are written.

Format: ``git diff``'s "Generating patch text with -p", and POSIX ``diff -u``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "CONTEXT",
    "NO_NEWLINE",
    "FilePatch",
    "Hunk",
    "HunkHeader",
    "Line",
    "PatchError",
    "Tag",
    "parse_hunk_header",
    "quote_path",
    "split_lines",
    "unquote_path",
    "write_file",
]

CONTEXT = 3
"""Context lines around a change, as git writes them."""

NO_NEWLINE = "\\ No newline at end of file"

Tag = Literal[" ", "-", "+"]


class PatchError(Exception):
    """A patch that cannot be read or applied; ``str(error)`` says why, in one line."""


@dataclass(slots=True)
class Line:
    """One line of a hunk, without its sign and without its newline.

    Args:
        no_newline: a "No newline at end of file" marker follows it.
        bare: it stood without a sign in the text (an empty line, or one whose leading blank was lost).
    """

    tag: Tag
    text: str
    no_newline: bool = False
    bare: bool = False


@dataclass(frozen=True, slots=True)
class HunkHeader:
    """``@@ -old_start,old_count +new_start,new_count @@ heading``."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    heading: str = ""


@dataclass(slots=True)
class Hunk:
    """Some lines of one file. ``header`` is None where the text has no readable one."""

    header: HunkHeader | None
    lines: list[Line] = field(default_factory=list)

    @property
    def old_count(self) -> int:
        return sum(line.tag != "+" for line in self.lines)

    @property
    def new_count(self) -> int:
        return sum(line.tag != "-" for line in self.lines)

    @property
    def changes(self) -> bool:
        """Whether any line is added or removed."""
        return any(line.tag != " " for line in self.lines)


@dataclass(slots=True)
class FilePatch:
    """What a patch does to one file. A path is None on the side where the file does not exist.

    Args:
        renamed: ``rename from`` and ``rename to`` were there; ``copied`` likewise.
        binary: its content is not text ("Binary files differ", "GIT binary patch").
    """

    old_path: str | None
    new_path: str | None
    hunks: list[Hunk] = field(default_factory=list)
    old_mode: str | None = None
    new_mode: str | None = None
    renamed: bool = False
    copied: bool = False
    binary: bool = False

    @property
    def path(self) -> str:
        """The path to name it by."""
        return self.new_path or self.old_path or ""

    @property
    def metadata_only(self) -> bool:
        """Whether it says something without a hunk: a mode, a rename, a copy, an empty file made or removed."""
        changed_mode = self.old_mode is not None and self.new_mode is not None and self.old_mode != self.new_mode
        created_or_removed = (self.old_path is None) != (self.new_path is None)
        return not self.hunks and (changed_mode or self.renamed or self.copied or created_or_removed)


_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@(.*)")


def parse_hunk_header(line: str) -> HunkHeader | None:
    """Read a hunk header as git does; None where it is none."""
    match = _HUNK.match(line)
    if match is None:
        return None
    old_start, old_count, new_start, new_count, heading = match.groups()
    return HunkHeader(
        int(old_start),
        1 if old_count is None else int(old_count),
        int(new_start),
        1 if new_count is None else int(new_count),
        heading.strip(),
    )


def split_lines(content: str) -> list[str]:
    """Lines with their newline; only ``\\n`` ends a line, as for git. The last may lack it."""
    lines = content.split("\n")
    last = lines.pop()
    whole = [line + "\n" for line in lines]
    return [*whole, last] if last else whole


_ESCAPES = {
    "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", '"': '"', "\\": "\\",
}  # fmt: skip
_ESCAPED = re.compile(rb'\\([0-3][0-7]{2}|[abtnvfr"\\])')
_NAMES = {ord(char): f"\\{name}" for name, char in _ESCAPES.items()}


def unquote_path(name: str) -> str:
    """Undo git's C-style quoting of a path; a path without quotes is returned as it is."""
    if len(name) < 2 or not (name.startswith('"') and name.endswith('"')):
        return name

    def decode(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes([int(escape, 8)]) if len(escape) == 3 else _ESCAPES[escape.decode()].encode()

    raw = _ESCAPED.sub(decode, name[1:-1].encode("utf-8", "surrogatepass"))
    return raw.decode("utf-8", "replace")


def quote_path(name: str) -> str:
    """Quote a path as git does, where it holds a character that a header line cannot."""
    quoted = name.translate(_NAMES)
    quoted = "".join(char if char >= " " and char != "\x7f" else f"\\{ord(char):03o}" for char in quoted)
    return f'"{quoted}"' if quoted != name else name


def write_file(patch: FilePatch, hunks: Iterable[Sequence[Line]] = (), starts: Iterable[tuple[int, int]] = ()) -> str:
    """The text of one file's patch, with git's header.

    Args:
        hunks: the lines of each hunk, in the file's order.
        starts: for each of them, how many lines of the old and of the new file come before it.
    """
    parts = [*_header(patch)]
    for lines, (old_before, new_before) in zip(hunks, starts, strict=True):
        old = sum(line.tag != "+" for line in lines)
        new = sum(line.tag != "-" for line in lines)
        parts.append(f"@@ -{_range(old_before, old)} +{_range(new_before, new)} @@")
        for line in lines:
            parts.append(line.tag + line.text)
            if line.no_newline:
                parts.append(NO_NEWLINE)
    return "\n".join(parts) + "\n"


def _range(before: int, count: int) -> str:
    """Git's form: the first line counted from 1, or the line before an empty range."""
    start = before + 1 if count else before
    return str(start) if count == 1 else f"{start},{count}"


def _header(patch: FilePatch) -> Iterator[str]:
    old_name = patch.old_path or patch.new_path or ""
    new_name = patch.new_path or patch.old_path or ""
    old, new = quote_path(f"a/{old_name}"), quote_path(f"b/{new_name}")
    yield f"diff --git {old} {new}"
    if patch.old_path is None:
        yield f"new file mode {patch.new_mode or '100644'}"
    elif patch.new_path is None:
        yield f"deleted file mode {patch.old_mode or '100644'}"
    elif patch.old_mode and patch.new_mode and patch.old_mode != patch.new_mode:
        yield f"old mode {patch.old_mode}"
        yield f"new mode {patch.new_mode}"
    if patch.renamed or patch.copied:
        verb = "rename" if patch.renamed else "copy"
        yield f"{verb} from {quote_path(old_name)}"
        yield f"{verb} to {quote_path(new_name)}"
    if patch.hunks:
        yield f"--- {old if patch.old_path is not None else '/dev/null'}"
        yield f"+++ {new if patch.new_path is not None else '/dev/null'}"
