"""The form that a prompt requests is tried first, then the others."""

from __future__ import annotations

import json
import re

import pytest

from swe_infer.patches.pipeline import make_patch
from swe_infer.types import EditFormat
from tests.patches.git import GitRepository, needs_git
from tests.support.steps import lines_executed

pytestmark = needs_git

FILES = {
    "src/pkg/mod.py": "import os\n\n\ndef f(a, b):\n    return a + b\n\n\ndef g():\n    ...\n",
    "dos.py": "a = 1\r\nb = 2\r\n",
    "src/pkg/__init__.py": "",
}
WANTED = FILES["src/pkg/mod.py"].replace("a + b", "a * b")
DIFF = (
    "--- a/src/pkg/mod.py\n+++ b/src/pkg/mod.py\n@@ -2,7 +2,7 @@\n \n \n def f(a, b):\n-    return a + b\n"
    "+    return a * b\n \n \n def g():\n"
)
EDIT = {"path": "src/pkg/mod.py", "search": "    return a + b\n", "replace": "    return a * b\n"}
BLOCK = "src/pkg/mod.py\n<<<<<<< SEARCH\n    return a + b\n=======\n    return a * b\n>>>>>>> REPLACE\n"
OTHER = DIFF.replace("a * b", "a - b")

ANSWERS: dict[EditFormat, list[str]] = {
    "unified_diff": [DIFF, f"<patch>\n{DIFF}</patch>"],
    "search_replace": [BLOCK, f"I change one line.\n\n```python\n{BLOCK}```\n"],
    "whole_file": [
        f"[start of src/pkg/mod.py]\n{WANTED}[end of src/pkg/mod.py]\n",
        f"[start of /src/pkg/mod.py]\n{WANTED}\n[end of /src/pkg/mod.py]\n",
    ],
    "json_edits": [
        json.dumps([EDIT]),
        f"Here:\n```json\n{json.dumps([EDIT], indent=2)}\n```\nDone.",
        json.dumps({"edits": [EDIT]}),
        json.dumps(EDIT)
        .replace("search", "old_string")
        .replace("replace", "new_string")
        .replace("path", "file_path"),
        '[{"path": "src/pkg/mod.py", "search": "return a + b", "replace": "return a * b"}]',
        json.dumps([EDIT]).replace("\\n", "\n"),
    ],
}


@pytest.mark.parametrize("edit_format", ANSWERS)
def test_answer_in_the_requested_form_applies(git: GitRepository, edit_format: EditFormat) -> None:
    for answer in ANSWERS[edit_format]:
        result = make_patch(answer, FILES, edit_format)
        assert result.status == "applies", (answer, result)
        assert git.apply(result.patch, FILES) == {**FILES, "src/pkg/mod.py": WANTED}
        for other in ANSWERS:
            result = make_patch(answer, FILES, other)
            assert result.status in ("applies", "repaired"), (answer, other, result)
            assert git.apply(result.patch, FILES) == {**FILES, "src/pkg/mod.py": WANTED}


def test_requested_form_precedes_others_in_one_answer(git: GitRepository) -> None:
    for edit_format in ("search_replace", "whole_file", "json_edits"):
        answer = f"A sketch:\n```diff\n{OTHER}```\nThe answer:\n{ANSWERS[edit_format][0]}"
        assert "a * b" in make_patch(answer, FILES, edit_format).patch
        assert "a - b" in make_patch(answer, FILES).patch
    cut = f"```diff\n{DIFF}```\n" + json.dumps([EDIT])[:-20]
    assert make_patch(cut, FILES, "json_edits").patch == DIFF, "falls back"
    assert make_patch(json.dumps([EDIT])[:-20], FILES, "json_edits").reason == "the JSON of the edits is cut off"
    missing = json.dumps([EDIT, {**EDIT, "search": "nowhere"}])
    assert make_patch(missing, FILES, "json_edits").reason == (
        "edit 2 of 2: src/pkg/mod.py: the old text is not in the file"
    )


def test_json_edits_create_remove_and_add_up(git: GitRepository) -> None:
    edits = [
        EDIT,
        {"path": "src/pkg/mod.py", "search": "import os\n", "replace": ""},
        {"path": "src/pkg/mod.py", "search": "def g():\n", "replace": "def g():\n    # nothing\n"},
        {"path": "src/pkg/new.py", "search": "", "replace": "n = 1\n"},
        {"path": "src/pkg/__init__.py", "search": "", "replace": "from pkg import new\n"},
        {"path": "dos.py", "search": "b = 2\n", "replace": "b = 3\nc = 4\n"},
    ]
    result = make_patch(json.dumps(edits), FILES, "json_edits")
    wanted = {
        "src/pkg/mod.py": WANTED.replace("import os\n", "", 1).replace("def g():\n", "def g():\n    # nothing\n"),
        "src/pkg/new.py": "n = 1\n",
        "src/pkg/__init__.py": "from pkg import new\n",
        "dos.py": "a = 1\r\nb = 3\r\nc = 4\r\n",
    }
    assert git.apply(result.patch, FILES) == wanted, result


def test_whole_file_keeps_line_ends_bytes_and_lines_that_look_left_out(git: GitRepository) -> None:
    answer = "[start of dos.py]\na = 1\nb = 3\nc = 4\n[end of dos.py]\n"
    result = make_patch(answer, FILES, "whole_file")
    assert result.status == "applies"
    applied = git.apply(result.patch, FILES)
    assert applied is not None
    assert applied["dos.py"] == "a = 1\r\nb = 3\r\nc = 4\r\n"
    latin = {"latin.py": "# caf\udce9\nx = 1\n"}
    answer = "[start of latin.py]\n# caf\ufffd\nx = 2\n[end of latin.py]\n"
    assert "-x = 1\n+x = 2\n" in make_patch(answer, latin, "whole_file").patch
    assert "\ufffd" not in make_patch(answer, latin, "whole_file").patch, "the file keeps its bytes"
    body = WANTED.replace("def f(a, b):\n    return a * b", "# ... rest of the code")
    elided = f"[start of src/pkg/mod.py]\n{body}[end of src/pkg/mod.py]\n"
    assert make_patch(elided, FILES, "whole_file").status == "none"


@pytest.mark.parametrize("text", ["[", "{", '[{"path": "a", "search": ', '{"search": "', "[\n", '{"search":1}\n'])
def test_hostile_json_is_refused_in_linear_time(text: str) -> None:
    def steps(count: int) -> int:
        return lines_executed(lambda: make_patch(text * count, FILES, "json_edits"))

    assert steps(8000) < 14 * steps(1000) + 10_000


def lines_of(content: str) -> list[str]:
    """The lines of a file, and their ends between them."""
    return re.split(r"(\r\n|\r|\n)", content)


@pytest.mark.parametrize(
    "content",
    [
        "a = 1\rb = 2\rc = 3\r",
        "a = 1\nb = 2\rx\nc = 3\n",
        "a = 1\r\nb = 2\nc = 3\r\n",
        "a = 1\r\nb = 2\r\nc = 3",
        "a\r\r\nb\n\r",
    ],
)
def test_mixed_line_ends_are_restored_in_every_form(git: GitRepository, content: str) -> None:
    files = {"mod.py": content}
    lines = lines_of(content)
    shown = "\n".join(lines[::2])
    for at in range(0, len(lines), 2):
        if not lines[at]:
            continue
        changed = [*lines[:at], f"{lines[at]} new", *lines[at + 1 :]]
        number, text = at // 2 + 1, "\n".join(changed[::2])
        edit = {"path": "mod.py", "search": lines[at], "replace": changed[at]}
        no_newline = "" if lines[at + 1 : at + 2] else "\\ No newline at end of file\n"
        old, new = f"-{lines[at]}\n{no_newline}", f"+{changed[at]}\n{no_newline}"
        answers: dict[EditFormat, str] = {
            "whole_file": f"[start of mod.py]\n{text}\n[end of mod.py]",
            "search_replace": f"mod.py\n<<<<<<< SEARCH\n{lines[at]}\n=======\n{changed[at]}\n>>>>>>> REPLACE",
            "json_edits": json.dumps([edit]),
            "unified_diff": f"--- a/mod.py\n+++ b/mod.py\n@@ -{number} +{number} @@\n{old}{new}",
        }
        assert shown.split("\n")[number - 1] == lines[at]
        for edit_format, answer in answers.items():
            result = make_patch(answer, files, edit_format)
            assert result.status in ("applies", "repaired"), (answer, result)
            assert result.repairs[-1] == "restored line ends"
            assert git.apply(result.patch, files) == {"mod.py": "".join(changed)}, (edit_format, answer)
