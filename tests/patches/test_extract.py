"""Finding the patch in the text around it."""

from __future__ import annotations

import pytest

from swe_infer.patches.pipeline import make_patch
from tests.patches.damage import WRAPPERS

FILES = {
    "pkg/mod.py": "import os\n\n\ndef first(a):\n    return a\n\n\ndef second(b):\n    return b\n",
    "docs/guide.md": "# Guide\n\n```sh\nrun\n```\n\nEnd.\n",
    "setup.py": "setup()\n",
}
DIFF = (
    "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -2,7 +2,7 @@\n \n \n def first(a):\n"
    "-    return a\n+    return a + 1\n \n \n def second(b):\n"
)
OTHER = """\
--- a/setup.py
+++ b/setup.py
@@ -1 +1 @@
-setup()
+setup(name="pkg")
"""


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_patch_is_found_in_any_wrapping(wrapper: str) -> None:
    result = make_patch(WRAPPERS[wrapper](DIFF), FILES)
    assert (result.status, result.patch) == ("applies", DIFF)


@pytest.mark.parametrize(
    "info", ["diff", "patch", "git-diff", "diff file=pkg/mod.py", "diff title='x y'", "", "text", "udiff"]
)
def test_fence_with_any_info_is_not_left_in_the_patch(info: str) -> None:
    assert make_patch(f"So:\n```{info}\n{DIFF}```\n", FILES).patch == DIFF


def test_crlf_answer_gives_the_patch_with_plain_line_ends() -> None:
    result = make_patch(f"Here:\n```diff\n{DIFF}```\nDone.\n".replace("\n", "\r\n"), FILES)
    assert (result.status, result.patch) == ("applies", DIFF)


def test_all_blocks_are_one_patch_and_later_files_are_kept() -> None:
    result = make_patch(f"First:\n```diff\n{DIFF}```\nThen the setup:\n```diff\n{OTHER}```\n", FILES)
    assert (result.status, result.patch) == ("applies", DIFF + OTHER)


def test_earlier_code_block_does_not_beat_a_raw_diff() -> None:
    answer = f"The culprit:\n```python\ndef first(a):\n    return a\n```\n\n{DIFF}\nThat is all.\n"
    assert make_patch(answer, FILES).patch == DIFF


def test_fence_inside_the_patch_does_not_cut_it_off() -> None:
    diff = (
        "--- a/docs/guide.md\n+++ b/docs/guide.md\n@@ -1,7 +1,10 @@\n # Guide\n \n ```sh\n run\n ```\n \n"
        "+```sh\n+stop\n+```\n End.\n"
    )
    result = make_patch(f"```diff\n{diff}```\n", FILES)
    assert (result.status, result.patch) == ("applies", diff)


@pytest.mark.parametrize("closing", [" ```", "+```", " </patch>"])
def test_closing_mark_with_a_sign_is_not_a_part_of_the_patch(closing: str) -> None:
    opening = "<patch>" if "patch" in closing else "```diff"
    result = make_patch(f"{opening}\n{DIFF}{closing}\n\nThis adds one.\n", FILES)
    assert (result.status, result.patch) == ("applies", DIFF)


def test_tag_closed_at_the_end_of_a_line_ends_the_patch_and_markup_in_it_does_not() -> None:
    assert make_patch(f"<patch>{DIFF.removesuffix(chr(10))}</patch>", FILES).patch == DIFF
    markup = DIFF.replace("a + 1", "<b></code>")
    for fence in ("```diff\n{}```\n", "<patch>\n{}</patch>\n", "<answer>\n```diff\n{}```\n</answer>\n"):
        assert make_patch(fence.format(markup), FILES).patch == markup


@pytest.mark.parametrize(
    "answer",
    [
        "<patch>\n{}</patch>.",
        "<patch>\n{}</patch> This adds one.\n+ Nothing else.",
        "<answer>\n<patch>\n{}</patch></answer>",
        "<patch>\n```diff\n{}```</patch>\n",
        "<diff>\n{}</diff>**",
    ],
)
def test_what_follows_a_closing_tag_on_its_line_is_not_a_part_of_the_patch(answer: str) -> None:
    assert make_patch(answer.format(OTHER), FILES).patch == OTHER


def test_a_second_patch_after_a_closing_tag_on_the_same_line_is_read() -> None:
    answer = f"<answer><patch>\n{DIFF}</patch> <patch>\n{OTHER}</patch></answer>\n"
    assert make_patch(answer, FILES).patch == DIFF + OTHER


def test_unclosed_fence_around_a_whole_patch_is_read_to_the_end() -> None:
    assert make_patch(f"```diff\n{DIFF}", FILES).patch == DIFF
    assert make_patch(f"```diff\n{DIFF.removesuffix(chr(10))}", FILES).patch == DIFF


def test_text_after_a_raw_diff_is_left_out_even_if_it_looks_like_a_list() -> None:
    assert make_patch(f"{DIFF}\n- It adds one.\n+ Nothing else.\n", FILES).patch == DIFF


def test_quoted_diff_is_read_without_its_quote_marks() -> None:
    assert make_patch("".join(f"> {line}\n" for line in DIFF.splitlines()), FILES).patch == DIFF


def test_reasoning_before_the_answer_is_not_the_answer() -> None:
    draft = DIFF.replace("a + 1", "a + 2")
    assert make_patch(f"<think>\nMaybe\n```diff\n{draft}```\n</think>\n```diff\n{DIFF}```\n", FILES).patch == DIFF


def test_tagged_patch_wins_over_drafts_around_it() -> None:
    draft = DIFF.replace("a + 1", "a + 2")
    assert make_patch(f"A draft:\n```diff\n{draft}```\n<patch>\n{DIFF}</patch>\n", FILES).patch == DIFF


def test_last_version_of_a_patch_is_taken_with_a_note() -> None:
    second = DIFF.replace("a + 1", "a + 2")
    answer = f"```diff\n{DIFF}```\nWait, or rather:\n```diff\n{second}```\n"
    result = make_patch(answer, FILES)
    assert (result.status, result.patch, result.repairs) == ("applies", second, ("took the last version of a file",))
    # A truncated version is not the model's word, nor is one that does not apply.
    third = "".join(DIFF.replace("a + 1", "a + 3").splitlines(keepends=True)[:-4])
    assert make_patch(f"{answer}No:\n```diff\n{third}", FILES).patch == second
    result = make_patch(f"```diff\n{DIFF}```\nNo:\n```diff\n{third}", FILES)
    assert (result.patch, result.repairs) == (DIFF, ("left out the last version, which is cut off",))
    elsewhere = second.replace("return a\n", "return nothing\n")
    result = make_patch(f"```diff\n{DIFF}```\nNo:\n```diff\n{elsewhere}```\n", FILES)
    assert (result.patch, result.repairs) == (DIFF, ("took the first version of a file",))


def test_repetition_of_a_part_is_not_a_new_version() -> None:
    whole = DIFF.replace("+    return a + 1\n", "+    a += 1\n+    return a + 1\n").replace("-2,7 +2,7", "-2,7 +2,8")
    result = make_patch(f"```diff\n{whole}```\nThe key change is:\n```diff\n{DIFF}```\n", FILES)
    assert (result.patch, result.repairs) == (whole, ("took the first version of a file",))


def test_last_version_of_an_edit_or_a_whole_file_is_taken_with_a_note() -> None:
    edit = "pkg/mod.py\n<<<<<<< SEARCH\n    return a\n=======\n    return a + {}\n>>>>>>> REPLACE\n"
    whole = "[start of setup.py]\nsetup({})\n[end of setup.py]\n"
    for form, first, last in ((edit, "1", "2"), (whole, "'a'", "'b'")):
        result = make_patch(f"{form.format(first)}Rather:\n{form.format(last)}", FILES)
        assert result.status == "repaired"
        assert form.format(last).splitlines()[-2].strip() in result.patch
        assert first not in result.patch.split("@@")[-1]
        assert "took the last version of an edit" in result.repairs


def test_later_version_is_taken_where_the_first_does_not_apply_as_it_stands() -> None:
    first = DIFF.replace("@@ -2,7 +2,7 @@", "@@ -2,9 +2,9 @@").replace("a + 1", "a + 2")
    result = make_patch(f"```diff\n{first}```\nWait, that is wrong. Let me correct it:\n```diff\n{DIFF}```\n", FILES)
    assert (result.status, result.patch) == ("applies", DIFF)


def test_two_blocks_for_different_places_of_a_file_are_both_kept() -> None:
    second = "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -9,1 +9,1 @@\n-    return b\n+    return b + 1\n"
    result = make_patch(
        f"```diff\n{DIFF.replace(' def second(b):' + chr(10), '')}```\nand\n```diff\n{second}```\n", FILES
    )
    assert result.status == "repaired"
    assert "+    return a + 1\n" in result.patch
    assert "+    return b + 1\n" in result.patch


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   \n",
        "I cannot help with that.",
        "The bug is in first(): it should add one.\n- Change it\n- Test it\n",
        "```python\ndef first(a):\n    return a + 1\n```\n",
        "--- \nA rule, and a +++ sign.\n",
        "```\nUse @@ as a mark\n```",
    ],
)
def test_prose_and_refusals_yield_no_patch_but_a_reason(answer: str) -> None:
    result = make_patch(answer, FILES)
    assert (result.status, result.patch) == ("none", "")
    assert result.reason


@pytest.mark.parametrize("lines", range(1, 7))
def test_truncated_half_of_a_patch_yields_none(lines: int) -> None:
    half = "".join(DIFF.splitlines(keepends=True)[:lines])
    result = make_patch(f"The fix:\n```diff\n{half}", FILES)
    assert (result.status, result.patch) == ("none", "")
    assert result.reason


def test_patch_cut_in_the_header_of_its_second_file_yields_none() -> None:
    for half in ("--- a/setup.py\n", "--- a/setup.py\n+++ b/setup.py\n", "--- a/setup.py\n+++ b/setup.py\n@@ -1"):
        assert make_patch(f"<patch>\n{DIFF}{half}", FILES).status == "none", half


def test_cut_in_trailing_context_alone_is_repaired() -> None:
    result = make_patch("```diff\n" + "".join(DIFF.splitlines(keepends=True)[:-2]), FILES)
    assert result.status == "repaired"
