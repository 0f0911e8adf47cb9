"""Answers with search/replace edits or whole files instead of a diff."""

from __future__ import annotations

import pytest

from swe_infer.patches.edit import line_diff
from swe_infer.patches.pipeline import make_patch
from tests.patches.git import GitRepository, needs_git

pytestmark = needs_git

MODULE = (
    "import os\n\n\nclass A:\n    def run(self, value):\n        if value is None:\n            return 0\n"
    "        return value\n"
)
FILES = {"pkg/mod.py": MODULE, "pkg/other.py": "x = 1\nx = 1\n", "dos.py": "a = 1\r\nb = 2\r\n"}
WANTED = MODULE.replace("return 0", "return 1")

_OLD = "        if value is None:\n            return 0\n"
_NEW = "        if value is None:\n            return 1\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"pkg/mod.py\n```python\n<<<<<<< SEARCH\n{_OLD}=======\n{_NEW}>>>>>>> REPLACE\n```\n",
        f"```python\n### pkg/mod.py\n<<<<<<< SEARCH\n{_OLD}=======\n{_NEW}>>>>>>> REPLACE\n```\n",
        f"**`pkg/mod.py`**\n\n<<<<<<< ORIGINAL\n{_OLD}=======\n{_NEW}>>>>>>> UPDATED\n",
        f"<<<<<<< SEARCH\n{_OLD}=======\n{_NEW}>>>>>>> REPLACE\n",
        f"# change 1\n```\n<file>pkg/mod.py</file>\n<original>{_OLD}</original>\n<patched>{_NEW}</patched>\n```",
        f"<file>pkg/mod.py</file>\n<original>\n{_OLD}</original>\n<patched>\n{_NEW}</patched>\n",
        "<file>pkg/mod.py</file><original>if value is None:\n            return 0</original>"
        "<patched>if value is None:\n            return 1</patched>",
        "<file>mod.py</file><search>if value is None:\n    return 0</search>"
        "<replace>if value is None:\n    return 1</replace>",
        "<file>pkg/mod.py</file><old_str>return 0</old_str><new_str>return 1</new_str>",
        f'<file path="pkg/mod.py">\n<original>\n{_OLD}</original>\n<patched>\n{_NEW}</patched>\n</file>\n',
        f'<file path="pkg/mod.py">\n{WANTED}</file>\n',
        f"[start of pkg/mod.py]\n{WANTED}[end of pkg/mod.py]\n",
        f"The new file:\n\npkg/mod.py\n```python\n{WANTED}```\n",
        f"pkg/mod.py\r\n<<<<<<< SEARCH\r\n{_OLD}=======\r\n{_NEW}>>>>>>> REPLACE\r\n",
    ],
)
def test_edit_becomes_a_patch_that_applies(git: GitRepository, answer: str) -> None:
    result = make_patch(answer, FILES)
    assert result.status == "repaired", result
    assert git.apply(result.patch, FILES) == {**FILES, "pkg/mod.py": WANTED}


def test_new_text_gets_the_files_indentation(git: GitRepository) -> None:
    answer = (
        "<file>pkg/mod.py</file><original>if value is None:\n            return 0</original>"
        "<patched># none is one\nif value is None:\n    return 1</patched>"
    )
    applied = git.apply(make_patch(answer, FILES).patch, FILES)
    assert applied is not None
    assert "        # none is one\n        if value is None:\n            return 1\n" in applied["pkg/mod.py"]


def test_several_edits_of_a_file_add_up_and_may_build_on_each_other(git: GitRepository) -> None:
    edits = [("import os\n", "import os\nimport re\n"), ("import re\n", "import re\nimport abc\n"), (_OLD, _NEW)]
    answer = "".join(f"pkg/mod.py\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n\n" for old, new in edits)
    applied = git.apply(make_patch(answer, FILES).patch, FILES)
    assert applied == {**FILES, "pkg/mod.py": WANTED.replace("import os\n", "import os\nimport re\nimport abc\n")}


def test_new_file_is_made_of_an_empty_search(git: GitRepository) -> None:
    result = make_patch("pkg/new.py\n<<<<<<< SEARCH\n=======\na = 1\n>>>>>>> REPLACE\n", FILES)
    assert git.apply(result.patch, FILES) == {**FILES, "pkg/new.py": "a = 1\n"}


def test_line_ends_of_the_file_are_kept(git: GitRepository) -> None:
    result = make_patch("dos.py\n<<<<<<< SEARCH\na = 1\n=======\na = 2\n>>>>>>> REPLACE\n", FILES)
    assert git.apply(result.patch, FILES) == {**FILES, "dos.py": "a = 2\r\nb = 2\r\n"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("pkg/other.py\n<<<<<<< SEARCH\nx = 1\n=======\nx = 2\n>>>>>>> REPLACE\n", "more than once"),
        ("pkg/mod.py\n<<<<<<< SEARCH\nno such line\n=======\nx\n>>>>>>> REPLACE\n", "is not in the file"),
        ("pkg/mod.py\n<<<<<<< SEARCH\nimport os\n=======\nimport re\n", "cut off"),
        ("pkg/mod.py\n<<<<<<< SEARCH\nimport os\n", "cut off"),
        ("pkg/mod.py\n```python\nclass A:\n    def run(self, value):\n        return value\n```\n", "excerpt"),
        ("<file>pkg/mod.py</file><original>import os</original><patched>import re", "cut off"),
        ("<file>pkg/mod.py</file><original></original><patched>import re</patched>", "empty text"),
        ("<file>gone.py</file><original>a</original><patched>b</patched>", "not in the prompt"),
        ("<file>../up.py</file><original></original><patched>b</patched>", "leaves the repository"),
        ("<file>/etc/x.py</file><original></original><patched>b</patched>", "absolute"),
        ("pkg/mod.py\n```python\nclass A:\n    # ... existing code ...\n```\n", "leaves lines out"),
        ("pkg/mod.py\n```python\ndef helper():\n    return 2\n```\n", "excerpt"),
        ("<file>pkg/mod.py</file><original>import os</original><patched>import os</patched>", "change nothing"),
    ],
)
def test_ambiguous_edit_yields_no_patch_but_a_reason(answer: str, reason: str) -> None:
    result = make_patch(answer, FILES)
    assert (result.status, result.patch) == ("none", "")
    assert reason in (result.reason or "")


def test_one_edit_that_does_not_match_invalidates_the_answer() -> None:
    edits = "".join(
        f"pkg/mod.py\n<<<<<<< SEARCH\n{old}\n=======\nimport re\n>>>>>>> REPLACE\n"
        for old in ("import os", "import no")
    )
    result = make_patch(edits, FILES)
    assert result.status == "none"
    assert "edit 2 of 2" in (result.reason or "")


@pytest.mark.parametrize(
    ("old", "new"),
    [([], []), ([], ["a"]), (["a"], []), (list("abcabba"), list("cbabac")), (["x"] * 300, ["x"] * 299 + ["y"])],
)
def test_line_diff_leads_from_old_to_new(old: list[str], new: list[str]) -> None:
    lines = line_diff(old, new)
    assert [line.text for line in lines if line.tag != "+"] == old
    assert [line.text for line in lines if line.tag != "-"] == new
