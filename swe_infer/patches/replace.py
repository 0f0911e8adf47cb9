"""Converts search/replace edits and whole files in an answer to a patch.

Supported are Aider's ``<<<<<<< SEARCH`` blocks; tags such as
``<file>…</file><original>…</original><patched>…</patched>``; whole files between ``[start of PATH]`` and
``[end of PATH]``, in ``<file path="PATH">``, or in a fence after a line with only the path; and JSON, see
:mod:`swe_infer.patches.json_edits`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from swe_infer.patches.diff import FilePatch, Hunk, Line, PatchError, unsafe_path, write_new_file
from swe_infer.patches.edit import MOST_CURRENT_VIEWS, Conflict, FileEdit, PlacedLine, line_diff
from swe_infer.patches.indentation import file_indents, line_ends, reindent
from swe_infer.patches.json_edits import find_json_edits
from swe_infer.patches.line_index import MATCH_LEVELS, MOST_LOCATIONS, FileIndexes, LineIndex, MatchLevel
from swe_infer.patches.line_numbers import split_line_numbers, without_line_numbers
from swe_infer.patches.locate import GUESSED_BY_NUMBER, REFLOWED, REPAIR_NOTES, nearest
from swe_infer.patches.typography import plain_typography
from swe_infer.patches.whole_files import is_excerpt, leaves_lines_out
from swe_infer.types import EditFormat

_OLD_NAMES = frozenset({"original", "search", "old", "old_str", "old_code", "before", "find"})
_NEW_NAMES = frozenset({"patched", "replace", "new", "new_str", "new_code", "after", "updated", "replacement"})
_PATH_NAMES = frozenset({"file", "file_path", "filepath", "filename", "path"})
_NAMES = "|".join(sorted(_OLD_NAMES | _NEW_NAMES | _PATH_NAMES, key=len, reverse=True))
_TOKEN = re.compile(rf"<(?P<name>{_NAMES})(?P<attributes>\s[^<>\n]*)?>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"(?:path|name|filename)\s*=\s*[\"']?([^\"'\s>]+)")
_SEARCH = re.compile(r"\s*<{5,9} ?(?:SEARCH|ORIGINAL|OLD|BEFORE|HEAD)\b.*$", re.IGNORECASE)
START_LINE = ":start_line:"
"""Behind a marker of search: the first line of the old text in the file, counted from 1."""
_START_LINE = re.compile(rf"{START_LINE} ?(\d{{1,9}})")
_DIVIDER = re.compile(r"\s*={5,9}\s*$")
_REPLACE = re.compile(r"\s*>{5,9} ?(?:REPLACE|UPDATED?|NEW|AFTER|PATCHED)\b.*$", re.IGNORECASE)
_FENCE = re.compile(r"\s*(?P<mark>`{3,}|~{3,})(?P<info>[^`]*)$")
_WHOLE = re.compile(r"\[start of (?P<path>[^\n\]]+)\]\s*$")
_HEADING = re.compile(
    r"[ \t#>*_\d.)-]{0,16}(?:(?P<old>search|find|old|original|before|current)|"
    r"(?P<new>replace|replacement|new|updated|after|modified))(?:[ \t]+(?:code|text|block|with|version|for))?"
    r"[ \t:*_]{0,8}$",
    re.IGNORECASE,
)
_PLAIN_PATH = re.compile(r"(?:[A-Za-z]:)?[\w./\\@+-]+")
_FOLDER_AND_NAME = re.compile(r"/?[\w.-]+(?:/[\w.-]+)+")
_FILE_LABEL = re.compile(r"[#>*\s-]*(?:file|path|filename)\b", re.IGNORECASE)
_NAMES_ALONE = re.compile(
    r"AUTHORS|BUILD|CHANGELOG|CHANGES|CODEOWNERS|CONTRIBUTING|Dockerfile|Gemfile|GNUmakefile|HISTORY|INSTALL|"
    r"Jenkinsfile|LICENSE|MANIFEST|Makefile|NEWS|NOTICE|Pipfile|Procfile|README|Rakefile|TODO|VERSION|Vagrantfile"
)
"""Names without an extension that are files by themselves."""
_LABEL = re.compile(r"^(?:[#>*\s-]|\d+\.)*(?:(?:file|path|filename|in|edit|update|modify)\b[ :]*)?", re.IGNORECASE)
_DECORATION = "`*'\":() \t\r"
_LONGEST_NOTE = 300
_MOST_DIVIDERS = 16
_MOST_OTHER_FILES = 64
_DATA = frozenset({"", "txt", "csv", "tsv", "dat", "out", "log", "md", "rst"})
"""Extensions of files whose lines may begin with numbers."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """One edit.

    Args:
        path: as written; None if nothing names the file.
        old: the text to replace; None if ``new`` is the whole file.
        explicit: the form marks this as a file, so it may create a new one.
        divisions: other pairs of ``old`` and ``new``, if the text has several lines that may divide them.
        line: the line of the file that ``old`` begins at, from 1. It chooses between equal places.
        everywhere: replace each occurrence of ``old``.
    """

    path: str | None
    old: str | None
    new: str
    form: str
    explicit: bool = True
    divisions: tuple[tuple[str, str], ...] = ()
    line: int | None = None
    everywhere: bool = False


def find_replacements(answer: str, edit_format: EditFormat | None = None) -> tuple[list[Replacement], str | None]:
    """The edits of ``answer`` in order, in the first form that it uses; or the reason why one is truncated.

    Args:
        edit_format: try this form alone.
    """
    for reader in _READERS[edit_format]:
        found, problem = reader(answer)
        if found or problem:
            return [*found, *_other_files(answer, found)], problem
    return [], None


def _other_files(answer: str, found: Sequence[Replacement]) -> list[Replacement]:
    """Whole files in an explicit form that are not in ``found``."""
    paths = {edit.path for edit in found}
    text = "\0".join(part for edit in found for part in (edit.old or "", edit.new))
    edits = [*_from_tags(answer)[0], *_from_whole_files(answer)[0]]
    files = [edit for edit in edits if edit.old is None and edit.explicit and edit.path not in paths]
    return [edit for edit in files[:_MOST_OTHER_FILES] if edit.new.strip("\n") not in text]


def _from_json(answer: str) -> tuple[list[Replacement], str | None]:
    edits, problem = find_json_edits(answer)
    return [Replacement(edit.path, edit.search, edit.replace, "json_edits") for edit in edits], problem


def _from_markers(answer: str) -> tuple[list[Replacement], str | None]:
    lines = [line.removesuffix("\r") for line in answer.split("\n")]
    found: list[Replacement] = []
    path: str | None = None
    at = 0
    while at < len(lines):
        if not _SEARCH.match(lines[at]):
            at += 1
            continue
        path = _path_before(lines, at) or path
        end = next(
            (n for n in range(at + 1, len(lines)) if _REPLACE.match(lines[n]) or _SEARCH.match(lines[n])), None
        )
        dividers = [n for n in range(at + 1, end or at) if _DIVIDER.match(lines[n])]
        if end is None or not dividers or _SEARCH.match(lines[end]):
            return [], "a search/replace block is cut off"
        if len(dividers) > _MOST_DIVIDERS:
            return [], "a search/replace block with too many lines that may divide it"
        pairs = [(_joined(lines[at + 1 : divider]), _joined(lines[divider + 1 : end])) for divider in dividers]
        line = _START_LINE.search(lines[at])
        number = int(line[1]) if line else None
        found.append(Replacement(path, *pairs[0], "search_replace", divisions=tuple(pairs[1:]), line=number))
        at = end + 1
    return found, None


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _path_before(lines: Sequence[str], at: int) -> str | None:
    """The path on one of the lines before a block, or in the info of its fence."""
    for line in reversed(lines[max(0, at - 4) : at]):
        if _REPLACE.match(line):
            return None
        fence = _FENCE.match(line)
        path = path_in(fence["info"] if fence else line)
        if path is not None:
            return path
        if _FOLDER_AND_NAME.fullmatch(line.strip()):
            return line.strip()
    return None


def path_in(line: str) -> str | None:
    """The path that a short line consists of, apart from labels and decoration."""
    if len(line) > _LONGEST_NOTE:
        return None
    bare = line.strip()
    text = _LABEL.sub("", bare, count=1).strip(_DECORATION)
    language, _, rest = text.partition(" ")
    if rest and language.isalpha():
        text = rest.strip(_DECORATION)  # the info of a fence: a language, then the path
    if text.startswith(("file=", "path=", "title=", "filename=")):
        text = text.partition("=")[2].strip(_DECORATION)
    if not _PLAIN_PATH.fullmatch(text):
        return None
    name = text.replace("\\", "/").rpartition("/")[2]
    if "." not in text:
        marked = "`" in bare or _FILE_LABEL.match(bare) is not None
        return text if _NAMES_ALONE.fullmatch(name) or (name and "/" in text and marked) else None
    return text if name.rpartition(".")[2].isalnum() or ("/" in text and name and "." not in name) else None


def _from_tags(answer: str) -> tuple[list[Replacement], str | None]:
    found: list[Replacement] = []
    path: str | None = None
    old: str | None = None
    for name, attributes, content in _elements(answer):
        if content is None:
            return [], f"a search/replace block is cut off in its <{name}>"
        if name in _PATH_NAMES:
            attribute = _ATTRIBUTE.search(attributes)
            if attribute is None:
                path = content.strip().strip(_DECORATION)
                continue
            path = attribute[1]
            if not _TOKEN.search(content):
                found.append(Replacement(path, None, _unwrapped(content), "whole_file"))
        elif name in _OLD_NAMES:
            old = content
        elif old is not None:
            before, after = _unwrapped(old), _unwrapped(content)
            if not before.endswith("\n"):
                after = after.removesuffix("\n")
            found.append(Replacement(path, before, after, "search_replace"))
            old = None
    return (found, None) if old is None or not found else ([], "a search/replace block is cut off")


def _elements(answer: str) -> Iterator[tuple[str, str, str | None]]:
    """Name, attributes and content of each element, including the edits inside a file element.

    The content is None for an edit or a file that is not closed. A missing closing tag is searched for only once per
    name.
    """
    lower = answer.lower()
    unclosed: set[str] = set()
    position = inside_until = 0
    old_seen = new_seen = False
    while match := _TOKEN.search(answer, position):
        name, attributes = match["name"].lower(), match["attributes"] or ""
        position = match.end()
        end = -1 if name in unclosed else lower.find(f"</{name}>", position)
        if end < 0:
            unclosed.add(name)
            begins_line = answer[match.start() - 1 : match.start()] in ("", "\n")
            cut = (name in _OLD_NAMES and new_seen) or (name in _PATH_NAMES and _ATTRIBUTE.search(attributes))
            if (name in _NEW_NAMES and old_seen) or (begins_line and cut):
                yield name, attributes, None
            continue
        if attributes and name in _PATH_NAMES and position >= inside_until and _TOKEN.search(answer, position, end):
            inside_until = end
            yield name, attributes, match[0]
            continue
        old_seen, new_seen = name in _OLD_NAMES, new_seen or (old_seen and name in _NEW_NAMES)
        yield name, attributes, answer[position:end]
        position = end


def _unwrapped(content: str) -> str:
    """The text between two tags, without a fence directly inside. Tags on lines of their own enclose whole lines."""
    content = content.replace("\r\n", "\n").rstrip(" \t")
    if not content.startswith("\n"):
        return content.removesuffix("\n")
    content = content[1:]
    lines = content.removesuffix("\n").split("\n")
    if len(lines) >= 2 and _FENCE.match(lines[0]) and _FENCE.match(lines[-1]):
        return _joined(lines[1:-1])
    return content


def _from_headings(answer: str) -> tuple[list[Replacement], str | None]:
    """Pairs of fences below lines such as ``SEARCH:`` and ``REPLACE:``, or ``Before:`` and ``After:``."""
    lines = [line.removesuffix("\r") for line in answer.split("\n")]
    found: list[Replacement] = []
    path: str | None = None
    at = 0
    while at < len(lines):
        heading = _HEADING.match(lines[at]) if len(lines[at]) <= _LONGEST_NOTE else None
        old = _fence_below(lines, at) if heading and heading["old"] else None
        if old is None:
            if found and heading and heading["old"] and sum(map(_is_fence, lines[at:])) == 1:
                return [], "a search/replace block is cut off"
            at += 1
            continue
        following = next((n for n in range(old[1] + 1, len(lines)) if lines[n].strip()), at)
        heading = _HEADING.match(lines[following])
        new = _fence_below(lines, following) if heading and heading["new"] else None
        if new is None:
            return [], "a text to replace has no replacement behind it"
        path = _path_before(lines, at) or path
        texts = [_joined(lines[first:last]) for first, last in (old, new)]
        found.append(Replacement(path, texts[0], texts[1], "search_replace"))
        at = new[1] + 1
    return found, None


def _is_fence(line: str) -> bool:
    return _FENCE.match(line) is not None


def _fence_below(lines: Sequence[str], at: int) -> tuple[int, int] | None:
    """The lines [first, end) inside the closed fence that is the next text after a line."""
    start = next((n for n in range(at + 1, min(at + 4, len(lines))) if lines[n].strip()), at)
    fence = _FENCE.match(lines[start]) if start > at else None
    if fence is None:
        return None
    end = next((n for n in range(start + 1, len(lines)) if lines[n].strip() == fence["mark"]), None)
    return None if end is None else (start + 1, end)


def _from_whole_files(answer: str) -> tuple[list[Replacement], str | None]:
    lines = [line.removesuffix("\r") for line in answer.split("\n")]
    found: list[Replacement] = []
    at, inside_until = 0, -1
    while at < len(lines):
        whole, fence = _WHOLE.match(lines[at]), _FENCE.match(lines[at])
        if (not whole and not fence) or (fence and at == inside_until):
            at += 1
            continue
        closing = f"[end of {whole['path']}]" if whole else fence["mark"] if fence else ""
        end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == closing), None)
        path = whole["path"] if whole else _path_before(lines, at) or (path_in(fence["info"]) if fence else None)
        if fence and at and _HEADING.match(lines[at - 1]):
            path = None  # a part of the file
        if end is None:
            return (found, None) if path is None else ([], f"the file {path} is cut off")
        if path is None and at > inside_until and any(_WHOLE.match(line) for line in lines[at + 1 : end]):
            inside_until = end  # a fence around whole files
            at += 1
            continue
        if path is not None:
            body = "\n".join(lines[at + 1 : end])
            found.append(Replacement(path, None, body, "whole_file", explicit=bool(whole)))
        at = end + 1
    return found, None


_Reader = Callable[[str], tuple[list[Replacement], str | None]]

_READERS: Mapping[EditFormat | None, tuple[_Reader, ...]] = {
    None: (_from_markers, _from_tags, _from_headings, _from_whole_files, _from_json),
    "unified_diff": (),
    "search_replace": (_from_markers, _from_tags, _from_headings),
    "whole_file": (_from_whole_files, _from_tags),
    "json_edits": (_from_json,),
}


def replacements_to_patch(replacements: Sequence[Replacement], bases: FileIndexes) -> tuple[str, list[str]]:
    """The patch of ``replacements``, and the repairs.

    Raises:
        PatchError: a file is not in the prompt, or an old text is not in its file exactly once.
    """
    writer = _Writer(bases)
    for number, replacement in enumerate(replacements, 1):
        try:
            writer.add_replacement(replacement)
        except PatchError as error:
            raise PatchError(f"edit {number} of {len(replacements)}: {error}") from error
    return writer.text(), writer.notes


@dataclass(slots=True)
class _Writer:
    bases: FileIndexes
    notes: list[str] = field(default_factory=list)
    edits: dict[str, FileEdit] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)
    line_ends: dict[str, str] = field(default_factory=dict)
    views: int = 0

    def text(self) -> str:
        texts = [edit.write(FilePatch(path, path, [Hunk(None)])) for path, edit in self.edits.items() if edit.changed]
        for path, content in self.created.items():
            lines = [Line("+", line) for line in content.split("\n")] if content else []
            texts.append(write_new_file(path, lines))
        if not texts:
            raise PatchError("the edits change nothing")
        return "".join(texts)

    def add_replacement(self, replacement: Replacement) -> None:
        path = self._path(replacement)
        new = replacement.new.replace("\r\n", "\n")
        pairs = [(replacement.old or "", replacement.new), *replacement.divisions]
        if path is None:
            self._create(replacement, new)
            return
        if path not in self.edits:
            self.edits[path] = FileEdit(self.bases.files[path])
        edit = self.edits[path]
        if replacement.old is None or (not replacement.old.strip() and not self.bases.files[path].strip()):
            self._rewrite(path, new, explicit=replacement.explicit)
            return
        divided = [_as_lines(old.replace("\r\n", "\n"), text.replace("\r\n", "\n")) for old, text in pairs]
        if not any("".join(old).strip() for old, _ in divided):
            raise PatchError(f"{path}: an empty text to replace")
        try:
            edit.apply_to_base(self._place(path, divided, self.bases[path], replacement))
        except (Conflict, PatchError) as error:
            if not edit.changed or self.views >= MOST_CURRENT_VIEWS:
                raise error if isinstance(error, PatchError) else PatchError(f"{path}: edits overlap") from error
            self.views += 1
            current = edit.current()
            lines = LineIndex([text for text, _, _ in current])
            try:
                placed = self._place(path, divided, lines, replacement)
            except PatchError:
                raise (error if isinstance(error, PatchError) else PatchError(f"{path}: edits overlap")) from error
            edit.apply_to_current(placed, current)

    def _path(self, replacement: Replacement) -> str | None:
        if replacement.path is None:
            return self._by_content([replacement.old or "", *(old for old, _ in replacement.divisions)])
        path = self.bases.paths.clean(replacement.path)
        why = unsafe_path(path)
        if why is not None:
            raise PatchError(f"refused: {why}")
        found = self.bases.paths.find(path)
        if found is not None and found != path:
            self.notes.append(f"resolved {path} to {found}")
        return found

    def _by_content(self, olds: Sequence[str]) -> str:
        """The only file of the prompt that contains one of ``olds``."""
        for old in reversed([old for old in olds if old.strip()]):
            lines = old.replace("\r\n", "\n").removesuffix("\n").split("\n")
            matches = [path for path in self.bases.files if self.bases[path].find_all(lines, "trailing", 1)]
            if len(matches) == 1:
                return matches[0]
        raise PatchError("names no file, and its old text does not identify one")

    def _create(self, replacement: Replacement, new: str) -> None:
        path = self.bases.paths.clean(replacement.path or "")
        if (replacement.old or "").strip() or not replacement.explicit:
            raise PatchError(f"{path} is not in the prompt")
        if path in self.created:
            raise PatchError(f"{path} is created twice")
        lines = new.removesuffix("\n").split("\n")
        self.created[path] = "\n".join(self._unnumbered(path, lines, ()))

    def _unnumbered(self, path: str, lines: list[str], base: Sequence[str]) -> list[str]:
        try:
            unnumbered = _without_file_numbers(path, lines, base)
        except ValueError as error:
            raise PatchError(f"{path}: {error}") from None
        if unnumbered is None:
            return lines
        self._note("dropped line numbers")
        return unnumbered

    def _note(self, what: str) -> None:
        if what not in self.notes:
            self.notes.append(what)

    def _rewrite(self, path: str, new: str, *, explicit: bool) -> None:
        edit = self.edits[path]
        if edit.changed:
            raise PatchError(f"{path}: edits overlap")
        if not new.strip() and self.bases.files[path].strip():
            raise PatchError(f"{path}: the new file is empty")
        shown = [shown_line(line) for line in edit.base]
        written = self._unnumbered(path, new.removesuffix("\n").split("\n"), shown)
        lines = line_diff(shown, written)
        if leaves_lines_out(lines):
            raise PatchError(f"{path}: the new file leaves lines out")
        if is_excerpt(lines, written, explicit=explicit):
            raise PatchError(f"{path}: the code looks like an excerpt of the file, not the whole")
        edit.apply_to_base(_placed_lines(_as_in_file(lines, edit.base, self._line_end(path)), 0))

    def _place(
        self, path: str, pairs: list[tuple[list[str], list[str]]], lines: LineIndex, replacement: Replacement
    ) -> list[PlacedLine]:
        """Locates an edit. Of several divisions, the one with the longest old text that is in the file counts."""
        if replacement.everywhere and (placed := self._replace_everywhere(path, replacement, lines)):
            return placed
        number = replacement.line
        if len(pairs) > 1:
            for level in MATCH_LEVELS:
                for old, new in reversed(pairs):
                    if any(text.strip() for text in old) and lines.find_all(old, level, 1):
                        return self._locate(path, old, new, lines, number)
        old, new = pairs[0]
        try:
            return self._locate(path, old, new, lines, number)
        except PatchError:
            unnumbered = without_line_numbers(old, new, lines)
            if unnumbered is None:
                raise
            placed = self._locate(path, *unnumbered, lines, number)
            self._note("dropped line numbers")
            return placed

    def _replace_everywhere(self, path: str, replacement: Replacement, lines: LineIndex) -> list[PlacedLine] | None:
        shown = [line.removesuffix("\r") for line in lines.lines]
        content = _joined(shown)
        old, new = (text.replace("\r\n", "\n") for text in (replacement.old or "", replacement.new))
        if old not in content:
            return None
        changed = content.replace(old, new).removesuffix("\n").split("\n")
        return self._placed_at(path, line_diff(shown, changed), list(lines.lines), lines, 0)

    def _locate(
        self, path: str, old: list[str], new: list[str], lines: LineIndex, number: int | None = None
    ) -> list[PlacedLine]:
        for level in MATCH_LEVELS:
            places = lines.find_all(old, level, MOST_LOCATIONS)
            if len(places) > 1:
                chosen = None if number is None else nearest(places, number - 1)
                if chosen is None:
                    raise PatchError(f"{path}: the old text occurs more than once")
                self._note(GUESSED_BY_NUMBER)
                places = [chosen]
            if places:
                return self._replace_lines(path, old, new, lines, places[0], level)
            if len(old) == len(new) == 1 and sum(line.count(old[0]) for line in lines.lines) == 1:
                return self._replace_inside(path, old, new, lines)
        trimmed = _without_blank_ends(old)
        if trimmed != old:
            return self._locate(path, trimmed, _without_blank_ends(new), lines, number)
        if (found := lines.tokens().find(old)) is not None:
            self._note(REFLOWED)
            base = list(lines.lines[found.start : found.stop])
            diff = line_diff([line.removesuffix("\r") for line in base], new)
            return self._placed_at(path, diff, base, lines, found.start)
        return self._replace_inside(path, old, new, lines)

    def _replace_lines(
        self, path: str, old: list[str], new: list[str], lines: LineIndex, at: int, level: MatchLevel
    ) -> list[PlacedLine]:
        base = list(lines.lines[at : at + len(old)])
        if level == "typography":
            old, new = plain_typography(old, new, base)
        indented = file_indents(old, new, base)
        settled = None if indented is None else reindent(indented[0], base, indented[1])
        if settled is None:
            raise PatchError(f"{path}: the indentation of the old text does not match the file's")
        note = REPAIR_NOTES[level]
        if note is not None:
            self._note(note)
        return self._placed_at(path, line_diff([line.removesuffix("\r") for line in base], settled), base, lines, at)

    def _placed_at(self, path: str, diff: list[Line], base: list[str], lines: LineIndex, at: int) -> list[PlacedLine]:
        if leaves_lines_out(diff):
            raise PatchError(f"{path}: the new text leaves lines out")
        last_end = self._line_end(path) if at + len(base) == len(lines.lines) else None
        return _placed_lines(_as_in_file(diff, base, last_end), at)

    def _line_end(self, path: str) -> str:
        """What most lines of a file have before their line feed."""
        if path not in self.line_ends:
            content = self.bases.files[path]
            self.line_ends[path] = "\r" if content.count("\r\n") * 2 > content.count("\n") else ""
        return self.line_ends[path]

    def _replace_inside(self, path: str, old: list[str], new: list[str], lines: LineIndex) -> list[PlacedLine]:
        """Replaces a text that begins or ends inside a line."""
        content, pattern = "\n".join(lines.lines), "\n".join(old)
        start = content.find(pattern)
        if start < 0:
            raise PatchError(f"{path}: the old text is not in the file")
        if content.find(pattern, start + 1) >= 0:
            raise PatchError(f"{path}: the old text occurs more than once")
        first = content.count("\n", 0, start)
        line_start = content.rfind("\n", 0, start) + 1
        line_end = content.find("\n", start + len(pattern))
        line_end = len(content) if line_end < 0 else line_end
        base = content[line_start:line_end].split("\n")
        text = content[line_start:start] + "\n".join(new) + content[start + len(pattern) : line_end]
        shown = [line.removesuffix("\r") for line in base]
        changed = [line.removesuffix("\r") for line in text.split("\n")]
        return self._placed_at(path, line_diff(shown, changed), base, lines, first)


def _as_lines(old: str, new: str) -> tuple[list[str], list[str]]:
    """Both texts as lines. Complete lines may end in a line break. An empty new text removes lines."""
    if old.endswith("\n"):
        old = old[:-1]
        return old.split("\n"), new.removesuffix("\n").split("\n") if new else []
    return old.split("\n"), new.split("\n") if new else []


def _without_file_numbers(path: str, lines: Sequence[str], base: Sequence[str]) -> list[str] | None:
    """A file's lines without the prompt's line numbers; None if they have none.

    Args:
        base: the old lines; empty for a new file.

    Raises:
        ValueError: lines have numbers, but not consistently.
    """
    known = {line for line in base if line.strip()}
    split, marked = (split_line_numbers(lines, marked=marked) for marked in (False, True))
    if sum(number is not None and (rest in known or not known) for number, rest in marked) > sum(
        number is not None and rest in known for number, rest in split
    ):
        split = marked
    numbers = [number for number, _ in split if number is not None]
    if not numbers:
        return None
    rests = [rest for _, rest in split]
    increasing = all(later > earlier for earlier, later in pairwise(numbers))
    complete = numbers == list(range(1, len(lines) + 1))
    if not known:
        if not complete or path.rpartition(".")[2].lower() in _DATA:
            return None
    elif not complete or any(number is not None for number, _ in split_line_numbers(list(known))):
        pairs = [(text, rest) for text, (number, rest) in zip(lines, split, strict=True) if number is not None]
        gained = sum(rest in known and text not in known for text, rest in pairs)
        if gained < 2 or gained <= sum(text in known for text, _ in pairs):
            return None
        if not increasing:
            raise ValueError("line numbers in the new file that do not increase")
        if numbers[0] != 1:
            raise ValueError("the code looks like an excerpt of the file, not the whole")
    if split[-1][0] is not None and not rests[-1] and not (base and not base[-1].strip()):
        rests.pop()  # a prompt numbers the end of the file too
    return rests


def _as_in_file(lines: Sequence[Line], base: Sequence[str], last_end: str | None) -> list[Line]:
    """A diff of shown lines as a diff of the file's lines: with their line ends and bytes that are not UTF-8.

    Args:
        base: the old lines. Undecodable bytes are surrogates in it, and U+FFFD in the diff.
        last_end: ``\\r`` or empty: the line end for the file's last line, which may have none; None if ``base`` does
            not reach it.
    """
    odd = {shown_line(line): line for line in base if not line.isascii() and "\r" not in line}
    ends = ["\r" if line.endswith("\r") else "" for line in base]
    if last_end is not None and ends:
        ends[-1] = last_end
    old = iter(base)
    return [
        Line("+", odd.get(line.text, line.text) + end) if line.tag == "+" else Line(line.tag, next(old))
        for line, end in zip(lines, line_ends(lines, ends), strict=True)
    ]


def shown_line(line: str) -> str:
    """A file's line as a prompt shows it."""
    text = line.removesuffix("\r")
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # an unpaired surrogate that encodes no byte
        return text


def _placed_lines(lines: Sequence[Line], at: int) -> list[PlacedLine]:
    placed = []
    for line in lines:
        placed.append(PlacedLine(line, None if line.tag == "+" else at))
        at += line.tag != "+"
    return placed


def _without_blank_ends(lines: Sequence[str]) -> list[str]:
    start, end = 0, len(lines)
    while start < end and not lines[start].strip():
        start += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    return list(lines[start:end])
