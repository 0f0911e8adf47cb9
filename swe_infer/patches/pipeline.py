"""Makes a patch from an answer: the patch is extracted, checked, and repaired if it does not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from swe_infer.patches.apply import Applied, RefusedPatch, apply_patch
from swe_infer.patches.diff import PatchError, refusal
from swe_infer.patches.extract import Block, cut_off, find_blocks
from swe_infer.patches.forms import DECODED, FAMILIES, Family, Reading, decoded_additions, without_path_comment
from swe_infer.patches.line_index import FileIndexes
from swe_infer.patches.locate import GUESSED_BY_NUMBER
from swe_infer.patches.reasoning import CUT_OFF, without_reasoning
from swe_infer.patches.repair import repair
from swe_infer.patches.replace import Replacement, find_replacements, replacements_to_patch
from swe_infer.patches.select import Candidate, candidates, last_versions, text_of
from swe_infer.patches.undecodable import AsShown, may_have_marks, restored
from swe_infer.patches.usual import fits, usual_patch
from swe_infer.types import EditFormat, PatchResult, PatchStatus

NOTHING_FOUND = "no diff and no search/replace block in the answer"
_MOST_FORMS = 2
"""Forms inside one another, such as a diff with HTML entities in a JSON string."""


def make_patch(answer: str, files: Mapping[str, str], edit_format: EditFormat | None = None) -> PatchResult:
    """Makes a patch from a model's answer. Never raises; takes time linear in the answer.

    Args:
        answer: the complete answer.
        files: the instance's files, path to content (:attr:`swe_infer.types.Request.files`).
        edit_format: the form that the prompt requests. It is tried first, then the others; None: diffs first.

    Returns:
        A result whose ``patch`` applies with ``git apply`` at the base commit if ``status`` is ``applies`` or
        ``repaired``. Edits in the requested form that match exactly are ``applies``.
    """
    if not answer.strip():
        return PatchResult("", "none", "the answer is empty")
    proper = without_reasoning(answer.removeprefix("\ufeff"))
    if not proper.text.strip():
        return PatchResult("", "none", CUT_OFF)
    result = _made_of_text(proper.text, files, edit_format)
    if result.status == "none" and result.format is None and proper.asides is not None:
        aside = _made_of_text(proper.asides, files, edit_format)
        return result if aside.format is None else _noted(aside, "took the patch from a section beside the answer")
    return result if proper.note is None else _noted(result, proper.note)


def _noted(result: PatchResult, note: str) -> PatchResult:
    """``result`` with one more repair, so that it is not ``applies``."""
    status: PatchStatus = "repaired" if result.status == "applies" else result.status
    return replace(result, status=status, repairs=(note, *result.repairs))


def _made_of_text(text: str, files: Mapping[str, str], edit_format: EditFormat | None) -> PatchResult:
    shown = AsShown(files, marks=may_have_marks(text))
    result = _made(text, FileIndexes(shown), edit_format)
    if not shown.changes:
        return result
    patch = restored(result.patch, files) if result.status in ("applies", "repaired") else None
    if patch == result.patch:
        return result
    if patch is not None:
        status: PatchStatus = result.status if result.format == edit_format else "repaired"
        return replace(result, patch=patch, status=status, repairs=(*result.repairs, *shown.changes))
    return _made(text, FileIndexes(files), edit_format)


def _made(text: str, indexes: FileIndexes, edit_format: EditFormat | None) -> PatchResult:
    asked = None if edit_format in (None, "unified_diff") else _replaced(text, indexes, edit_format)
    if asked is not None and asked.status != "none":
        return asked
    result = _in_any_form(text, indexes)
    if result.status not in ("applies", "repaired"):
        result = _in_other_forms(text, indexes, result, 0)
    return asked if asked is not None and result.status == "none" else result


def _in_other_forms(text: str, indexes: FileIndexes, result: PatchResult, depth: int) -> PatchResult:
    """The first patch of the other families of forms that applies; ``result``, that of the usual ones, if none does.

    The text that a family returns is read in the same way, up to ``_MOST_FORMS`` times.
    """
    nothing = result.status == "none" and result.reason == NOTHING_FOUND
    if depth == _MOST_FORMS or (result.status == "none" and (result.reason or "").startswith("refused")):
        return result
    readings: list[tuple[Family, Reading, PatchResult]] = []
    for family in FAMILIES:
        reading = None if family.whole_files and not nothing else family.read(text, indexes.files)
        if reading is None:
            continue
        if reading.text is not None:
            found = _in_any_form(reading.text, indexes)
        elif reading.edits:
            found = _made_of_edits(list(reading.edits), indexes, None)
        else:
            found = PatchResult("", "none", reading.problem)
        if found.status in ("applies", "repaired"):
            return _noted(found, family.note)
        readings.append((family, reading, found))
    for family, reading, found in readings:
        if reading.text is not None:
            found = _in_other_forms(reading.text, indexes, found, depth + 1)
        if found.status in ("applies", "repaired") or (nothing and found.status in ("unchecked", "does_not_apply")):
            return _noted(found, family.note)
        if nothing and found.reason != NOTHING_FOUND:
            result = found if result.reason == NOTHING_FOUND else result
    return result


def _in_any_form(text: str, indexes: FileIndexes) -> PatchResult:
    """A patch from the diffs of an answer, or from edits where it has none or they do not apply."""
    if (usual := usual_patch(text, indexes.files)) is not None:
        return usual
    blocks = find_blocks(text)
    if not blocks:
        return _replaced(text, indexes) or PatchResult("", "none", NOTHING_FOUND)
    result = _from_blocks(blocks, indexes)
    if "&" in text and any(decoded := [decoded_additions(block) for block in blocks]):
        pairs = zip(decoded, blocks, strict=True)
        found = _from_blocks([new or block for new, block in pairs], indexes)
        if found.status in ("applies", "repaired"):
            return _noted(found, DECODED)
    if result.status != "does_not_apply":
        return result
    replaced = _replaced(text, indexes)
    return replaced if replaced is not None and replaced.status == "repaired" else result


def _from_blocks(blocks: Sequence[Block], indexes: FileIndexes) -> PatchResult:
    """The result for an answer's diffs.

    Of two versions of a patch this is the last that applies, but the first if the last only repeats a part of it. A
    truncated version does not count.
    """
    if (usual := _usual(blocks, indexes)) is not None:
        return usual
    found = candidates(blocks, indexes)
    cut = [cut_off(candidate.blocks[-1]) for candidate in found]
    results = [_check_candidate(candidate, indexes) for candidate, why in zip(found, cut, strict=True) if why is None]
    if not results:
        return PatchResult("", "none", cut[-1], format=found[-1].format)
    usable = [result for result in results if result.status in ("applies", "repaired", "unchecked")]
    if len(usable) > 1 and found[-1].is_part and usable[0].status == "applies":
        return usable[0]
    if usable:
        return usable[-1]
    return results[-1]


def _usual(blocks: Sequence[Block], indexes: FileIndexes) -> PatchResult | None:
    """The result for one diff that is as git writes it and fits where it says; None: it must be read leniently."""
    if len(blocks) > 1 or not blocks[0].closed:
        return None
    text = text_of(blocks)
    return PatchResult(text, "applies", format=blocks[0].container) if fits(text, indexes.files) else None


def _check_candidate(candidate: Candidate, indexes: FileIndexes) -> PatchResult:
    refused = refusal(section.patch for section in candidate.sections)
    if refused is not None:
        return PatchResult("", "none", f"refused: {refused}", format=candidate.format)
    if candidate.text is None:
        return _repaired(candidate, indexes)
    try:
        applied = apply_patch(candidate.text, indexes.files)
    except RefusedPatch as error:
        repaired = _repaired(candidate, indexes)  # the path may be one of the repository in another spelling
        if repaired.status == "repaired":
            return repaired
        return PatchResult("", "none", f"refused: {error}", format=candidate.format)
    except PatchError:
        return _repaired(candidate, indexes)
    if not applied.unknown_files and _names_all(candidate, applied):
        if applied.guessed:
            return _guessed(candidate, candidate.text, applied, indexes)
        return PatchResult(candidate.text, "applies", None, candidate.notes, candidate.format)
    # The paths may be spelled differently from the prompt's, for example without a/ and b/.
    repaired = _repaired(candidate, indexes)
    if repaired.status == "repaired":
        return repaired
    if not applied.unknown_files:
        return PatchResult(candidate.text, "applies", None, candidate.notes, candidate.format)
    return PatchResult(candidate.text, "unchecked", _unknown_files_note(applied), candidate.notes, candidate.format)


def _guessed(candidate: Candidate, text: str, applied: Applied, indexes: FileIndexes) -> PatchResult:
    """The result for a patch that git puts at one of several equal places, unless its headings name another one."""
    repaired = _repaired(candidate, indexes)
    if repaired.status == "repaired":
        differs = apply_patch(repaired.patch, indexes.files).files != applied.files
        if any(note.startswith("chose ") for note in repaired.repairs):
            if differs:
                return repaired
            return PatchResult(text, "applies", None, candidate.notes, candidate.format)
        if differs and GUESSED_BY_NUMBER in repaired.repairs:
            return repaired  # git prefers the end of the file for a hunk without context behind it
    notes = (*candidate.notes, "git takes the nearest of several equal places to the line number")
    return PatchResult(text, "applies", None, notes, candidate.format)


def _names_all(candidate: Candidate, applied: Applied) -> bool:
    """Whether git changes the files that the headers name; it may keep a date in a name, or remove a folder of it."""
    patches = [section.patch for section in candidate.sections]
    return applied.files.keys() <= {path for patch in patches for path in (patch.old_path, patch.new_path)}


def _repaired(candidate: Candidate, indexes: FileIndexes) -> PatchResult:
    try:
        fixed, done = repair(candidate.sections, indexes)
        applied = apply_patch(fixed, indexes.files)
    except PatchError as error:
        text = candidate.text or "\n".join(line for block in candidate.blocks for line in block.lines) + "\n"
        return PatchResult(text, "does_not_apply", str(error), candidate.notes, candidate.format)
    repairs = (*candidate.notes, *(done or ("recounted and moved hunks",)))
    if applied.unknown_files:
        return PatchResult(fixed, "unchecked", _unknown_files_note(applied), repairs, candidate.format)
    return PatchResult(fixed, "repaired", None, repairs, candidate.format)


def _replaced(text: str, indexes: FileIndexes, edit_format: EditFormat | None = None) -> PatchResult | None:
    """The patch of an answer with edits or whole files, or None. Only those in ``edit_format``, if it is given."""
    replacements, problem = find_replacements(text, edit_format)
    if not replacements:
        return PatchResult("", "none", problem) if problem else None
    return _made_of_edits(replacements, indexes, edit_format)


def _made_of_edits(
    replacements: Sequence[Replacement], indexes: FileIndexes, edit_format: EditFormat | None
) -> PatchResult:
    form = replacements[0].form
    paths = indexes.paths
    known = [paths.find(paths.clean(edit.path or "")) for edit in replacements]
    plain = [
        without_path_comment(edit, None if path is None else indexes.files[path])
        for edit, path in zip(replacements, known, strict=True)
    ]
    replacements, versions = last_versions(plain)
    try:
        patch, notes = replacements_to_patch(replacements, indexes)
        apply_patch(patch, indexes.files)
    except PatchError as error:
        return PatchResult("", "none", str(error), format=form)
    if form == edit_format and not notes:
        return PatchResult(patch, "applies", repairs=versions, format=form)
    word = "made a diff of whole files" if form == "whole_file" else "made a diff of search/replace edits"
    return PatchResult(patch, "repaired", None, (word, *versions, *notes), form)


def _unknown_files_note(applied: Applied) -> str:
    return f"not in the prompt: {', '.join(dict.fromkeys(applied.unknown_files))}"
