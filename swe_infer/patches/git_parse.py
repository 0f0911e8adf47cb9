"""Reads a patch exactly as ``git apply`` does, and refuses what git refuses.

Source: git's ``apply.c`` (``find_header``, ``parse_git_diff_header``, ``parse_fragment``), version 2.39.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from swe_infer.patches.diff import FilePatch, Hunk, Line, PatchError, Tag, parse_hunk_header, unquote_path

__all__ = ["parse_as_git"]

_TIMESTAMP = re.compile(r"[ \t]+\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: [+-]\d\d:?\d\d)?[ \t]*$")
_LONGEST_TIMESTAMP = 64  # what a search for one looks at, so that a long line costs no more
_MODE = re.compile(r"[0-7]{1,6}")
_DEV_NULL = re.compile(r"/dev/null(?:\s|$)")
_SHORTEST_MARKER = 11  # "\ " and ten more: git's sanity check, without the newline


def parse_as_git(text: str) -> list[FilePatch]:
    """The file patches of ``text``.

    Raises:
        PatchError: ``git apply`` would refuse to read it. Line numbers count from 1.
    """
    return _Reader(text.removesuffix("\n").split("\n")).read()


@dataclass(slots=True)
class _Header:
    """The extended header of one ``diff --git``. Flags are git's: was it said?"""

    default: str | None
    old: str | None = None
    new: str | None = None
    old_mode: str | None = None
    new_mode: str | None = None
    is_new: bool = False
    is_delete: bool = False
    renamed: bool = False
    copied: bool = False


@dataclass(slots=True)
class _Reader:
    lines: list[str]
    at: int = 0
    strip: int | None = None
    patches: list[FilePatch] = field(default_factory=list)

    def read(self) -> list[FilePatch]:
        while (patch := self._next_header()) is not None:
            self._hunks(patch)
            if not patch.hunks and not patch.binary and not patch.metadata_only:
                raise PatchError(f"line {self.at}: a file header without a hunk")
            self.patches.append(patch)
        if not self.patches:
            raise PatchError("no file header that git reads")
        return self.patches

    def _next_header(self) -> FilePatch | None:
        lines = self.lines
        while self.at < len(lines):
            line = lines[self.at]
            if line.startswith("@@ -") and parse_hunk_header(line):
                raise PatchError(f"line {self.at + 1}: a hunk without a file header")
            if line.startswith("diff --git "):
                patch = self._git_header()
            elif line.startswith("--- ") and self._is_traditional():
                patch = self._traditional_header()
            else:
                patch = None
            if patch is not None:
                return patch
            self.at += 1
        return None

    def _is_traditional(self) -> bool:
        following = self.lines[self.at + 1 : self.at + 3]
        return len(following) == 2 and following[0].startswith("+++ ") and following[1].startswith("@@ -")

    def _traditional_header(self) -> FilePatch:
        old_text, new_text = (line[4:] for line in self.lines[self.at : self.at + 2])
        number = self.at + 1
        self.at += 2
        old_null, new_null = bool(_DEV_NULL.match(old_text)), bool(_DEV_NULL.match(new_text))
        if self.strip is None:
            # Git guesses -p0 from names without a folder: the new one's, and the old one's unless it is /dev/null.
            names = [_name(new_text, 0)] if old_null else [_name(old_text, 0), _name(new_text, 0)]
            if all(name is not None and "/" not in name for name in names):
                self.strip = 0
        strip = 1 if self.strip is None else self.strip
        old = None if old_null else _name(old_text, strip)
        new = None if new_null else _name(new_text, strip)
        if old_null or new_null:
            name = new if old_null else old
        else:
            name = old if old and new and new.startswith(old) else (new or old)
        if not name:
            raise PatchError(f"line {number}: no file name")
        return FilePatch(None if old_null else name, None if new_null else name)

    def _git_header(self) -> FilePatch | None:
        """Read the extended header; None, and at the same line, where git takes the line for garbage."""
        start = self.at
        header = _Header(_default_name(self.lines[start][len("diff --git ") :], self._strip()))
        at = start + 1
        while at < len(self.lines) and self._extended(header, self.lines[at], at + 1):
            at += 1
        if header.is_new + header.is_delete + header.renamed + header.copied > 1:
            raise PatchError(f"line {at}: header lines that contradict each other")
        if header.old is None and header.new is None:
            header.old = header.new = header.default
        missing = (header.new is None and not header.is_delete) or (header.old is None and not header.is_new)
        if missing:
            raise PatchError(f"line {start + 1}: a git header without file names")
        if at == start + 1:
            return None
        self.at = at
        return FilePatch(
            None if header.is_new else header.old,
            None if header.is_delete else header.new,
            old_mode=header.old_mode,
            new_mode=header.new_mode,
            renamed=header.renamed,
            copied=header.copied,
        )

    def _strip(self) -> int:
        return 1 if self.strip is None else self.strip

    def _extended(self, header: _Header, line: str, number: int) -> bool:
        keyword, _, rest = line.partition(" ")
        two = " ".join(line.split(" ", 2)[:2])
        if keyword == "---" and rest:
            header.old = _verified(header.old, header.is_new, rest, self._strip(), number)
        elif keyword == "+++" and rest:
            header.new = _verified(header.new, header.is_delete, rest, self._strip(), number)
        elif two in ("old mode", "new mode", "new file", "deleted file"):
            _mode_line(header, line, number)
        elif two in ("rename from", "rename old", "copy from"):
            header.renamed, header.copied = two != "copy from", two == "copy from"
            header.old = _name(line[len(two) + 1 :], self._strip() - 1)
        elif two in ("rename to", "rename new", "copy to"):
            header.renamed, header.copied = two != "copy to", two == "copy to"
            header.new = _name(line[len(two) + 1 :], self._strip() - 1)
        elif line.startswith("index "):
            pass
        else:
            return two in ("similarity index", "dissimilarity index")
        return True

    def _hunks(self, patch: FilePatch) -> None:
        lines = self.lines
        while self.at < len(lines) and lines[self.at].startswith("@@ -"):
            patch.hunks.append(self._hunk())
        if patch.hunks:
            old = sum(h.header.old_count for h in patch.hunks if h.header)
            new = sum(h.header.new_count for h in patch.hunks if h.header)
            if patch.old_path is None and old:
                raise PatchError(f"new file {patch.path} depends on old contents")
            if patch.new_path is None and new:
                raise PatchError(f"deleted file {patch.path} still has contents")
        elif self.at < len(lines) and lines[self.at].startswith(("GIT binary patch", "Binary files ", "Files ")):
            patch.binary = True

    def _hunk(self) -> Hunk:
        number = self.at + 1
        header = parse_hunk_header(self.lines[self.at])
        if header is None:
            raise PatchError(f"line {number}: an unreadable hunk header")
        hunk = Hunk(header)
        old, new = header.old_count, header.new_count
        self.at += 1
        while (old or new) and self.at < len(self.lines):
            line = self.lines[self.at]
            sign = line[:1] or " "
            if sign == "\\" and line.startswith("\\ ") and len(line) >= _SHORTEST_MARKER and hunk.lines:
                hunk.lines[-1].no_newline = True
            elif sign in " -+":
                tag: Tag = " " if sign == " " else "-" if sign == "-" else "+"
                old -= tag != "+"
                new -= tag != "-"
                hunk.lines.append(Line(tag, line[1:]))
            else:
                raise PatchError(f"line {self.at + 1}: not a line of a hunk")
            if old < 0 or new < 0:
                raise PatchError(f"line {number}: the hunk's header counts other lines than follow")
            self.at += 1
        if old or new:
            raise PatchError(f"line {number}: the hunk is shorter than its header says")
        if not hunk.changes:
            raise PatchError(f"line {number}: a hunk that changes nothing")
        if self.at < len(self.lines):
            marker = self.lines[self.at]
            if marker.startswith("\\ ") and len(marker) >= _SHORTEST_MARKER:
                hunk.lines[-1].no_newline = True
                self.at += 1
        return hunk


def _mode_line(header: _Header, line: str, number: int) -> None:
    mode = line.rsplit(" ", 1)[1].rstrip("\r")
    if " mode " not in line or not _MODE.fullmatch(mode):
        raise PatchError(f"line {number}: invalid mode")
    if line.startswith("new file mode "):
        header.is_new, header.new, header.new_mode = True, header.default, mode
    elif line.startswith("deleted file mode "):
        header.is_delete, header.old, header.old_mode = True, header.default, mode
    elif line.startswith("old mode "):
        header.old_mode = mode
    else:
        header.new_mode = mode


def _name(text: str, strip: int) -> str | None:
    """The file name of a header line, ``strip`` leading components removed; None where fewer are there."""
    if text.startswith('"') and '"' in text[1:]:
        name = unquote_path(text[: text.rindex('"') + 1])
    else:
        name = text.split("\t", 1)[0].split("\r", 1)[0]
        name = name[:-_LONGEST_TIMESTAMP] + _TIMESTAMP.sub("", name[-_LONGEST_TIMESTAMP:])
    for _ in range(max(strip, 0)):
        _, slash, name = name.partition("/")
        if not slash:
            return None
    return re.sub("/{2,}", "/", name) or None


def _verified(known: str | None, null: bool, text: str, strip: int, number: int) -> str | None:
    if null or (known is not None and _DEV_NULL.match(text)):
        if not _DEV_NULL.match(text) or not null:
            raise PatchError(f"line {number}: the git header and the file line disagree about /dev/null")
        return known
    name = _name(text, strip)
    if known is not None and name != known:
        raise PatchError(f"line {number}: the git header and the file line name different files")
    return name


def _default_name(text: str, strip: int) -> str | None:
    """The name that both halves of a ``diff --git`` line share, if they do."""
    if text.startswith('"'):
        middle = text.find('" ', 1) + 1
    else:
        middle = len(text) // 2
        # The halves "a/X b/X" are equally long, so the blank between them stands in the middle.
        if len(text) % 2 == 0 or text[middle : middle + 1] != " ":
            middle = text.find(" ")
    if middle <= 0:
        return None
    old, new = _name(text[:middle], strip), _name(text[middle + 1 :], strip)
    return old if old == new else None
