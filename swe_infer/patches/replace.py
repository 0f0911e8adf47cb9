"""Turns search/replace edits and whole files into a patch against the files of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swe_infer.patches.diff import FilePatch, Hunk, Line, PatchError, write_file
from swe_infer.patches.edit import MOST_CURRENT_VIEWS, Conflict, FileEdit, PlacedLine
from swe_infer.patches.line_diff import line_diff
from swe_infer.patches.line_index import FileIndexes, Likeness, LineIndex
from swe_infer.patches.paths import PathIndex, unsafe_path
from swe_infer.patches.search_replace import Replacement, elided
from swe_infer.patches.whitespace import reindent

__all__ = ["replacements_to_patch"]

_LIKENESSES: tuple[Likeness, ...] = ("exact", "trailing", "around")
_LEAST_KEPT = 0.5
"""The share of a file's lines that a rewritten whole must keep; less is taken for an excerpt."""


def replacements_to_patch(
    replacements: Sequence[Replacement], files: Mapping[str, str], index: PathIndex
) -> tuple[str, list[str]]:
    """The patch that ``replacements`` add up to, and what was forgiven. All of them fit, or there is no patch.

    Raises:
        PatchError: a file is not held, or an old text stands nowhere or more than once; the message says which.
    """
    writer = _Writer(files, index)
    for number, replacement in enumerate(replacements, 1):
        try:
            writer.add(replacement)
        except PatchError as error:
            raise PatchError(f"edit {number} of {len(replacements)}: {error}") from error
    return writer.text(), writer.notes


@dataclass(slots=True)
class _Writer:
    files: Mapping[str, str]
    index: PathIndex
    notes: list[str] = field(default_factory=list)
    edits: dict[str, FileEdit] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)
    bases: FileIndexes = field(init=False)
    views: int = 0

    def __post_init__(self) -> None:
        self.bases = FileIndexes(self.files)

    def text(self) -> str:
        texts = [edit.write(FilePatch(path, path, [Hunk(None)])) for path, edit in self.edits.items() if edit.changed]
        for path, content in self.created.items():
            lines = [Line("+", line) for line in content.split("\n")] if content else []
            created = FilePatch(None, path, [Hunk(None)] if lines else [])
            texts.append(write_file(created, [lines] if lines else [], [(0, 0)] if lines else []))
        if not texts:
            raise PatchError("the edits change nothing")
        return "".join(texts)

    def add(self, replacement: Replacement) -> None:
        path = self._path(replacement)
        new = replacement.new.replace("\r\n", "\n")
        if path is None:
            self._create(replacement, new)
            return
        if path not in self.edits:
            self.edits[path] = FileEdit(self.files[path])
        if replacement.old is None:
            self._rewrite(path, new, explicit=replacement.explicit)
            return
        old = replacement.old.replace("\r\n", "\n").split("\n")
        if not replacement.old.strip():
            raise PatchError(f"{path}: an empty text to replace")
        edit = self.edits[path]
        try:
            edit.put(self._locate(path, old, new.split("\n"), self.bases[path]))
        except (Conflict, PatchError) as error:
            if not edit.changed or self.views >= MOST_CURRENT_VIEWS:
                raise error if isinstance(error, PatchError) else PatchError(f"{path}: edits overlap") from error
            self.views += 1
            current = edit.current()
            lines = LineIndex([text for text, _, _ in current])
            try:
                placed = self._locate(path, old, new.split("\n"), lines)
            except PatchError:
                raise (error if isinstance(error, PatchError) else PatchError(f"{path}: edits overlap")) from error
            edit.put_in_current(placed, current)

    def _path(self, replacement: Replacement) -> str | None:
        if replacement.path is None:
            return self._by_content(replacement.old or "")
        path = self.index.clean(replacement.path)
        why = unsafe_path(path)
        if why is not None:
            raise PatchError(f"refused: {why}")
        found = self.index.find(path)
        if found is not None and found != path:
            self.notes.append(f"took {found} for {path}")
        return found

    def _by_content(self, old: str) -> str:
        """The only file of the prompt in which ``old`` stands."""
        lines = old.split("\n")
        fits = [path for path in self.files if self.bases[path].places(lines, "trailing", 1)]
        if len(fits) != 1 or not old.strip():
            raise PatchError("names no file, and its old text does not tell which")
        return fits[0]

    def _create(self, replacement: Replacement, new: str) -> None:
        path = self.index.clean(replacement.path or "")
        if (replacement.old or "").strip() or not replacement.explicit:
            raise PatchError(f"{path} is not in the prompt")
        if path in self.created:
            raise PatchError(f"{path} is created twice")
        self.created[path] = new.removesuffix("\n")

    def _rewrite(self, path: str, new: str, *, explicit: bool) -> None:
        edit = self.edits[path]
        if edit.changed:
            raise PatchError(f"{path}: edits overlap")
        if elided(new):
            raise PatchError(f"{path}: the new file leaves lines out")
        lines = line_diff(edit.base, new.removesuffix("\n").split("\n"))
        if not explicit and _is_excerpt(lines):
            raise PatchError(f"{path}: the code looks like an excerpt of the file, not the whole")
        edit.put(_placed(lines, 0))

    def _locate(self, path: str, old: list[str], new: list[str], lines: LineIndex) -> list[PlacedLine]:
        for likeness in _LIKENESSES:
            places = lines.places(old, likeness)
            if len(places) > 1:
                raise PatchError(f"{path}: the old text stands more than once")
            if places:
                return self._replace_lines(path, old, new, lines, places[0], likeness)
        trimmed = _without_blank_ends(old)
        if trimmed != old:
            return self._locate(path, trimmed, _without_blank_ends(new), lines)
        return self._replace_inside(path, old, new, lines)

    def _replace_lines(
        self, path: str, old: list[str], new: list[str], lines: LineIndex, at: int, likeness: Likeness
    ) -> list[PlacedLine]:
        base = list(lines.lines[at : at + len(old)])
        settled = reindent(old, base, new)
        if settled is None:
            raise PatchError(f"{path}: the indentation of the old text does not fit the file's")
        if likeness != "exact":
            note = "forgave indentation" if likeness == "around" else "forgave white space at line ends"
            if note not in self.notes:
                self.notes.append(note)
        return _placed(line_diff(base, settled), at)

    def _replace_inside(self, path: str, old: list[str], new: list[str], lines: LineIndex) -> list[PlacedLine]:
        """A text that begins or ends inside a line."""
        content, wanted = "\n".join(lines.lines), "\n".join(old)
        start = content.find(wanted)
        if start < 0:
            raise PatchError(f"{path}: the old text stands nowhere in the file")
        if content.find(wanted, start + 1) >= 0:
            raise PatchError(f"{path}: the old text stands more than once")
        first = content.count("\n", 0, start)
        line_start = content.rfind("\n", 0, start) + 1
        line_end = content.find("\n", start + len(wanted))
        line_end = len(content) if line_end < 0 else line_end
        base = content[line_start:line_end].split("\n")
        text = content[line_start:start] + "\n".join(new) + content[start + len(wanted) : line_end]
        return _placed(line_diff(base, text.split("\n")), first)


def _is_excerpt(lines: Sequence[Line]) -> bool:
    """Whether the code lacks half of the file, or begins behind the file's first line or ends before its last."""
    tags = [line.tag for line in lines if line.text.strip()]
    kept, removed = tags.count(" "), tags.count("-")
    return kept < _LEAST_KEPT * (kept + removed) or _begins_cut(tags) or _begins_cut(tags[::-1])


def _begins_cut(tags: Sequence[str]) -> bool:
    """Whether removed lines come first, with nothing put in their place."""
    return tags[:1] == ["-"] and next((tag for tag in tags if tag != "-"), None) != "+"


def _placed(lines: Sequence[Line], at: int) -> list[PlacedLine]:
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
