"""Rewrites a model's diff into one that ``git apply`` accepts, if the files make its meaning unambiguous."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from swe_infer.instance_files import why_absent
from swe_infer.patches.diff import (
    FilePatch,
    Hunk,
    HunkHeader,
    Line,
    PatchError,
    write_file,
    write_new_file,
)
from swe_infer.patches.edit import MOST_CURRENT_VIEWS, Conflict, FileEdit, PlacedLine
from swe_infer.patches.lenient import Section
from swe_infer.patches.line_index import FileIndexes, HunkNotFound, LineIndex
from swe_infer.patches.locate import Placement, locate_hunk

_EMPTY = frozenset({"__init__.py", "py.typed", ".gitkeep", ".keep"})
"""Files that are created without content."""

_MOST_FOLLOWING = 4
"""Hunks after one with several locations, of which one that has a single location is looked for."""


def repair(sections: Sequence[Section], indexes: FileIndexes) -> tuple[str, list[str]]:
    """Rewrites ``sections`` against the files of ``indexes``. Returns the patch, and the distinct repairs in order.

    For files that are not in the prompt, only the counts are corrected.

    Raises:
        PatchError: a hunk matches no location, or more than one; the message says which.
    """
    return _Repair(indexes).repair_sections(sections)


@dataclass(slots=True)
class _File:
    """All changes of a patch to one file of the prompt.

    Args:
        hunks: the number of hunks so far.
        end: the index behind the lines of the last one in the base; None if there is none.
        header: the header of the last one.
    """

    patch: FilePatch
    edit: FileEdit
    lines: LineIndex
    hunks: int = 0
    end: int | None = None
    header: HunkHeader | None = None


@dataclass(slots=True)
class _Repair:
    indexes: FileIndexes
    repairs: list[str] = field(default_factory=list)
    parts: dict[str, str | _File] = field(default_factory=dict)
    views: int = 0

    def repair_sections(self, sections: Sequence[Section]) -> tuple[str, list[str]]:
        for section in sections:
            self._section(section)
        texts = []
        for part in self.parts.values():
            if isinstance(part, str):
                texts.append(part)
            elif part.edit.changed or part.patch.metadata_only:
                part.patch.hunks = [Hunk(None)] if part.edit.changed else []
                texts.append(part.edit.write(part.patch))
        if not texts:
            raise PatchError("no hunk that changes anything")
        return "".join(texts), self.repairs

    def _note(self, what: str) -> None:
        if what not in self.repairs:
            self.repairs.append(what)

    def _section(self, section: Section) -> None:
        patch = section.patch
        hunks = [hunk for hunk in patch.hunks if hunk.changes]
        if len(hunks) < len(patch.hunks):
            self._note("dropped a hunk that changes nothing")
        if not hunks and not patch.metadata_only:
            return
        if not section.named:
            self._unnamed(hunks)
        elif section.new_null:
            self._removal(patch, hunks)
        elif section.old_null or self._creates(patch, hunks):
            self._creation(patch, hunks)
        else:
            self._change(patch, hunks)

    def _creates(self, patch: FilePatch, hunks: Sequence[Hunk]) -> bool:
        """Whether the only hunk for a file that is not in the prompt says that the file was empty or absent."""
        header = hunks[0].header if len(hunks) == 1 else None
        if header is None or header.old_start or header.old_count or self.indexes.paths.find(patch.path):
            return False
        return all(line.tag == "+" for line in hunks[0].lines)

    def _creation(self, patch: FilePatch, hunks: Sequence[Hunk]) -> None:
        path = patch.path
        if path in self.indexes.files:
            raise PatchError(f"{path}: already exists, but the patch creates it")
        if path in self.parts:
            if self.parts[path] == self._created(patch, hunks):
                return self._note("dropped a repeated hunk")
            raise PatchError(f"{path}: created twice")
        self.parts[path] = self._created(patch, hunks)
        return None

    def _created(self, patch: FilePatch, hunks: Sequence[Hunk]) -> str:
        if len(hunks) > 1:
            raise PatchError(f"{patch.path}: a new file of several hunks")
        if not hunks and patch.new_mode is None and patch.path.rpartition("/")[2] not in _EMPTY:
            raise PatchError(f"{patch.path}: a new file without content")
        lines: list[Line] = []
        for line in hunks[0].lines if hunks else ():
            if line.tag != "+" and line.text.strip():
                raise PatchError(f"{patch.path}: a new file with lines that are not added")
            lines.append(replace(line, tag="+"))
        return write_new_file(patch.path, lines, patch.new_mode)

    def _removal(self, patch: FilePatch, hunks: Sequence[Hunk]) -> None:
        path = self.indexes.paths.find(patch.old_path or "")
        if path is None:
            return self._unknown(patch, hunks)
        file = self._file_edit(path, replace(patch, old_path=path, hunks=[]))
        self._place_hunks(file, path, hunks)
        if not hunks:
            file.edit.removed.update(range(len(file.edit.base)))
        if file.edit.result():
            raise PatchError(f"{path}: the patch removes the file but leaves some of its lines")
        return None

    def _change(self, patch: FilePatch, hunks: Sequence[Hunk]) -> None:
        path = self._resolve(patch)
        if path is None:
            return self._unknown(patch, hunks)
        if patch.renamed or patch.copied:
            target = patch.new_path
            if target in self.indexes.files or target in self.parts:
                raise PatchError(f"{target}: already exists, but the patch renames {path} to it")
        else:
            target = path
        file = self._file_edit(path, replace(patch, old_path=path, new_path=target, hunks=[]))
        self._place_hunks(file, path, hunks)
        return None

    def _resolve(self, patch: FilePatch) -> str | None:
        """The file of the prompt that a patch changes. Of two different names, the one in the prompt."""
        names = [name for name in (patch.old_path, patch.new_path) if name is not None]
        if patch.renamed or patch.copied:
            names = names[:1]
        for name in names:
            if name in self.indexes.files:
                if patch.old_path != patch.new_path and not (patch.renamed or patch.copied):
                    self._note(f"resolved two file names to {name}")
                return name
        for name in names:
            found = self.indexes.paths.find(name)
            if found is not None:
                self._note(f"resolved {name} to {found}")
                return found
        return None

    def _file_edit(self, path: str, patch: FilePatch) -> _File:
        part = self.parts.get(path)
        if isinstance(part, _File):
            if part.patch.new_path != patch.new_path:
                raise PatchError(f"{path}: the patch treats the file in two ways")
            return part
        if part is not None:
            raise PatchError(f"{path}: the patch treats the file in two ways")
        fresh = _File(patch, FileEdit(self.indexes.files[path]), self.indexes[path])
        self.parts[path] = fresh
        return fresh

    def _place_hunks(self, file: _File, path: str, hunks: Sequence[Hunk]) -> None:
        for number, hunk in enumerate(hunks):
            file.hunks += 1
            try:
                notes = self._place_hunk(file, hunk, hunks[number + 1 :][:_MOST_FOLLOWING])
            except (HunkNotFound, Conflict) as error:
                why = "changes lines that another hunk changes" if isinstance(error, Conflict) else str(error)
                raise PatchError(f"{path}: hunk {file.hunks} {why}") from error
            for note in notes:
                self._note(note)

    def _place_hunk(self, file: _File, hunk: Hunk, following: Sequence[Hunk]) -> list[str]:
        """Applies a hunk to the base, or else to the result of the hunks before it."""
        edit = file.edit
        if not edit.base and not any(line.tag != "+" for line in hunk.lines):
            edit.apply_to_base([PlacedLine(line, None) for line in hunk.lines])
            return []
        try:
            placement = locate_hunk(hunk, file.lines, lambda: self._between(file, hunk, following))
            fresh = edit.apply_to_base(placement.lines)
            file.end, file.header = _end(placement), hunk.header
            return placement.repairs if fresh else ["dropped a repeated hunk"]
        except (HunkNotFound, Conflict):
            if not edit.changed or self.views >= MOST_CURRENT_VIEWS:
                raise
        self.views += 1
        current = edit.current()
        placement = locate_hunk(hunk, LineIndex([text for text, _, _ in current]))
        edit.apply_to_current(placement.lines, current)
        file.end = None
        return placement.repairs

    def _between(self, file: _File, hunk: Hunk, following: Sequence[Hunk]) -> range | None:
        """The lines of the base between the hunk before and a hunk after; None if the hunks are not in order."""
        headers = [hunk.header for hunk in (Hunk(file.header), hunk, *following) if hunk.header]
        if any(later.old_start < earlier.old_start for earlier, later in pairwise(headers)):
            return None
        after = 0 if file.end is None else file.end
        for later in following:
            try:
                starts = [item.at for item in locate_hunk(later, file.lines).lines if item.at is not None]
                return range(after, min(starts)) if min(starts) >= after else None
            except HunkNotFound:
                continue
        return None if file.end is None else range(after, len(file.lines.lines))

    def _unnamed(self, hunks: Sequence[Hunk]) -> None:
        """Applies hunks without a file header to the only file of the prompt that all of them match."""
        matches = [path for path in self.indexes.files if _all_match(hunks, self.indexes[path])]
        if len(matches) != 1:
            number = "no file" if not matches else "more than one file"
            raise PatchError(f"a hunk without a file header, which matches {number} of the prompt")
        self._note("added a file header")
        path = matches[0]
        self._place_hunks(self._file_edit(path, FilePatch(path, path)), path, hunks)

    def _unknown(self, patch: FilePatch, hunks: Sequence[Hunk]) -> None:
        """Rewrites the hunks for a file that is not in the prompt: only their counts can be corrected."""
        if (why := why_absent(self.indexes.files, patch.old_path or "")) is not None:
            raise PatchError(f"{patch.path}: {why}")
        starts: list[tuple[int, int]] = []
        for hunk in hunks:
            header = hunk.header
            if header is None:
                raise PatchError(f"{patch.path}: not in the prompt, and a hunk has no line numbers")
            old, new = header.old_start - bool(hunk.old_count), header.new_start - bool(hunk.new_count)
            starts.append((max(old, 0), max(new, 0)))
        text = write_file(replace(patch, hunks=list(hunks)), [hunk.lines for hunk in hunks], starts)
        before = self.parts.get(patch.path, "")
        if not isinstance(before, str):
            raise PatchError(f"{patch.path}: the patch treats the file in two ways")
        self.parts[patch.path] = before + text


def _end(placement: Placement) -> int | None:
    return max((item.at for item in placement.lines if item.at is not None), default=-1) + 1 or None


def _all_match(hunks: Sequence[Hunk], lines: LineIndex) -> bool:
    try:
        for hunk in hunks:
            locate_hunk(hunk, lines)
    except HunkNotFound:
        return False
    return True
