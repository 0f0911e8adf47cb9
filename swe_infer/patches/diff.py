"""Unified diffs with git's extensions: data types, a parser that accepts what git does, a writer, and path checks.

Format: ``git diff``'s "Generating patch text with -p", and POSIX ``diff -u``. Reading: git's ``apply.c``
(``find_header``, ``parse_git_diff_header``, ``parse_fragment``), version 2.39.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

CONTEXT = 3
"""Context lines around a change, as git writes them."""

NO_NEWLINE = "\\ No newline at end of file"

Tag = Literal[" ", "-", "+"]


class PatchError(Exception):
    """A patch that cannot be parsed or applied; ``str(error)`` says why, in one line."""


@dataclass(slots=True)
class Line:
    """One line of a hunk, without its sign and newline.

    Args:
        no_newline: a "No newline at end of file" marker follows it.
        bare: it had no sign in the text (an empty line, or one that lost its leading blank).
    """

    tag: Tag
    text: str
    no_newline: bool = False
    bare: bool = False


@dataclass(frozen=True, slots=True)
class HunkHeader:
    """``@@ -old_start,old_count +new_start,new_count @@``."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int


@dataclass(slots=True)
class Hunk:
    """A hunk. ``header`` is None if it is missing or malformed.

    Args:
        heading: the text behind the header, usually a line of the file that begins the block around the hunk.
        anchors: lines of the file, from the outermost block to the innermost, that the hunk is behind.
        at_end: it ends at the end of the file.
    """

    header: HunkHeader | None
    lines: list[Line] = field(default_factory=list)
    heading: str = ""
    anchors: tuple[str, ...] = ()
    at_end: bool = False

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
    """The changes to one file. A path is None on the side where the file does not exist.

    Args:
        renamed: it has ``rename from`` and ``rename to`` lines; ``copied`` likewise.
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
        """The path for messages."""
        return self.new_path or self.old_path or ""

    @property
    def metadata_only(self) -> bool:
        """Whether it changes something without a hunk: a mode, a rename, a copy, an empty file added or removed."""
        changed_mode = self.old_mode is not None and self.new_mode is not None and self.old_mode != self.new_mode
        created_or_removed = (self.old_path is None) != (self.new_path is None)
        return not self.hunks and (changed_mode or self.renamed or self.copied or created_or_removed)


_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")


def parse_hunk_header(line: str, form: re.Pattern[str] = _HUNK) -> HunkHeader | None:
    """Parses a hunk header, by default as git does; None if it is malformed. A missing count is 1."""
    match = form.match(line)
    return None if match is None else HunkHeader(*(1 if number is None else int(number) for number in match.groups()))


def tag_of(line: str) -> Tag:
    """The tag of a hunk's line by its sign. A line without one is context."""
    return "+" if line[:1] == "+" else "-" if line[:1] == "-" else " "


_OTHER_LINE_ENDS = "\r\v\f\x1c\x1d\x1e"
"""The further ASCII characters that end a line for :meth:`str.splitlines`."""


def split_lines(content: str) -> list[str]:
    """Splits into lines with their newline. Only ``\\n`` ends a line, as in git. The last may lack it."""
    if content.isascii() and not any(end in content for end in _OTHER_LINE_ENDS):
        return content.splitlines(keepends=True)  # half the time
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
    """Removes git's C-style quoting of a path. Returns a path without quotes unchanged."""
    if len(name) < 2 or not (name.startswith('"') and name.endswith('"')):
        return name

    def decode(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes([int(escape, 8)]) if len(escape) == 3 else _ESCAPES[escape.decode()].encode()

    raw = _ESCAPED.sub(decode, name[1:-1].encode("utf-8", "surrogatepass"))
    return raw.decode("utf-8", "replace")


def quote_path(name: str) -> str:
    """Quotes a path as git does, if it contains a character that a header line must not.

    It also quotes a path with a blank before a slash, because git does not recognise it in a ``diff --git`` line.
    """
    quoted = name.translate(_NAMES)
    quoted = "".join(char if char >= " " and char != "\x7f" else f"\\{ord(char):03o}" for char in quoted)
    return f'"{quoted}"' if quoted != name or " /" in name else name


def write_file(patch: FilePatch, hunks: Iterable[Sequence[Line]] = (), starts: Iterable[tuple[int, int]] = ()) -> str:
    """The text of one file's patch, with git's header.

    Args:
        hunks: the lines of each hunk, in the file's order.
        starts: for each hunk, the number of lines before it in the old and in the new file.
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


def reversed_patch(text: str) -> str:
    """The patch that undoes ``text``.

    Raises:
        PatchError: git cannot parse ``text``, or it copies a file or changes a binary one, which cannot be undone
            from its text.
    """
    return "".join(map(_reversed_file, parse_as_git(text)))


def _reversed_file(patch: FilePatch) -> str:
    if patch.binary or patch.copied:
        raise PatchError(f"{patch.path}: a {'binary file' if patch.binary else 'copy'} cannot be reversed")
    undone = replace(
        patch,
        old_path=patch.new_path,
        new_path=patch.old_path,
        old_mode=patch.new_mode,
        new_mode=patch.old_mode,
    )
    starts = []
    for hunk in patch.hunks:
        assert hunk.header is not None  # parse_as_git refuses a hunk without one
        header = hunk.header
        starts.append((header.new_start - (header.new_count > 0), header.old_start - (header.old_count > 0)))
    return write_file(undone, [_reversed_lines(hunk.lines) for hunk in patch.hunks], starts)


def _reversed_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines of a hunk with added and removed ones swapped. Removed lines come first, as git writes them."""
    found: list[Line] = []
    for is_context, run in itertools.groupby(lines, key=lambda line: line.tag == " "):
        swapped = [replace(line, tag=_OPPOSITE[line.tag]) for line in run]
        found += swapped if is_context else sorted(swapped, key=lambda line: line.tag == "+")
    return found


_OPPOSITE: Mapping[Tag, Tag] = {"+": "-", "-": "+", " ": " "}


def write_new_file(path: str, lines: Sequence[Line], mode: str | None = None) -> str:
    """The text of a patch that creates a file of the added ``lines``."""
    hunks = [lines] if lines else []
    return write_file(FilePatch(None, path, [Hunk(None)] * len(hunks), new_mode=mode), hunks, [(0, 0)] * len(hunks))


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


_ZONE = re.compile(r" [+-]\d\d:?\d\d$")
_TIME = re.compile(r" \d\d:\d\d:\d\d(?:\.\d+)?$")
_DATE = re.compile(r"(?P<blank>\t| +)(?:\d\d)?\d\d-\d\d-\d\d$")
_LONGEST_TIMESTAMP = 64  # characters that are searched for one or for a remark, which bounds the cost of long lines
_EPOCH = re.compile(
    r"(?P<date>1969-12-31|1970-01-01) (?P<hour>[0-2]\d):(?P<minute>[0-5]\d):00(?:\.0+)?"
    r" (?P<sign>[-+])(?P<zone_hour>[0-2]\d):?(?P<zone_minute>[0-5]\d)$"
)
_MODE = re.compile(r"[0-7]{1,6}")
_INDEX = re.compile(r"index [^.]{0,40}\.\.[^ ]{0,40} (?:\s*(?P<mode>[0-7]{1,6})(?:\s|$))?")
"""An index line with a mode behind its hashes; it is None if git cannot read it."""
_FILE_TYPE, _REGULAR, _LINK = 0o170000, 0o100000, 0o120000
_DEV_NULL = re.compile(r"/dev/null(?:\s|$)")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_BLANK = re.compile(r"[ \t]")
_LONGEST_GIT_LINE = 4096  # bounds the cost of a line of many blanks
_SHORTEST_MARKER = 11  # "\ " and ten more characters: git's sanity check, without the newline


def parse_as_git(text: str) -> list[FilePatch]:
    """Parses the file patches of ``text``.

    Raises:
        PatchError: ``git apply`` would fail to parse it. Line numbers count from 1.
    """
    return _GitReader(text.removesuffix("\n").split("\n")).read()


@dataclass(slots=True)
class _Header:
    """The extended header of one ``diff --git``, with git's own flags."""

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
class _GitReader:
    lines: list[str]
    at: int = 0
    strip: int | None = None
    ignored: str | None = None
    """The name in a line ``diff --git`` that git ignores, but with which it compares those of the next header."""
    patches: list[FilePatch] = field(default_factory=list)

    def read(self) -> list[FilePatch]:
        while (patch := self._next_header()) is not None:
            self._hunks(patch)
            if not patch.hunks and not patch.binary and not patch.metadata_only:
                raise PatchError(f"line {self.at}: a file header without a hunk")
            self.patches.append(patch)
        if not self.patches:
            raise PatchError("no file header that git accepts")
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
                self.ignored = None
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
            # Git infers -p0 if the new name has no folder.
            name = None if new_null else _dated_name(new_text, 0)
            if name is not None and "/" not in name:
                self.strip = 0
        strip = 1 if self.strip is None else self.strip
        old = None if old_null else _dated_name(old_text, strip)
        new = None if new_null else _dated_name(new_text, strip)
        if old_null or new_null:
            name = new if old_null else old
        else:
            name = old if old and new and new.startswith(old) else (new or old)
            old_null = is_epoch(old_text)
            new_null = not old_null and is_epoch(new_text)
        if not name:
            raise PatchError(f"line {number}: no file name")
        return FilePatch(None if old_null else name, None if new_null else name)

    def _git_header(self) -> FilePatch | None:
        """Parses the extended header. Returns None, without advancing, if git would ignore the line."""
        start = self.at
        default = _default_name(self.lines[start][len("diff --git ") :], self._strip())
        header = _Header(default, self.ignored, self.ignored)
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
            self.ignored = header.old
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
            _index_line(header, line, number)
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
                tag = tag_of(sign)
                old -= tag != "+"
                new -= tag != "-"
                hunk.lines.append(Line(tag, line[1:]))
            else:
                raise PatchError(f"line {self.at + 1}: not a line of a hunk")
            if old < 0 or new < 0:
                raise PatchError(f"line {number}: the hunk's lines do not match the counts in its header")
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


def _index_line(header: _Header, line: str, number: int) -> None:
    """Reads the mode, whose type git compares with that of the file."""
    found = _INDEX.match(line)
    if found is None:
        return
    mode = found["mode"] or "0"
    if int(mode, 8) & _FILE_TYPE not in (_REGULAR, _LINK):
        raise PatchError(f"line {number}: not the mode of a file")
    header.old_mode = mode


def split_timestamp(text: str) -> tuple[str, str]:
    """Splits a file line of a header into the name and the date behind it, as git does for a traditional header.

    The date is empty if there is none. It follows a tab or blanks.
    """
    head, tail = text[:-_LONGEST_TIMESTAMP], text[-_LONGEST_TIMESTAMP:]
    rest = _TIME.sub("", _ZONE.sub("", tail))
    date = _DATE.search(rest)
    if date is None:
        return text, ""
    start = len(head) + date.start()
    name = text[:start] if date["blank"] == "\t" else text[:start].rstrip(" ")
    return (name, text[len(name) :]) if name else (text, "")


def is_epoch(text: str) -> bool:
    """Whether the date behind a tab in a file line of a header is the epoch, which means for git that the file does
    not exist."""
    _, tab, date = text.rpartition("\t")
    match = _EPOCH.match(date) if tab else None
    if match is None:
        return False
    zone = int(match["zone_hour"]) * 60 + int(match["zone_minute"])
    minutes = int(match["hour"]) * 60 + int(match["minute"]) - (zone if match["sign"] == "+" else -zone)
    return minutes == (24 * 60 if match["date"] == "1969-12-31" else 0)


def _dated_name(text: str, strip: int) -> str | None:
    """The file name of a line of a traditional header, which may have a date behind it."""
    if text.startswith('"') and (quoted := _quoted(text)) is not None:
        return _stripped(quoted[0], strip)
    name, date = split_timestamp(text)
    return _stripped(name, strip) if date else _name(text, strip)


def _name(text: str, strip: int) -> str | None:
    """The file name of a header line without ``strip`` leading components; None if it has fewer."""
    if text.startswith('"') and (quoted := _quoted(text)) is not None:
        return _stripped(quoted[0], strip)
    return _stripped(text.split("\t", 1)[0].split("\r", 1)[0], strip)


def _quoted(text: str) -> tuple[str, str] | None:
    """The unquoted name at the start of ``text``, and the rest behind it; None if the quotes are not closed."""
    match = _QUOTED.match(text)
    return None if match is None else (unquote_path(match[0]), text[match.end() :])


def _stripped(name: str, strip: int) -> str | None:
    for _ in range(max(strip, 0)):
        _, slash, name = name.partition("/")
        if not slash:
            return None
    return re.sub("/{2,}", "/", name) or None


def _verified(known: str | None, null: bool, text: str, strip: int, number: int) -> str | None:
    if null or (known is not None and _DEV_NULL.match(text)):
        if known is not None or not _DEV_NULL.match(text):
            raise PatchError(f"line {number}: the git header and the file line disagree about /dev/null")
        return None
    name = _name(text, strip)
    if known is not None and name != known:
        raise PatchError(f"line {number}: the git header and the file line name different files")
    return name


def _default_name(text: str, strip: int) -> str | None:
    """The name that both halves of a ``diff --git`` line share, or None. It decides where a name with blanks ends."""
    text = text[:_LONGEST_GIT_LINE]
    if text.startswith('"'):
        first = _quoted(text)
        if first is None:
            return None
        rest = first[1].lstrip(" \t\r")
        second = _quoted(rest) if rest.startswith('"') else (rest, "")
        name = _without_prefix(first[0], strip)
        return name if second is not None and name == _without_prefix(second[0], strip) else None
    name = _without_prefix(text, strip)
    if name is None:
        return None
    if '"' in name:
        second = _quoted(name[name.index('"') :])
        shared = None if second is None else _without_prefix(second[0], strip)
        before = name[: name.index('"')]
        return shared if shared and before.startswith(shared) and before[len(shared) :][:1] in (" ", "\t") else None
    for blank in _BLANK.finditer(name):
        half = _without_prefix(name[blank.end() :], strip)
        if half is None:
            return None
        if half == name[: blank.start()]:
            return half
    return None


def _without_prefix(name: str, strip: int) -> str | None:
    """``name`` without its first ``strip`` components; None if it is absolute or has fewer."""
    parts = name.split("/", strip) if strip > 0 else [name]
    return None if name.startswith("/") or len(parts) <= strip else parts[-1]


_MODES = frozenset({"100644", "100755", "100664"})
_DRIVE = re.compile(r"[A-Za-z]:")
_SIDE = re.compile(r"[abciow]/")
_DOT_GIT = re.compile(r"\.git[ .]*(?::.*)?|git~1[ .]*", re.IGNORECASE)
_DECORATION = "`*'\" \t\r"
_REMARK = re.compile(
    r"\s+(?:\((?:original|modified|updated|old|new|new file|before|after|current|deleted|working copy|revision \d+)"
    r"\)|\d{4}-\d\d-\d\d[T ][\d:.]{5,18}(?: ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? "
    r"(?:[A-Z][a-z]{2} [ \d]\d|\d{1,2} [A-Z][a-z]{2}) [\d :]{8,14}(?: [+-]\d{4})?)$",
    re.IGNORECASE,
)
"""A remark or a date behind a path. Git knows other dates only, and takes these for a part of the name."""
_ROOT = re.compile(
    r"/(?:testbed|src|source|repo|repository|app|code|project|root|tmp|mnt/data|home/[^/]+|workspaces?(?:/[^/]+(?=/.*/))?)/"
)
"""Folders in which agents and prompts show a repository."""
_MOST_FOLDERS = 16  # folders before the repository's in an absolute path


def unsafe_path(path: str) -> str | None:
    """Why a path must not be written, or None. Paths are relative to the repository's root, with ``/``."""
    if not path:
        return "an empty path"
    if path.startswith(("/", "\\", "~")) or _DRIVE.match(path):
        return f"the path {path!r} is absolute"
    parts = re.split(r"[/\\]", path)
    if ".." in parts:
        return f"the path {path!r} leaves the repository"
    if any(_DOT_GIT.fullmatch(part) for part in parts):
        return f"the path {path!r} is in .git"
    if "." in parts or "" in parts or not path.isprintable():
        return f"the path {path!r} is not in normal form"
    return None


def refusal(patches: Iterable[FilePatch]) -> str | None:
    """Why a patch is refused regardless of the files; None if it is not."""
    for patch in patches:
        for path in (patch.old_path, patch.new_path):
            why = None if path is None else unsafe_path(path)
            if why is not None:
                return why
        for mode in (patch.old_mode, patch.new_mode):
            if mode == "120000":
                return f"{patch.path!r} is a symbolic link"
            if mode is not None and mode not in _MODES:
                return f"{patch.path!r} has the mode {mode}, which is not a regular file's"
        if patch.binary:
            return f"{patch.path!r} is a binary file"
    return None


class PathIndex:
    """Resolves the paths of a patch to files of the prompt."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files
        self._by_name: dict[str, list[str]] = {}
        for path in files:
            self._by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)

    def clean(self, written: str) -> str:
        """A path as written, relative to the repository's root.

        Removes the side (``a/``, ``b/``), a date, remarks such as ``(original)``, decoration such as backticks, and
        the folder that a container has the repository in. A path of the prompt is returned unchanged.
        """
        path = written.strip(_DECORATION)
        if path in self._files:
            return path
        if path[2:] in self._files and _SIDE.match(path):
            return path[2:]
        path = split_timestamp(path)[0].split("\t", 1)[0].strip(_DECORATION)
        path = path[:-_LONGEST_TIMESTAMP] + _REMARK.sub("", path[-_LONGEST_TIMESTAMP:])
        path = path.strip(_DECORATION).replace("\\", "/")
        if path in self._files:
            return path
        path = _without_dots(path)
        if _SIDE.match(path) and not path.startswith("a//"):
            path = _without_dots(path[2:])
        if path.startswith("/") or _DRIVE.match(path):
            return self._in_repository(path)
        plain = "/".join(part for part in path.split("/") if part not in ("", "."))
        return plain if plain in self._files else path

    def _in_repository(self, path: str) -> str:
        """An absolute path relative to the repository's root, if it can mean only a file of the repository."""
        parts = _DRIVE.sub("", path, count=1).strip("/").split("/")
        root = _ROOT.match(path)
        below = path[root.end() :] if root else None
        if below is not None and below in self._files:
            return below
        for skipped in range(min(len(parts) - 1, _MOST_FOLDERS)):
            rest = "/".join(parts[skipped:])
            if rest in self._files:
                return rest
        if below is None:
            return path
        first = f"{parts[0]}/"
        return "/".join(parts) if any(known.startswith(first) for known in self._files) else below

    def find(self, path: str) -> str | None:
        """The file that ``path`` names: an exact match, or the only file where one path is a suffix of the other.

        A file in the root must match exactly: ``docs/conf.py`` is not ``conf.py``.
        """
        if path in self._files:
            return path
        if path.startswith("testbed/") and (below := path.removeprefix("testbed/")) in self._files:
            return below
        matches = [
            known
            for known in self._by_name.get(path.rsplit("/", 1)[-1], ())
            if known.endswith("/" + path) or ("/" in known and path.endswith("/" + known))
        ]
        return matches[0] if len(matches) == 1 else None


def _without_dots(path: str) -> str:
    while path.startswith("./"):
        path = path[2:]
    return path
