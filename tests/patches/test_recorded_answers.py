"""Recorded answers of real models, checked by ``git apply``; skipped without the recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.patches import Tally
from swe_infer.prompt_format import files_in_prompt
from tests.patches.git import needs_git

_DATA = Path(__file__).parents[3] / "shared" / "data"
_ANSWERS, _BASES = _DATA / "model_outputs_dev.jsonl", _DATA / "base_files_dev.jsonl"
_PROMPTS = _DATA / "oracle_dev.jsonl"

pytestmark = [
    needs_git,
    pytest.mark.skipif(not (_ANSWERS.exists() and _BASES.exists()), reason="the recorded answers are not here"),
]


def _rows(path: Path) -> list[dict[str, object]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.full
def test_recorded_answers_become_patches_that_apply() -> None:
    bases = {row["instance_id"]: row["files"] for row in _rows(_BASES)}
    tally = Tally()
    for row in _rows(_ANSWERS):
        files = bases.get(row["instance_id"], {})
        assert isinstance(files, dict)
        tally.add(row, files)
    assert tally.reference_same == tally.reference == 142
    assert (tally.checkable, tally.edits) == (253, 23)
    assert tally.applied >= 232
    assert tally.edits_applied >= 15
    assert tally.disagreements == []
    assert tally.foreign_lines == []


@pytest.mark.skipif(not _PROMPTS.exists(), reason="the prompts are not here")
def test_files_of_real_prompts_equal_the_files_at_the_base_commit() -> None:
    bases = {row["instance_id"]: row["files"] for row in _rows(_BASES)}
    compared = 0
    for row in _rows(_PROMPTS):
        shown = files_in_prompt(str(row["text"]))
        assert len(shown) == str(row["text"]).count("\n[start of ")
        base = bases.get(row["instance_id"], {})
        assert isinstance(base, dict)
        for path in base.keys() & shown.keys():
            compared += 1
            assert shown[path] == base[path], (row["instance_id"], path)
    assert compared
