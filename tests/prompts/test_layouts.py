"""The text of each built-in prompt, and that the published prompts are rebuilt to the byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.context.base import Shown
from swe_infer.context.oracle import OracleContext
from swe_infer.errors import ConfigError, DataError, RepositoryError
from swe_infer.prompt_format import files_in_prompt
from swe_infer.prompts.edit_formats import INSTRUCTIONS
from swe_infer.prompts.prompt import PromptRenderer, Style
from swe_infer.repositories import Repositories
from swe_infer.types import EditFormat, Prompt

ROW = {"instance_id": "i", "problem_statement": "It adds.\r\n", "hints_text": "Try `*`.", "text": "one\ntwo"}
SHOWN = Shown({"z.py": "def f(a, b):\n    return a + b\n", "a.py": "x"}, {"README": "# R\n"})

PREMISE = "You will be provided with a partial code base and an issue statement explaining a problem to resolve."
NUMBERED = """\
<code>
[start of README]
1 # R
2\x20
[end of README]
[start of a.py]
1 x
[end of a.py]
[start of z.py]
1 def f(a, b):
2     return a + b
3\x20
[end of z.py]
</code>
"""
PLAIN = """\
<code>
[start of README]
# R

[end of README]
[start of a.py]
x
[end of a.py]
[start of z.py]
def f(a, b):
    return a + b

[end of z.py]
</code>
"""
STYLE_2_ASKS = (
    "I need you to solve this issue by generating a single patch file that I can apply directly to this repository "
    "using git apply. Please respond with a single patch file in the following format.\n"
    "<patch>\n--- a/file.py\n+++ b/file.py\n@@ -1,27 +1,35 @@\n def euclidean(a, b):\n-    while b:\n"
)
EXAMPLE_ENDS = "\n+            y += sy\n \n+    points.append((x, y))\n     return points\n</patch>\n"


def rendered(style: Style, shown: Shown = SHOWN, edit_format: EditFormat = "unified_diff", **columns: str) -> Prompt:
    return PromptRenderer(style=style, edit_format=edit_format).render({**ROW, **columns}, shown)


def test_style_2() -> None:
    prompt = rendered("style2")
    assert prompt.system == PREMISE
    assert prompt.user.startswith(f"<issue>\nIt adds.\r\n\n</issue>\n{NUMBERED}{STYLE_2_ASKS}")
    assert prompt.user.endswith(f"{EXAMPLE_ENDS}\n")


def test_style_3() -> None:
    prompt = rendered("style3")
    assert prompt.system == PREMISE
    assert prompt.user.startswith(
        f"<issue>\nIt adds.\r\n\n</issue>\n\n{NUMBERED}\nHere is an example of a patch file. It consists of changes"
    )
    assert prompt.user.endswith(
        f"{EXAMPLE_ENDS}\nI need you to solve the provided issue by generating a single patch file that I can apply "
        "directly to this repository using git apply. Please respond with a single patch file in the format shown "
        "above.\nRespond below:\n\n"
    )


def test_full_file() -> None:
    prompt = rendered("full_file", edit_format="whole_file")
    assert prompt.system == PREMISE
    assert prompt.user.startswith(
        f"<issue>\nIt adds.\r\n\n</issue>\n{PLAIN}I need you to solve this issue by regenerating the full files in "
        "the code base that you would like to change. You can change as many files as you like. Please respond with "
        "a list of files and their revised contents in the following format.\n<example>\n"
        "[start of /src/this_file.py]\nimport os\n\ndef euclidean(a, b):\n"
    )
    assert prompt.user.endswith("            points.append((x\n            err -= dx\n            if err < 0:\n"
        "                x += sx\n                err += dy\n            y += sy\n    points.append((x, y))\n"
        "    return points\n[end of /src/another_file.py]\n</example>\n\n")  # fmt: skip


def test_no_file_and_a_new_file() -> None:
    assert "</issue>\n\n<code>\n\n\n</code>\n\nHere" in rendered("style3", Shown()).user
    assert "<code>\n\n[start of /dev/null]\n1 \n[end of /dev/null]\n</code>" in (
        rendered("style2", Shown(creates_file=True)).user
    )
    assert "/dev/null" not in rendered("plain", Shown({"a.py": "x"}, creates_file=True)).user


def test_edits_only_shows_the_lines_around_each_hunk_those_near_the_start_included() -> None:
    text = "".join(f"line {n}\n" for n in range(1, 101))
    patch = (
        "--- a/m.py\n+++ b/m.py\n"
        "@@ -3,2 +3,2 @@\n line 3\n-line 4\n+four\n"
        "@@ -40,2 +40,2 @@\n line 40\n-line 41\n+41\n"
        "@@ -99,2 +99,2 @@\n line 99\n-line 100\n+100\n"
        "--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+n\n"
    )

    def lines(first: int, last: int) -> str:
        return "".join(f"{n} line {n}\n" for n in range(first, last + 1))

    prompt = rendered("edits_only", Shown({"m.py": text, "other.py": "o"}, creates_file=True), patch=patch)
    assert prompt.user.startswith(
        "<issue>\nIt adds.\r\n\n</issue>\n<code>\n\n[start of /dev/null]\n\n...\n[end of /dev/null]\n"
        f"[start of m.py]\n{lines(1, 5)}...\n...\n{lines(26, 42)}...\n...\n{lines(85, 100)}101 \n[end of m.py]\n"
        f"[start of other.py]\n1 o\n[end of other.py]\n</code>\n{STYLE_2_ASKS}"
    )
    with pytest.raises(DataError, match="no gold patch"):
        rendered("edits_only")


@pytest.mark.parametrize("edit_format", INSTRUCTIONS)
def test_our_own_layout_asks_for_each_form(edit_format: EditFormat) -> None:
    asks = INSTRUCTIONS[edit_format]
    prompt = rendered("plain", edit_format=edit_format)
    assert prompt.system == "You resolve an issue of a software repository."
    assert prompt.user == (
        f"<issue>\nIt adds.\r\n\n</issue>\n\nThese are files of the repository:\n\n{PLAIN}\n{asks}"
    )
    assert rendered("plain", Shown(), edit_format).user == f"<issue>\nIt adds.\r\n\n</issue>\n\n{asks}"
    for style in ("style2", "style3", "full_file"):
        native = edit_format == ("whole_file" if style == "full_file" else "unified_diff")
        assert (asks.strip() in rendered(style, edit_format=edit_format).user) != native


def test_system_and_hints_are_the_users_choice() -> None:
    renderer = PromptRenderer(style="style3", system="Be brief.", hints=True, prefill="<patch>")
    prompt = renderer.render(ROW, SHOWN)
    assert prompt.system == "Be brief."
    assert prompt.user.startswith("<issue>\nIt adds.\r\n\n</issue>\n<hints>\nTry `*`.\n</hints>\n\n<code>\n")
    assert "<hints>" not in renderer.render({**ROW, "hints_text": " "}, SHOWN).user
    assert "<hints>" not in rendered("style3").user
    assert PromptRenderer(style="style2", system="").render(ROW, SHOWN).system is None


def test_given_takes_the_rows_text() -> None:
    given_text = PromptRenderer(style="given")
    assert given_text.render(ROW, Shown()) == Prompt("one", "two")
    assert given_text.render({"prompt": "x"}, Shown(), text_column="prompt") == Prompt(None, "x")
    for row in ({}, {"text": " "}, {"text": 1}, {"text": "half \ud83d"}):
        with pytest.raises(DataError):
            given_text.render(row, Shown())
    with pytest.raises(ConfigError, match=r"prompt\.hints=true: prompt=given"):
        PromptRenderer(style="given", hints=True)
    with pytest.raises(ConfigError, match=r"prompt\.examples is for templates"):
        PromptRenderer(style="style3", examples="few.jsonl")
    given_text.check_context(gives_text=True, context="given")
    PromptRenderer(style="style3").check_context(gives_text=False, context="oracle")
    for renderer, gives_text, context in (
        (given_text, False, "oracle"),
        (PromptRenderer(style="style3"), True, "given"),
    ):
        with pytest.raises(ConfigError, match=f"^context={context} .* prompt={renderer.style}"):
            renderer.check_context(gives_text=gives_text, context=context)


def test_row_without_an_issue_is_refused() -> None:
    for statement in (None, "", "\n", 3):
        with pytest.raises(DataError, match="problem_statement"):
            PromptRenderer(style="style3").render({**ROW, "problem_statement": statement}, SHOWN)


names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?\.py", fullmatch=True)
texts = st.text(st.sampled_from("ab1 \t.\n\x0c\u2028é"), max_size=60)


@given(st.dictionaries(names, texts, max_size=4), texts)
def test_files_are_read_back_from_the_prompt(files: dict[str, str], readme: str) -> None:
    for style in ("style2", "style3"):
        prompt = rendered(style, Shown(files, {"README.md": readme}))
        assert files_in_prompt(prompt.text) == {"README.md": readme, **files}


DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "oracle_dev.jsonl"


def test_published_prompts_are_rebuilt_to_the_byte() -> None:
    """Every row whose repository is in the folder ``SWE_INFER_TEST_REPOSITORIES``, which may hold clones in any of
    the layouts that ``context.repositories`` takes."""
    folder = os.environ.get("SWE_INFER_TEST_REPOSITORIES")
    if not folder or not DATA.exists():
        pytest.skip("needs the shared instances, and SWE_INFER_TEST_REPOSITORIES: a folder of clones")
    context = OracleContext(repositories=folder, offline=True)
    rebuilt: list[str] = []
    different: list[str] = []
    with Repositories(context) as repositories:
        for line in DATA.read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            try:
                commit = repositories.open(row["repo"], row["base_commit"])
            except RepositoryError:
                continue
            text = PromptRenderer(style="style3").render(row, context.choose(row, commit, len)).text
            (rebuilt if text == row["text"] else different).append(row["instance_id"])
    assert different == []
    assert rebuilt, f"no repository of the instances is in {folder}"
