"""Checks a patch by applying it in memory, as ``git apply`` does on disk.

Source: git's ``apply.c`` (``check_patch``, ``apply_one_fragment``, ``find_pos``), version 2.39.

It refuses five patches for which git's result differs from what the patch says: a hunk without old lines whose header
does not name the file's end, where git puts it; the same for a missing file, which git creates; a "no newline" marker
on a line that has one in the file; a change of a folder, which git accepts and does not make; and a path or kind of
file that no answer may touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swe_infer.instance_files import obstacle, why_absent
from swe_infer.patches.diff import FilePatch, Hunk, HunkHeader, PatchError, parse_as_git, refusal, split_lines
from swe_infer.patches.line_index import LineIndex

_CHANGED = "\0"
"""Replaces changed lines, which no later hunk may match, in the alphabet of :class:`LineIndex`."""


class RefusedPatch(PatchError):
    """A patch that must not be applied to any files."""


@dataclass(slots=True)
class Applied:
    """The result of a patch.

    Args:
        files: path to new content, for changed files only; None for a removed file.
        unknown_files: changed paths whose content was not given.
        guessed: git puts a hunk at one of several equal places because it is the nearest to its line number.
    """

    files: dict[str, str | None] = field(default_factory=dict)
    unknown_files: list[str] = field(default_factory=list)
    guessed: bool = False


def apply_patch(text: str, files: Mapping[str, str]) -> Applied:
    """Returns the result of applying ``text`` to ``files``.

    Raises:
        RefusedPatch: a path leaves the repository, or the patch contains a symbolic link or binary data.
        PatchError: ``git apply`` would refuse it.
    """
    patches = parse_as_git(text)
    why = refusal(patches)
    if why is not None:
        raise RefusedPatch(why)
    result = Applied()
    for patch in patches:
        _apply_file(patch, files, result)
    return result


def _apply_file(patch: FilePatch, files: Mapping[str, str], result: Applied) -> None:
    def current(path: str) -> str | None:
        return result.files[path] if path in result.files else files.get(path)

    old, new = patch.old_path, patch.new_path
    if new is not None and new != old:
        if current(new) is not None:
            raise PatchError(f"{new}: already exists")
        removed = {path for path, content in result.files.items() if content is None}
        if old is not None and not patch.copied:
            removed.add(old)
        why = obstacle(files, new, removed) or obstacle({p: c for p, c in result.files.items() if c is not None}, new)
        if why is not None:
            raise PatchError(f"{new}: {why}")
    content = "" if old is None else current(old)
    if content is None:
        if old in result.files:
            raise PatchError(f"{old}: removed by the patch before it is changed")
        if old is not None and (why := why_absent(files, old)) is not None:
            raise PatchError(f"{old}: {why}")
        result.unknown_files.append(old or "")
        return
    content = _apply_hunks(patch, content, result)
    if new is None and content:
        raise PatchError(f"{old}: the patch removes the file but leaves some of its lines")
    if old is not None and not patch.copied and old != new:
        result.files[old] = None
    if new is not None:
        result.files[new] = content


def _apply_hunks(patch: FilePatch, content: str, result: Applied) -> str:
    if not patch.hunks:
        return content
    if (changed := _at_stated_lines(patch.hunks, content)) is not None:
        return changed
    image = _Image(content)
    for number, hunk in enumerate(patch.hunks, 1):
        why = image.apply(hunk)
        if why is not None:
            raise PatchError(f"{patch.path}: hunk {number} of {len(patch.hunks)} {why}")
    result.guessed = result.guessed or image.guessed
    return image.content()


def _at_stated_lines(hunks: Sequence[Hunk], content: str) -> str | None:
    """The content after hunks that follow one another and match where their headers say; None if they do not.

    This is the usual case, and needs no list of the file's lines.
    """
    places = StatedLines(content)
    parts: list[str] = []
    for hunk in hunks:
        old = [line.text + "\n" for line in hunk.lines if line.tag != "+"]
        new = [line.text + "\n" for line in hunk.lines if line.tag != "-"]
        if hunk.header is None or any(line.no_newline for line in hunk.lines):
            return None
        position, ends_in_change = places.position, hunk.lines[-1].tag != " "
        at = places.place(hunk.header, "".join(old), len(new), ends_in_change=ends_in_change)
        if at is None:
            return None
        parts += [content[position:at], *new]
    return "".join([*parts, content[places.position :]])


@dataclass(slots=True)
class StatedLines:
    """Places the hunks of a file, which follow one another, at the lines that their headers state.

    Args:
        position: the offset behind the last hunk.
        lines: the number of lines before it, after the change.
    """

    content: str
    position: int = 0
    lines: int = 0

    def place(self, header: HunkHeader, old: str, new_count: int, *, ends_in_change: bool) -> int | None:
        """The offset of the next hunk; None if it has no old lines, or if git would not take it there.

        Args:
            old: its old lines.
            new_count: the number of its new lines.
            ends_in_change: it has no context behind its last change, so that git takes it only at the file's end.
        """
        start = max(header.new_start - 1, 0)
        at = _line_with(old, self.content, self.position, start - self.lines) if old else -1
        end = at + len(old)
        if at < 0 or (header.old_start <= 1 and start) or (ends_in_change and end != len(self.content)):
            return None
        self.position, self.lines = end, start + new_count
        return at


def _line_with(text: str, content: str, position: int, count: int) -> int:
    """The offset of ``text`` at the start of the line that is ``count`` lines after the one at ``position``; -1 if it
    is not there."""
    at = content.find(text, position)
    while at >= 0 and (count := count - content.count("\n", position, at)) > 0:
        position, at = at, content.find(text, at + 1)
    return at if at >= 0 and count == 0 and (not at or content[at - 1] == "\n") else -1


class _Image:
    """A file to which hunks are applied, one after the other."""

    def __init__(self, content: str) -> None:
        self._lines = split_lines(content)
        self._unchanged: list[str | None] = list(self._lines)
        """The lines that a hunk may match; None in place of changed ones."""
        self._index: LineIndex | None = None
        self._text = ""
        """The same lines in the alphabet of the index, once there is one. A search is a substring search."""
        self.guessed = False

    def content(self) -> str:
        return "".join(self._lines)

    def apply(self, hunk: Hunk) -> str | None:
        """Applies a hunk at the nearest matching position. Returns the reason if there is none."""
        header = hunk.header
        if header is None:
            return "has no readable header"
        old = [line.text + "\n" * (not line.no_newline) for line in hunk.lines if line.tag != "+"]
        new = [line.text + "\n" * (not line.no_newline) for line in hunk.lines if line.tag != "-"]
        trailing = hunk.lines[-1].tag == " "
        guess = max(header.new_start - 1, 0)
        if not old and self._lines and guess != len(self._lines):
            return "adds lines without any line around them"
        at_start, at_end = header.old_start <= 1, not trailing
        at: int | None = guess
        if not self._matches(old, guess, at_start=at_start, at_end=at_end):
            if self._index is None:
                self._index = LineIndex(tuple(self._lines))
                self._text = self._index.encode([line or "" for line in self._unchanged], "exact")
            pattern = self._index.encode(old, "exact")
            if _CHANGED in pattern or pattern not in self._text:
                return "has old lines that are not in the file"
            at = self._find(pattern, guess, at_start=at_start, at_end=at_end)
        if at is None:
            return "does not match the file at the position in its header"
        self._lines[at : at + len(old)] = new
        self._unchanged[at : at + len(old)] = [None] * len(new)
        if self._index is not None:
            self._text = self._text[:at] + _CHANGED * len(new) + self._text[at + len(old) :]
        return None

    def _matches(self, old: Sequence[str], at: int, *, at_start: bool, at_end: bool) -> bool:
        """Whether :meth:`_find` would return ``at``, its guess. Usually it does, and needs no index."""
        end = at + len(old)
        if not old or (at_start and at) or (at_end and end != len(self._unchanged)):
            return False
        return self._unchanged[at:end] == old

    def _find(self, pattern: str, guess: int, *, at_start: bool, at_end: bool) -> int | None:
        """The match nearest to ``guess``; of two equally near ones the later, as in git."""
        text = self._text
        last = len(text) - len(pattern)
        if at_start or at_end:
            if last < 0 or (at_start and at_end and last != 0):
                return None
            at = 0 if at_start else last
            if not text.startswith(pattern, at):
                return None
            self.guessed = self.guessed or (at != guess and text.find(pattern) != text.rfind(pattern))
            return at
        guess = min(guess, len(text))
        after = text.find(pattern, guess)
        before = text.rfind(pattern, 0, guess + len(pattern) - 1) if guess else -1
        if after < 0 or before < 0:
            at = max(after, before)
        else:
            at = after if after - guess <= guess - before else before
        if at >= 0 and at != guess:
            others = text.find(pattern, at + 1) >= 0 or (
                at > 0 and text.rfind(pattern, 0, at + len(pattern) - 1) >= 0
            )
            self.guessed = self.guessed or others
        return at if at >= 0 else None
