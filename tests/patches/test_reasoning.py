"""A patch in a model's reasoning is a draft, not the answer."""

from __future__ import annotations

import pytest

from swe_infer.patches.pipeline import make_patch
from swe_infer.patches.reasoning import CUT_OFF, TAKEN
from tests.support.steps import lines_executed

FILES = {"m.py": "a = 1\nb = 2\nc = 3\n", "README.md": "# T\n\nText.\n"}
DIFF = "--- a/m.py\n+++ b/m.py\n@@ -1,3 +1,3 @@\n a = 1\n-b = 2\n+b = 4\n c = 3\n"
DRAFT = f"Maybe:\n```diff\n{DIFF.replace('b = 4', 'b = 9')}```\nNo.\n"
UNCLOSED = DRAFT.replace("```\nNo.", "No.")
ANSWER = f"```diff\n{DIFF}```\n"

BEFORE_ANSWER = [
    "<think>\n{}</think>\n",
    "<THINK>\n{}</Think>\n",
    '<thinking mode="deep">\n{}</thinking>\n\n',
    "{}</think>\n\n",
    "- a list.</think>\n{}</think>",
    "{}</seed:think>\n",
    "<seed:think>{}</seed:think>\n",
    "[THINK]\n{}[/THINK]\n",
    "\u25c1think\u25b7\n{}\u25c1/think\u25b7\n",
    "<|begin_of_thought|>\n{}<|end_of_thought|>\n<|begin_of_solution|>\n",
    "{}<|END_THINKING|>\n",
    "<thought>{}</thought>",
    "<reflection>\n{}</reflection>\n",
    "<analysis>\n{}</analysis>\n",
    "<details><summary>Reasoning</summary>\n\n{}</details>\n",
    "<inner_monologue>{}</inner_monologue>\n",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>{}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>",
    "analysisWe see. {}assistantfinal",
    "Here is my thought process:\n{}\nHere is my response:\n",
    "<think>\nThe tag <think> opens it.\n{}</think>\n",
    "<think>\n<details>{}</details></think>\n",
    "<think>\n{}<answer>\n",
]


@pytest.mark.parametrize("form", BEFORE_ANSWER)
@pytest.mark.parametrize("draft", [DRAFT, UNCLOSED], ids=["draft", "unclosed"])
def test_draft_in_reasoning_is_not_the_answer(form: str, draft: str) -> None:
    for end in ("", "<|im_end|>", "<|return|>\n"):
        result = make_patch(form.format(draft) + ANSWER.rstrip() + end, FILES)
        assert (result.status, result.patch) == ("applies", DIFF), end


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|channel|>analysis<|message|>", "analysisWe"])
def test_answer_that_ends_inside_its_reasoning_has_no_patch(opening: str) -> None:
    result = make_patch(f"{opening}\n{DRAFT}So I", FILES)
    assert (result.status, result.patch, result.reason) == ("none", "", CUT_OFF)


@pytest.mark.parametrize("form", ["<think>\n{}</think>\n", "{}</think>", "<|channel|>analysis<|message|>{}<|end|>"])
def test_complete_reasoning_without_an_answer_is_used_with_a_note(form: str) -> None:
    result = make_patch(form.format(ANSWER), FILES)
    assert (result.status, result.patch) == ("repaired", DIFF)
    assert TAKEN in result.repairs


def test_prose_after_reasoning_does_not_make_the_draft_an_answer() -> None:
    assert make_patch(f"<think>\n{DRAFT}</think>\nThere is no bug.", FILES).status == "none"


def test_section_that_holds_the_only_patch_is_read_with_a_note() -> None:
    result = make_patch(f"The patch:\n<details><summary>Patch</summary>\n\n{ANSWER}</details>\nDone.", FILES)
    assert (result.status, result.patch) == ("repaired", DIFF)
    assert result.repairs == ("took the patch from a section beside the answer",)


@pytest.mark.parametrize(
    "line", ["<think>", "</think>", "<details>", "</details>", "[THINK]", "<analysis>x</analysis>", "a <thought> b"]
)
def test_tags_in_a_diff_or_in_quotes_are_content(line: str) -> None:
    diff = f"--- a/README.md\n+++ b/README.md\n@@ -1,3 +1,4 @@\n # T\n \n+{line}\n Text.\n"
    for answer in (diff, f"```diff\n{diff}```\n", f"It strips `{line}` now.\n```diff\n{diff}```\n"):
        result = make_patch(answer, FILES)
        assert (result.status, result.patch) == ("applies", diff)


@pytest.mark.parametrize(
    "piece", ["<think>\n", "</think>\n", "<details>\n", "<think></think>", "<|channel|>", "[THINK]\n```\n", "◁", "<"]
)
def test_time_is_linear_in_the_tags(piece: str, large_size: int) -> None:
    small, large = (piece * count for count in (150, 1200))
    assert lines_executed(lambda: make_patch(large, FILES)) < 14 * lines_executed(lambda: make_patch(small, FILES))
    make_patch(piece * (large_size // len(piece)), FILES)
