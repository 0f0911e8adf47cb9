"""``prompt.lines``: which lines of files are shown, and how prompts number them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from swe_infer.context.bm25 import Bm25Context
from swe_infer.context.files import FilesContext
from swe_infer.context.llm import LlmContext
from swe_infer.context.windows import excerpt, matching_places, windows_at
from swe_infer.errors import ConfigError
from swe_infer.prompts.prompt import PromptRenderer
from tests.support import commands
from tests.support.commits import MemoryCommit

LONG = "".join(f"value_{number} = {number}\n" for number in range(1, 101))
FILES = {"pkg/long.py": LONG.encode(), "pkg/short.py": b"value_70 = 1\n", "README": b"Read me.\n"}
ROW = {"instance_id": "i", "problem_statement": "value_70 is wrong, and value_20 too; value_70!"}


def test_lines_around_places_are_merged_and_gaps_are_stated() -> None:
    text = "".join(f"{number}\n" for number in range(1, 20))  # 19 lines and an empty one
    assert windows_at([(10, 11)], text, 2) == [(8, 13)]
    assert windows_at([(15, 15), (8, 8)], text, 2) == [(6, 10), (13, 17)], "two lines in between are hidden"
    assert windows_at([(8, 8), (14, 14)], text, 2) == [(6, 16)], "a single line is not"
    assert windows_at([(4, 4), (18, 18)], text, 2) == [(1, 6), (16, 20)], "nor is one at an end"
    assert windows_at([(1, 99)], text, 0) == windows_at([(0, 0), (21, 30)], text, 5) == [], "the whole file"
    assert windows_at([(19, 10**9)], text, 0) == [(19, 20)]
    assert (
        excerpt("a\nb\nc\nd\ne", [(3, 3)], numbers=True)
        == "[lines 1-2 are not shown]\n3 c\n[lines 4-5 are not shown]"
    )
    assert excerpt("a\nb\nc\nd\ne", [(1, 1), (4, 5)], numbers=False) == "a\n[lines 2-3 are not shown]\nd\ne"
    assert matching_places(LONG, {"value_70": 2.0, "value_20": 1.5, "value_40": 0.1}, 5) == [(70, 70), (20, 20)]
    assert matching_places("x\n" * 50, {"y": 1.0}, 5) == []


def test_retrieved_files_show_the_lines_that_match_the_issue() -> None:
    commit = MemoryCommit(FILES)
    shown = Bm25Context(file_types=("py",)).choose_lines(ROW, commit, len, 2)
    assert shown.files["pkg/long.py"] == LONG, "patches are located in the whole file"
    assert shown.windows == {"pkg/long.py": [(18, 22), (68, 72)]}
    assert shown.tokens is not None
    assert shown.tokens["pkg/long.py"] < 240, "the limit of tokens is one of the lines that are shown"
    limited = Bm25Context(file_types=("py",), max_tokens=300, order="rank")
    assert set(limited.choose_lines(ROW, commit, len, 2).files) == {"pkg/long.py", "pkg/short.py"}
    assert set(limited.choose(ROW, commit, len).files) == {"pkg/short.py"}

    numbered = PromptRenderer(style="style3", lines=2).render(ROW, shown).user
    assert (
        "[start of pkg/long.py]\n[lines 1-17 are not shown]\n18 value_18 = 18\n19 value_19 = 19\n20 value_20 = 20\n"
        "21 value_21 = 21\n22 value_22 = 22\n[lines 23-67 are not shown]\n68 value_68 = 68\n"
    ) in numbered
    assert "72 value_72 = 72\n[lines 73-101 are not shown]\n[end of pkg/long.py]" in numbered
    assert "[start of pkg/short.py]\n1 value_70 = 1\n2 \n[end of pkg/short.py]" in numbered
    plain = PromptRenderer(style="plain", edit_format="search_replace", lines=2).render(ROW, shown).user
    assert "[lines 1-17 are not shown]\nvalue_18 = 18\n" in plain


def test_a_template_shows_the_same_lines(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for file in files %}{{ file.path }}:\n{{ file.numbered }}\n{{ file.text }}\n{% endfor %}")
    shown = Bm25Context(file_types=("py",)).choose_lines(ROW, MemoryCommit(FILES), len, 2)
    prompt = PromptRenderer(style="plain", template=str(template), lines=2).render(ROW, shown).user
    assert "\n[lines 1-17 are not shown]\n18 value_18 = 18\n" in prompt
    assert "\n[lines 1-17 are not shown]\nvalue_18 = 18\n" in prompt
    assert "value_50" not in prompt


def test_a_localiser_may_name_lines() -> None:
    commit = MemoryCommit(FILES)
    row = {**ROW, "paths": ["pkg/long.py:10-12", "./pkg/long.py:50", "pkg/short.py", "pkg/none.py:3"]}
    listed = FilesContext(column="paths", readmes=False)
    assert listed.choose_lines(row, commit, len, 1).windows == {"pkg/long.py": [(9, 13), (49, 51)]}
    assert listed.choose(row, commit, len).files["pkg/long.py"] == LONG
    assert set(listed.choose(row, commit, len).left_out) == {"pkg/none.py:3"}
    answer = "The places:\n```\n- `pkg/long.py:10-12` (the values)\npkg/long.py:50\npkg/short.py\n```\n"
    chosen = LlmContext(readmes=False).choose_answered(answer, ROW, commit, len, 1)
    assert chosen.windows == {"pkg/long.py": [(9, 13), (49, 51)]}
    assert list(chosen.files) == ["pkg/long.py", "pkg/short.py"]
    without = LlmContext(readmes=False).choose_answered("```\npkg/long.py\n```", ROW, commit, len, 1)
    assert without.windows == {"pkg/long.py": [(19, 21), (69, 71)]}, "without lines, those that match the issue"
    assert not LlmContext().choose_answered(answer, ROW, commit, len).windows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "style3", "lines": -1}, r"prompt\.lines=-1: must be at least 0, or null"),
        ({"style": "edits_only", "lines": 3}, r"prompt\.lines=3: prompt=edits_only shows no whole files"),
        ({"style": "given", "lines": 3}, r"prompt\.lines=3: prompt=given shows no whole files"),
        ({"style": "full_file", "edit_format": "whole_file", "lines": 3}, r"prompt\.edit_format=whole_file requests"),
    ],
)
def test_prompt_without_parts_of_files_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptRenderer(**options)


def test_frozen_prompts_have_whole_files(tmp_path: Path) -> None:
    files = {path: content.decode() for path, content in FILES.items()}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROW, "files": files}))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    arguments = ["dataset=jsonl", "dataset.path=rows.jsonl", "prompt=style3", "prompt.lines=2", "--out", "out.jsonl"]
    done = commands.run("swe_infer.prompts", *arguments, "context=bm25", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert "[lines 23-67 are not shown]" in row["text"]
    assert row["files"]["pkg/long.py"] == LONG
    refused = commands.run("swe_infer.prompts", *arguments, "context=oracle", cwd=tmp_path, env=environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "error: prompt.lines=2: context=oracle names no places in files; choose context=bm25"
    )
