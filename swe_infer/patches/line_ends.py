"""Restores line ends. A prompt shows ``\\r\\n`` and ``\\r`` as ``\\n``, so an answer has ``\\n`` there too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from swe_infer.patches.diff import CONTEXT, FilePatch, Line, split_lines, write_file
from swe_infer.patches.edit import line_diff, without_newlines

_END = re.compile(r"(\r\n|\r|\n)")


def is_mixed(content: str) -> bool:
    """Whether a file's lines end in different ways, or in ``\\r``. Git sees other lines in it than a prompt shows."""
    if "\r" not in content:
        return False
    dos = content.count("\r\n")
    return not (dos == content.count("\r") == content.count("\n") and content.endswith("\n"))


def as_shown(content: str) -> str:
    """A file with ``\\n`` as its only line end, as a prompt shows it."""
    return content.replace("\r\n", "\n").replace("\r", "\n")


def shown_lines(content: str) -> list[tuple[str, str]]:
    """The lines as a prompt shows them, each with its end; the end of the last one may be empty."""
    parts = _END.split(content)
    lines = list(zip(parts[::2], [*parts[1::2], ""], strict=True))
    return lines if parts[-1] else lines[:-1]


def with_line_ends(
    patch: FilePatch, hunks: Sequence[Sequence[Line]], starts: Iterable[tuple[int, int]], content: str
) -> str:
    """Converts the patch of a file as shown to a patch of the file.

    An added line ends like the line that it replaces, or else like the line before it.

    Args:
        hunks: the lines of each hunk, with the texts that the file has.
        starts: for each hunk, the number of shown lines before it in the old and in the new file.
        content: the file.
    """
    old = shown_lines(content)
    usual = Counter(end for _, end in old if end).most_common(1)[0][0]
    new: list[tuple[str, str]] = []
    at = 0
    for hunk, (start, _) in zip(hunks, starts, strict=True):
        new += old[at:start]
        at = start
        replaced: list[str] = []
        for line in hunk:
            if line.tag == "+":
                end = replaced.pop(0) if replaced else new[-1][1] if new else ""
                new.append((line.text, "" if line.no_newline else end or usual))
                continue
            if line.tag == "-":
                replaced.append(old[at][1])
            else:
                replaced.clear()
                new.append(old[at])
            at += 1
    new += old[at:]
    marked = without_newlines(line_diff(split_lines(content), split_lines("".join(text + end for text, end in new))))
    parts = list(_with_context(marked))
    return write_file(patch, [marked[first:last] for first, last, _ in parts], [before for *_, before in parts])


def _with_context(lines: Sequence[Line]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """The ranges of ``lines`` that are hunks, each with the number of old and new lines before it."""
    ranges: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        if line.tag != " ":
            first, last = max(0, number - CONTEXT), min(len(lines), number + CONTEXT + 1)
            if ranges and first <= ranges[-1][1]:
                first = ranges.pop()[0]
            ranges.append((first, last))
    old = new = at = 0
    for first, last in ranges:
        old += sum(line.tag != "+" for line in lines[at:first])
        new += sum(line.tag != "-" for line in lines[at:first])
        at = first
        yield first, last, (old, new)
