"""Restores bytes that are not UTF-8, and line ends. A prompt shows U+FFFD and ``\\n`` in their place, so an answer
has U+FFFD and ``\\n`` there too.

Such an answer is matched against the files as shown in the prompt, and the bytes are restored in its patch.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from swe_infer.instance_files import KnownFiles, obstacle, why_absent
from swe_infer.patches import line_ends
from swe_infer.patches.apply import apply_patch
from swe_infer.patches.diff import FilePatch, Hunk, Line, PatchError, parse_as_git, split_lines, write_file
from swe_infer.patches.edit import line_diff, without_newlines

MARK = "\ufffd"
RESTORED = "restored bytes that are not UTF-8"
RESTORED_ENDS = "restored line ends"

_MOST_MARKS = 1_000
"""Maximum undecodable places in one line; lines with more are data."""


class AsShown(KnownFiles):
    """Files with U+FFFD in place of bytes that are not UTF-8, and with ``\\n`` in place of mixed line ends.

    ``changes`` says how files that were read differ from the repository's, in the words for a repaired patch.

    Args:
        marks: False: bytes that are not UTF-8 are kept.
    """

    def __init__(self, files: Mapping[str, str], *, marks: bool) -> None:
        self._files = files
        self._marks = marks
        self.changes: dict[str, None] = {}

    def __getitem__(self, path: str) -> str:
        content = self._files[path]
        shown = as_shown(content) if self._marks else content
        if shown != content:
            self.changes[RESTORED] = None
        if line_ends.is_mixed(shown):
            self.changes[RESTORED_ENDS] = None
            return line_ends.as_shown(shown)
        return shown

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: object) -> bool:
        return path in self._files

    def why_absent(self, path: str) -> str | None:
        return why_absent(self._files, path)

    def obstacle(self, path: str, removed: Container[str]) -> str | None:
        return obstacle(self._files, path, removed)


def may_have_marks(answer: str) -> bool:
    """Whether an answer contains U+FFFD, literally or as a JSON escape."""
    return MARK in answer or "\\ufffd" in answer.lower()


def as_shown(text: str) -> str:
    """A text with ``surrogateescape`` surrogates as a prompt shows it."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def restored(patch: str, files: Mapping[str, str]) -> str | None:
    """Converts a patch for files :class:`AsShown` to a patch for the original files.

    Returns:
        None if it is ambiguous which bytes are meant.
    """
    try:
        patches = parse_as_git(patch)
        contents = [files.get(each.old_path or "") for each in patches]
        if MARK not in patch and not any(content is not None and line_ends.is_mixed(content) for content in contents):
            return patch
        text = "".join(map(_restored_file, patches, contents))
        apply_patch(text, files)
    except PatchError:
        return None
    return text


def _restored_file(patch: FilePatch, content: str | None) -> str:
    mixed = content is not None and line_ends.is_mixed(content)
    base = [] if content is None else [line.removesuffix("\n") for line in split_lines(content)]
    if content is not None and mixed:
        base = [text for text, _ in line_ends.shown_lines(content)]
    by_shown: dict[str, set[str]] = {}
    for line in base:
        by_shown.setdefault(as_shown(line), set()).add(line)
    hunks: list[list[Line]] = []
    starts: list[tuple[int, int]] = []
    for hunk in patch.hunks:
        header = hunk.header
        if header is None:
            raise PatchError("a hunk without a header")
        old, new = header.old_start - bool(hunk.old_count), header.new_start - bool(hunk.new_count)
        starts.append((max(old, 0), max(new, 0)))
        hunks.append(_restored_hunk(hunk, base[starts[-1][0] :], by_shown))
    if content is not None and mixed and hunks:
        if not all(map(partial(_is_at, base), hunks, starts)):
            hunks, starts = [_whole_change(patch, hunks, starts, line_ends.as_shown(content))], [(0, 0)]
        return line_ends.with_line_ends(patch, hunks, starts, content)
    return write_file(patch, hunks, starts)


def _is_at(base: Sequence[str], hunk: Sequence[Line], start: tuple[int, int]) -> bool:
    """Whether a hunk matches the lines of the file at its line number; else git moves it."""
    old = [line.text for line in hunk if line.tag != "+"]
    return base[start[0] : start[0] + len(old)] == old


def _whole_change(
    patch: FilePatch, hunks: Sequence[Sequence[Line]], starts: Sequence[tuple[int, int]], content: str
) -> list[Line]:
    """The change of ``content`` by hunks that git moves, as one hunk with all of its lines."""
    changed = apply_patch(write_file(patch, hunks, starts), {patch.old_path or "": content}).files[patch.path]
    return without_newlines(line_diff(split_lines(content), split_lines(changed or "")))


def _restored_hunk(hunk: Hunk, base: Sequence[str], by_shown: Mapping[str, set[str]]) -> list[Line]:
    """The lines of a hunk with the file's bytes.

    Args:
        base: the file's lines from the hunk's start.
        by_shown: the file's lines by their text in the prompt.
    """
    lines: list[Line] = []
    removed: list[str] = []
    at = 0
    for line in hunk.lines:
        text = line.text
        if line.tag != "+":
            if MARK in text:
                text = base[at] if at < len(base) and as_shown(base[at]) == text else _only(by_shown.get(text, set()))
            removed += _marks(text) if line.tag == "-" else []
            at += 1
        lines.append(replace(line, text=text))
    changed = [n for n, line in enumerate(lines) if line.tag == "+" and MARK in line.text]
    for number in list(changed):
        found = by_shown.get(lines[number].text, set())
        if len(found) == 1:
            lines[number] = replace(lines[number], text=next(iter(found)))
            changed.remove(number)
            for mark in _marks(lines[number].text):
                if mark in removed:
                    removed.remove(mark)
    if sum(lines[number].text.count(MARK) for number in changed) == len(removed):
        marks = iter(removed)
        for number in changed:
            first, *rest = lines[number].text.split(MARK)
            lines[number] = replace(lines[number], text=first + "".join(next(marks) + part for part in rest))
    return lines


def _only(found: set[str]) -> str:
    if len(found) != 1:
        raise PatchError("it is not clear which bytes are meant")
    return next(iter(found))


def _marks(line: str) -> list[str]:
    """The parts of a line that are shown as U+FFFD, in order."""
    found: list[str] = []
    data = line.encode("utf-8", "surrogateescape")
    while len(found) < _MOST_MARKS:
        try:
            return [*found, *(char for char in data.decode() if char == MARK)]
        except UnicodeDecodeError as error:
            found += [char for char in data[: error.start].decode() if char == MARK]
            found.append(data[error.start : error.end].decode("utf-8", "surrogateescape"))
            data = data[error.end :]
    raise PatchError("a line of too many undecodable bytes")
