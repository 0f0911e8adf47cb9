"""A lenient parser for diffs that models write. It reports no errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from swe_infer.patches.diff import (
    FilePatch,
    Hunk,
    Line,
    PathIndex,
    is_epoch,
    parse_hunk_header,
    split_timestamp,
    tag_of,
    unquote_path,
)

_RANGES = re.compile(r"@@+ *-(\d{1,9})(?:, ?(\d{1,9}))? +\+?(\d{1,9})(?:, ?(\d{1,9}))? *(?:@@+.*)?$")
_NUMBERED = re.compile(r"\s*\d+[:|]? ?(?P<rest>[-+ @].*)?$")
_DEV_NULL = re.compile(r"(?:[ab])?/dev/null\b")
_HEADING = re.compile(r"@@+ *[-+\d, ]+(?:@@+)(?P<heading>.*)$")
_ANCHOR = re.compile(r"@@+ *(?P<left_out>(?:\.{3,}|…|[-+]?\d[\d, +-]*)? *@@+)?(?P<text>.*)$")
_LONGEST_HEADER = 4096
_LONGEST_ANCHOR = 300


@dataclass(slots=True)
class Section:
    """The part of a diff for one file.

    Args:
        patch: a path is also None if no header names it; see ``named``.
        named: some header line names the file.
        old_null: by its header the file does not exist before the patch; ``new_null``: after it.
    """

    patch: FilePatch
    named: bool = False
    old_null: bool = False
    new_null: bool = False


def parse_leniently(lines: Sequence[str], index: PathIndex) -> list[Section]:
    """Parses the sections of a diff. Never raises; ignores what it does not recognise."""
    return _Reader(lines, index).read()


@dataclass(slots=True)
class _Reader:
    lines: Sequence[str]
    index: PathIndex
    at: int = 0
    sections: list[Section] = field(default_factory=list)
    hunk: Hunk | None = None
    old_left: int = 0
    new_left: int = 0
    adds_file: bool = False  # the hunk is the content of an ``*** Add File``

    def read(self) -> list[Section]:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not (self._file_header(line) or self._hunk_header(line) or self._body(line)):
                self._metadata(line)
            self.at += 1
        self._end_hunk()
        return [s for s in self.sections if s.named or s.patch.hunks]

    def _open_section(self) -> Section:
        self._end_hunk()
        section = Section(FilePatch(None, None))
        self.sections.append(section)
        return section

    @property
    def _section(self) -> Section:
        return self.sections[-1] if self.sections else self._open_section()

    def _file_header(self, line: str) -> bool:
        if line.startswith("diff --git "):
            section = self._open_section()
            names = _git_names(line[len("diff --git ") : _LONGEST_HEADER].strip())
            if names:
                section.patch.old_path, section.patch.new_path = (self.index.clean(unquote_path(n)) for n in names)
                section.named = True
            return True
        if line.startswith("*** "):
            return self._star_header(line)
        if line.strip() == "*** End Patch" and self.hunk is not None and self.hunk.header is None:
            return not any(later.strip() for later in self.lines[self.at + 1 :])
        if not line.startswith("--- ") or not self._is_file_line():
            return False
        step = self._next_text()
        fresh = bool(self.sections) and not self._section.patch.hunks
        section = self._section if fresh and self._follows_git_header() else self._open_section()
        self._name(section, line[4:], self.lines[self.at + step][4:])
        self.at += step
        return True

    def _star_header(self, line: str) -> bool:
        """Parses a header of Codex's ``apply_patch`` format, which has neither line numbers nor sides."""
        verb, colon, name = line.removeprefix("*** ")[:_LONGEST_HEADER].partition(": ")
        path = self.index.clean(name)
        if verb == "Move to" and self.sections:
            self._section.patch.renamed, self._section.patch.new_path = True, path
        elif colon and verb in ("Update File", "Add File", "Delete File"):
            section = self._open_section()
            section.named = True
            section.old_null, section.new_null = verb == "Add File", verb == "Delete File"
            section.patch.old_path = None if section.old_null else path
            section.patch.new_path = None if section.new_null else path
            if section.old_null:
                self.hunk = Hunk(None)
                section.patch.hunks.append(self.hunk)
                self.adds_file = True
        elif verb in ("Begin Patch", "End Patch", "End of File"):
            if self.hunk is not None:
                self.hunk.at_end = verb == "End of File"
            self._end_hunk()
        else:
            return False
        return True

    def _follows_git_header(self) -> bool:
        for before in range(self.at - 1, max(self.at - 12, -1), -1):
            if self.lines[before].startswith("diff --git "):
                return True
            if self.lines[before].startswith(("+++ ", "@@")):
                return False
        return False

    def _next_text(self) -> int:
        """The distance to the next non-blank line: 1, or 2 after a blank line."""
        return 1 if self.at + 1 < len(self.lines) and self.lines[self.at + 1].strip() else 2

    def _is_file_line(self) -> bool:
        """Whether this is a ``---``/``+++`` pair and not two lines of a hunk that lacks exactly these."""
        step = self._next_text()
        if self.at + step >= len(self.lines) or not self.lines[self.at + step].startswith("+++ "):
            return False
        if self.hunk is None or self.hunk.header is None:
            return True
        if self.old_left < 1 or self.new_left < 1:
            return True
        following = self.lines[self.at + step + 1] if self.at + step + 1 < len(self.lines) else ""
        return following.startswith("@@") and (self.old_left, self.new_left) != (1, 1)

    def _name(self, section: Section, old: str, new: str) -> None:
        patch = section.patch
        section.named = True
        old_path, old_date = self._path_and_date(old)
        new_path, new_date = self._path_and_date(new)
        exists = self.index.find(old_path) is not None
        section.old_null = bool(_DEV_NULL.match(old)) or (not exists and is_epoch(old_date))
        removed = is_epoch(new_date) and not is_epoch(old_date)
        section.new_null = bool(_DEV_NULL.match(new)) or (not section.old_null and removed)
        patch.old_path = None if section.old_null else old_path
        patch.new_path = None if section.new_null else new_path

    def _path_and_date(self, text: str) -> tuple[str, str]:
        """The path of a file line, and the date behind it with a tab before it."""
        text = text[:_LONGEST_HEADER].strip()
        name, date = split_timestamp(text)
        path = self.index.clean(unquote_path(text))
        if date and path == self.index.clean(unquote_path(name)):
            return path, f"\t{date.strip()}"
        return path, ""

    def _hunk_header(self, line: str) -> bool:
        if not line.startswith("@@"):
            return False
        fresh = Hunk(parse_hunk_header(line) or parse_hunk_header(line[:_LONGEST_HEADER], _RANGES))
        match = (_ANCHOR if fresh.header is None else _HEADING).match(line[:_LONGEST_ANCHOR])
        text = match[match.lastgroup or 0].strip(" \t@") if match else ""
        if fresh.header is not None or (match and match.groupdict().get("left_out")):
            fresh.heading = text
        elif any(char.isalnum() for char in text):
            fresh.anchors = (text,)
        before = self.hunk
        if before is not None and before.anchors and fresh.header is None and not before.lines:
            before.anchors += fresh.anchors  # stacked anchors
            return True
        self._end_hunk()
        self._section.patch.hunks.append(fresh)
        self.hunk = fresh
        header = parse_hunk_header(line)
        self.old_left, self.new_left = (header.old_count, header.new_count) if header else (0, 0)
        return True

    def _body(self, line: str) -> bool:
        sign = line[:1]
        if self.hunk is None:
            after_header = bool(self.sections) and self._section.named and not self._section.patch.hunks
            if not after_header or sign not in ("+", "-", " ") or line.startswith(("+++ ", "--- ")):
                return False
            self.hunk = Hunk(None)
            self._section.patch.hunks.append(self.hunk)
        if sign == "\\":
            if self.hunk.lines:
                self.hunk.lines[-1].no_newline = True
            return True
        if sign in ("+", "-", " "):
            self.hunk.lines.append(Line(tag_of(line), line[1:]))
        else:
            self.hunk.lines.append(Line(" ", line, bare=True))
        self.old_left -= sign != "+"
        self.new_left -= sign != "-"
        return True

    def _end_hunk(self) -> None:
        """Ends the hunk and drops trailing blank lines without a sign, unless its header counts them."""
        hunk, self.hunk = self.hunk, None
        if hunk is None:
            return
        header = hunk.header
        while hunk.lines and hunk.lines[-1].bare and not hunk.lines[-1].text.strip():
            if header and (hunk.old_count, hunk.new_count) == (header.old_count, header.new_count):
                break
            hunk.lines.pop()
        if self.adds_file and not any(line.tag == "+" for line in hunk.lines):
            hunk.lines = [Line("+", line.text if line.bare else line.tag + line.text) for line in hunk.lines]
        self.adds_file = False
        if not hunk.lines and hunk.header is None and not hunk.anchors:
            self._section.patch.hunks.pop()
        _strip_numbers_before_signs(hunk)

    def _metadata(self, line: str) -> None:
        if not self.sections or self._section.patch.hunks:
            return
        section, patch = self._section, self._section.patch
        words = line.rstrip().split(" ")
        if line.startswith("new file mode "):
            section.old_null, patch.old_path, patch.new_mode = True, None, words[-1]
        elif line.startswith("deleted file mode "):
            section.new_null, patch.new_path, patch.old_mode = True, None, words[-1]
        elif line.startswith("old mode "):
            patch.old_mode = words[-1]
        elif line.startswith("new mode "):
            patch.new_mode = words[-1]
        elif line.startswith(("rename from ", "copy from ")):
            patch.renamed, patch.copied = line.startswith("rename"), line.startswith("copy")
            patch.old_path = unquote_path(" ".join(words[2:]))
        elif line.startswith(("rename to ", "copy to ")):
            patch.new_path = unquote_path(" ".join(words[2:]))
        elif line.startswith(("GIT binary patch", "Binary files ")):
            patch.binary = True


def _git_names(text: str) -> tuple[str, str] | None:
    """The two names of a ``diff --git`` line. If they contain blanks, the split with equal names is preferred."""
    middle = len(text) // 2
    if text[middle : middle + 1] == " " and text[:middle][2:] == text[middle + 1 :][2:]:
        return text[:middle], text[middle + 1 :]
    cut = next((at for side in (" b/", ' "b/', " ") if (at := text.find(side)) > 0), -1)
    return (text[:cut], text[cut + 1 :].strip()) if cut > 0 else None


def _strip_numbers_before_signs(hunk: Hunk) -> None:
    """Removes line numbers before the signs (``12 -old``), if every line of the hunk has one."""
    texts = [line for line in hunk.lines if line.text.strip()]
    if not texts or not all(line.bare for line in texts):
        return
    matches = [_NUMBERED.match(line.text) for line in texts]
    if not all(matches):
        return
    for line, match in zip(texts, matches, strict=True):
        rest = (match["rest"] if match else None) or " "
        line.tag, line.text, line.bare = tag_of(rest), rest[1:], False
