"""The same answers to other prompts: what a patch is checked against does not depend on how the files are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swe_infer.context.files import FilesContext
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.sample import SampleDataset
from swe_infer.patches.pipeline import make_patch
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.prompts.rows import RenderedRows
from swe_infer.types import EditFormat, Prompt

ROOT = Path(__file__).resolve().parent.parent.parent
_DATA = ROOT.parent / "shared" / "data"
INSTANCES = 25
FORMS: Mapping[str, tuple[Any, EditFormat]] = {
    "style2": ("style2", "unified_diff"),
    "style3": ("style3", "unified_diff"),
    "full_file": ("full_file", "whole_file"),
    "search_replace": ("plain", "search_replace"),
    "json_edits": ("plain", "json_edits"),
    "template": ("plain", "unified_diff"),
}


class Characters:
    name = "characters"
    exact = True

    def __call__(self, prompt: Prompt) -> int:
        return len(prompt.text)


def sample_rows() -> tuple[list[dict[str, Any]], list[str], int]:
    """Bundled instances, answers that apply, need a repair, or do not apply, and how many of these give a patch."""
    opened = SampleDataset().open()
    rows = [dict(opened.row(index)) for index in range(INSTANCES)]
    answers = []
    for number, row in enumerate(rows):
        patch = f"```diff\n{row['patch']}```\n"
        path = next(iter(row["files"]))
        wrong = f"--- a/{path}\n+++ b/{path}\n@@ -1,2 +1,2 @@\n-no such line\n+x\n neither is this\n"
        answers.append((patch, patch.replace("\n@@ -", "\n@@ -1", 1), wrong)[number % 3])
    return rows, answers, 17


def recorded_rows() -> tuple[list[dict[str, Any]], list[str], int]:
    """Answers of real models, with the files at the base commit."""

    def read(name: str) -> list[dict[str, Any]]:
        with (_DATA / name).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    answers: dict[str, str] = {}
    for answer in read("model_outputs_dev.jsonl"):
        answers.setdefault(answer["instance_id"], answer["full_output"])
    rows = [row for row in read("base_files_dev.jsonl") if row["instance_id"] in answers and row["files"]]
    return rows[:INSTANCES], [answers[row["instance_id"]] for row in rows[:INSTANCES]], 25


@pytest.mark.parametrize(
    "load",
    [
        sample_rows,
        pytest.param(
            recorded_rows,
            marks=pytest.mark.skipif(not _DATA.exists(), reason="the recorded answers are not here"),
        ),
    ],
)
def test_the_same_answers_to_every_form_get_the_same_statuses(load: Any, tmp_path: Path) -> None:
    rows, answers, applying = load()
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for row in rows:
            issue = row.get("problem_statement") or "An issue."
            file.write(json.dumps({**row, "problem_statement": issue, "paths": list(row["files"])}) + "\n")
    dataset = JsonlDataset(path=str(path), text_column=None).open()
    found: dict[str, list[bool]] = {}
    for form, (style, edit_format) in FORMS.items():
        template = str(ROOT / "examples" / "prompt.jinja") if form == "template" else None
        renderer = PromptRenderer(style=style, edit_format=edit_format, template=template)
        made = RenderedRows(dataset, FilesContext(column="paths"), renderer, None, Characters(), "text")
        results = [make_patch(answer, made[i].files, edit_format) for i, answer in enumerate(answers)]
        assert "unchecked" not in {result.status for result in results}
        found[form] = [result.status in ("applies", "repaired") for result in results]
    assert len(found["style3"]) == INSTANCES
    assert sum(found["style3"]) == applying
    assert {form: results for form, results in found.items() if results != found["style3"]} == {}
