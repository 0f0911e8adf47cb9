"""Decides which diffs of an answer are the patch: they may be parts of one patch, or versions of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from swe_infer.patches.diff import Hunk, PathIndex
from swe_infer.patches.extract import Block, cut_off
from swe_infer.patches.lenient import Section, parse_leniently
from swe_infer.patches.line_index import FileIndexes, HunkNotFound
from swe_infer.patches.locate import locate_hunk
from swe_infer.patches.replace import Replacement

_BETWEEN_WORDS = re.compile(r"[\s`*\"'()\[\],;=]+")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Sections that form one patch.

    Args:
        text: the sections as written; None if some sections of a block were left out.
        notes: the repairs: which blocks were left out, and what was inferred from the text around them.
        is_part: a last version that changes nothing that the first does not change.
    """

    blocks: tuple[Block, ...]
    sections: list[Section]
    text: str | None
    notes: tuple[str, ...]
    is_part: bool = False

    @property
    def format(self) -> str:
        return self.blocks[0].container


@dataclass(slots=True)
class _Read:
    """A block and its sections."""

    block: Block
    sections: list[Section]
    notes: tuple[str, ...]

    def paths(self) -> set[str]:
        return {section.patch.path for section in self.sections}


def text_of(blocks: Sequence[Block]) -> str:
    """The diffs of some blocks as written, without blank lines at the end."""
    return "\n".join(line for block in blocks for line in block.lines).rstrip("\n") + "\n"


def candidates(blocks: Sequence[Block], indexes: FileIndexes) -> list[Candidate]:
    """The candidates for the patch: one, or the first and the last version of it.

    Blocks in a tag such as ``<patch>`` take precedence, because prompts request it. Blocks that change the same lines
    of a file are versions: a model that reasons aloud writes a patch, and then a better one.
    """
    tagged = [block for block in blocks if block.container == "tag"]
    note = ("took the patch that is tagged as one",) if 0 < len(tagged) < len(blocks) else ()
    read = [_parse_block(block, indexes.paths) for block in tagged or blocks]
    if not _are_versions(read, indexes):
        return [_candidate(read, note, None)]
    if cut_off(read[-1].block) is not None and read[-1].paths() <= {p for one in read[:-1] for p in one.paths()}:
        read, note = read[:-1], (*note, "left out the last version, which is cut off")
        if not _are_versions(read, indexes):
            return [_candidate(read, note, None)]
    first, last = (
        _candidate(read, (*note, f"took the {word} version of a file"), _version_by_path(read, last=word == "last"))
        for word in ("first", "last")
    )
    return [first, replace(last, is_part=_changes(last) < _changes(first))]


def _changes(candidate: Candidate) -> Counter[tuple[str, str]]:
    """The added and removed lines."""
    hunks = (hunk for section in candidate.sections for hunk in section.patch.hunks)
    return Counter((line.tag, line.text) for hunk in hunks for line in hunk.lines if line.tag != " ")


def last_versions(replacements: Sequence[Replacement]) -> tuple[list[Replacement], tuple[str, ...]]:
    """The last version of each edit, and a note if there are several.

    Edits of the same text are versions. A whole file replaces every earlier edit of it.
    """
    texts: set[tuple[str | None, str, int | None]] = set()
    whole: set[str] = set()
    kept: list[Replacement] = []
    changed = False
    for item in reversed(replacements):
        key = (item.path, (item.old or "").strip("\n"), item.line)
        if (item.path is not None and item.path in whole) or key in texts:
            changed = True
            continue
        if item.old is None and item.path is not None:
            whole.add(item.path)
        elif key[1]:
            texts.add(key)
        kept.append(item)
    return kept[::-1], ("took the last version of an edit",) if changed else ()


def _parse_block(block: Block, index: PathIndex) -> _Read:
    sections = parse_leniently(block.lines, index)
    notes: tuple[str, ...] = ()
    if sections and not sections[0].named and (path := _hinted(block.hint, index)) is not None:
        sections[0].patch.old_path = sections[0].patch.new_path = path
        sections[0].named = True
        notes = ("added the file header that the text before the hunk names",)
    return _Read(block, sections, notes)


def _hinted(hint: str, index: PathIndex) -> str | None:
    """The file of the prompt that the text before a block names, if it names exactly one."""
    words = {word.strip(".:") for word in _BETWEEN_WORDS.split(hint)}
    found = {path for word in words if "." in word and (path := index.find(index.clean(word))) is not None}
    return found.pop() if len(found) == 1 else None


def _version_by_path(read: Sequence[_Read], *, last: bool) -> dict[str, int]:
    """For each path, the index of the block with the chosen version."""
    owners: dict[str, int] = {}
    for number, one in enumerate(read):
        for path in one.paths():
            owners[path] = number if last else owners.get(path, number)
    return owners


def _candidate(read: Sequence[_Read], notes: tuple[str, ...], owners: dict[str, int] | None) -> Candidate:
    selected: list[_Read] = []
    whole = True
    for number, one in enumerate(read):
        kept = [s for s in one.sections if owners is None or owners[s.patch.path] == number]
        if kept or owners is None:
            selected.append(_Read(one.block, kept, one.notes))
            whole = whole and len(kept) == len(one.sections)
    return Candidate(
        tuple(one.block for one in selected),
        [section for one in selected for section in one.sections],
        text_of([one.block for one in selected]) if whole else None,
        (*notes, *dict.fromkeys(note for one in selected for note in one.notes)),
    )


def _are_versions(read: Sequence[_Read], indexes: FileIndexes) -> bool:
    """Whether two blocks change the same lines of a file."""
    writers: dict[str, list[tuple[int, Section]]] = {}
    for number, one in enumerate(read):
        for section in one.sections:
            if section.patch.path:
                writers.setdefault(section.patch.path, []).append((number, section))
    for path, written in writers.items():
        if len({number for number, _ in written}) < 2:
            continue
        spans = [
            (*_span(hunk, indexes, indexes.paths.find(path)), number)
            for number, section in written
            for hunk in section.patch.hunks
            if hunk.changes
        ]
        if len(spans) < 2 or any(_overlap(sorted(spans))):
            return True
    return False


def _overlap(spans: Sequence[tuple[int, int, int]]) -> Iterator[bool]:
    """For each span (first line, end line, block): whether it overlaps an earlier span of another block."""
    reach: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    for first, last, block in spans:
        yield any(end > first and owner != block for end, owner in furthest)
        reach[block] = max(reach.get(block, last), last)
        furthest = sorted(((end, owner) for owner, end in reach.items()), reverse=True)[:2]
        reach = {owner: end for end, owner in furthest}


def _span(hunk: Hunk, indexes: FileIndexes, path: str | None) -> tuple[int, int]:
    """The lines [first, end) of the file that a hunk covers: where it matches, or else as in its header."""
    if path is not None:
        try:
            ats = [item.at for item in locate_hunk(hunk, indexes[path]).lines if item.at is not None]
            return min(ats), max(ats) + 1
        except HunkNotFound:
            pass
    if hunk.header is None:
        return 0, 1 << 30
    return hunk.header.old_start, hunk.header.old_start + max(hunk.old_count, 1)
