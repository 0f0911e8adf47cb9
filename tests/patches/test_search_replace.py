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


LONG = (
    "import os\nimport re\n\n\n"
    + "".join(f"class C{n}:\n    def run(self):\n        return os.sep * {n}\n\n\n" for n in range(8))
    + "def stub():\n    ...\n"
)
CHANGED = LONG.replace("os.sep * 3", "os.sep * 33")
WHOLE = {"pkg/long.py": LONG, "one.txt": "1.0\n", "three.py": "a = 1\nb = 2\nc = 3\n", "mixed.py": "a\r\nb\nc\r\nb\n"}


def _numbered(text: str, form: str = "{} {}", first: int = 1) -> str:
    return "".join(form.format(n, line) + "\n" for n, line in enumerate(text.removesuffix("\n").split("\n"), first))


def _whole_forms(path: str, text: str) -> list[str]:
    return [
        f'<file path="{path}">\n{text}</file>\n',
        f"[start of {path}]\n{text}[end of {path}]\n",
        f"{path}\n```python\n{text}```\n",
        f"Here:\n```\n[start of {path}]\n{text}[end of {path}]\n```\nDone.\n",
    ]


def _applied(git: GitRepository, answer: str, files: dict[str, str]) -> dict[str, str] | None:
    result = make_patch(answer, files)
    assert result.status in ("none", "repaired"), result
    applied = git.apply(result.patch, files) if result.status == "repaired" else None
    assert (applied is None) == (result.status == "none"), result
    return applied


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("pkg/long.py", CHANGED, CHANGED),
        ("pkg/long.py", _numbered(CHANGED), CHANGED),
        ("pkg/long.py", _numbered(CHANGED) + "47 \n", CHANGED),
        ("pkg/long.py", _numbered(CHANGED, "{:6d}\t{}"), CHANGED),
        ("pkg/long.py", _numbered(CHANGED, "{}: {}"), CHANGED),
        ("pkg/long.py", _numbered(CHANGED, "{}|{}"), CHANGED),
        ("pkg/long.py", CHANGED + "\n\nclass P:\n    def f(self):\n        ...\n", None),
        ("one.txt", "2.0\n", "2.0\n"),
        ("one.txt", "1 2.0\n", "2.0\n"),
        ("three.py", "x = 1\ny = 2\n", "x = 1\ny = 2\n"),
        ("mixed.py", "a\nb\nC\nb\n", "a\r\nb\nC\r\nb\n"),
    ],
)
def test_whole_file_is_rewritten(git: GitRepository, path: str, text: str, expected: str | None) -> None:
    for answer in _whole_forms(path, text):
        assert _applied(git, answer, WHOLE) == {**WHOLE, path: expected or text}


@pytest.mark.parametrize(
    "text",
    [
        "class C3:\n    def run(self):\n        return os.sep * 33\n",
        "    def run(self):\n        return os.sep * 33\n",
        CHANGED.removeprefix("import os\nimport re\n\n\n"),
        CHANGED.removeprefix("import os\n"),
        CHANGED[: CHANGED.index("class C6")] + "    # (unchanged)\n",
        CHANGED[: CHANGED.index("class C6")] + "...\n",
        CHANGED[: CHANGED.index("class C5")],
        CHANGED[: CHANGED.index("        return os.sep * 7")],
        CHANGED.replace("        return os.sep * 5\n", "        # same as before\n"),
        CHANGED.replace("        return os.sep * 5\n", "        ...\n"),
        _numbered("class C3:\n    def run(self):\n        return os.sep * 33\n", first=20),
        _numbered(CHANGED).replace("\n7 ", "\n5 "),
        "\n",
    ],
)
def test_excerpt_in_the_form_of_a_whole_file_never_replaces_the_file(git: GitRepository, text: str) -> None:
    for answer in _whole_forms("pkg/long.py", text):
        assert _applied(git, answer, WHOLE) is None


def test_line_numbers_without_a_blank_behind_them_leave_the_indentation_alone(git: GitRepository) -> None:
    old, new = (
        "        if value is None:\n            return 0\n",
        "        if value is None:\n            return 1\n",
    )
    for text in (new, _numbered(new, "{}:{}", 6)):
        answer = _block(_numbered(old, "{}:{}", 6), text, "pkg/mod.py")
        assert _applied(git, answer, FILES) == {**FILES, "pkg/mod.py": WANTED}


def test_numbers_of_the_new_text_may_be_those_of_the_new_file(git: GitRepository) -> None:
    old, new = MODULE.splitlines(keepends=True)[5:7], WANTED.splitlines(keepends=True)[5:7]
    for first in (6, 1, 90):
        answer = _block(_numbered("".join(old), "{}| {}", 6), _numbered("".join(new), "{}| {}", first), "pkg/mod.py")
        assert _applied(git, answer, FILES) == {**FILES, "pkg/mod.py": WANTED}
    data = {"a.txt": "1 a\n2 b\n"}
    assert _applied(git, _block("1: 1 a\n2: 2 b\n", "5 a\n6 b\n", "a.txt"), data) == {"a.txt": "5 a\n6 b\n"}
    assert _applied(git, _block("1 1 a\n2 2 b\n", "5 a\n6 b\n", "a.txt"), data) is None


TABS = "if a:\n\tif b:\n\t\tc()\n"


@pytest.mark.parametrize("step", ["  ", "    ", "\t"])
@pytest.mark.parametrize("written", ["  ", "    ", "\t"])
def test_new_lines_get_the_steps_of_the_files_indentation(git: GitRepository, step: str, written: str) -> None:
    files = {"a.py": TABS.replace("\t", step)}
    old, new = "\tif b:\n\t\tc()\n", "\tif b:\n\t\twith d:\n\t\t\tc()\n"
    lines = [f"-{line}" for line in old.splitlines(keepends=True)] + [
        f"+{line}" for line in new.splitlines(keepends=True)
    ]
    diff = f"```diff\n--- a/a.py\n+++ b/a.py\n@@ -1,9 +1,9 @@\n if a:\n{''.join(lines)}```\n"
    for answer in (_block(old, new, "a.py"), diff):
        applied = git.apply(make_patch(answer.replace("\t", written), files).patch, files)
        assert applied == {"a.py": TABS.replace(old, new).replace("\t", step)}


def test_new_whole_file_loses_the_prompts_line_numbers(git: GitRepository) -> None:
    answer = f"[start of pkg/new.py]\n{_numbered(FILES['pkg/mod.py'])}[end of pkg/new.py]\n"
    assert _applied(git, answer, FILES) == {**FILES, "pkg/new.py": FILES["pkg/mod.py"]}
    answer = "[start of data.txt]\n1 a\n2 b\n[end of data.txt]\n"
    assert _applied(git, answer, FILES) == {**FILES, "data.txt": "1 a\n2 b\n"}


def _block(old: str, new: str, path: str = "a.md") -> str:
    return f"{path}\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n"


DOC = "Title\n=======\nx\n\ny\nz\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (_block("x\n\n", ""), "Title\n=======\ny\nz\n"),
        (_block("\ny\n", "\n"), "Title\n=======\nx\n\nz\n"),
        (_block("x\n", "\n"), "Title\n=======\n\n\ny\nz\n"),
        (_block("Title\n=======\nx\n", "Title\n=======\nw\n"), DOC.replace("x", "w")),
        (_block("y\n", "y\n\nOther\n=======\n"), DOC.replace("y\n", "y\n\nOther\n=======\n")),
        (_block("Title\n=======\n", ""), "x\n\ny\nz\n"),
        (_block("3 x\n4 \n5 y\n", "3 x\n4 \n5 w\n"), DOC.replace("y", "w")),
        (_block("3 x\n4 \n5 y\n", "3 x\n4 \nw\n"), DOC.replace("y", "w")),
        (_block("5: y\n", "w\n"), DOC.replace("y", "w")),
        (_block("5 | y\n6 | z\n", "w\n"), DOC.replace("y\nz", "w")),
        (_block("L5: y\nL6: z\n", "L5: w\n"), DOC.replace("y\nz", "w")),
        (_block("     5\ty\n     6\tz\n", "w\n"), DOC.replace("y\nz", "w")),
        ("<file>a.md</file><original>\nx\n\n</original><patched>\n</patched>", "Title\n=======\ny\nz\n"),
        (_block("5 y\n6 z\n", "5 y\n7 w\nz\n"), None),
        (_block("x\n\ny\n", "# ... existing code ...\ny\n"), None),
        (_block("x\n\ny\n", "# (unchanged)\ny\n"), None),
        (_block("x\n\ny\nz\n", "...\nw\n"), None),
        ("a.md\n<<<<<<< SEARCH\nx\n=======\nw\n\na.md\n<<<<<<< SEARCH\nz\n=======\nv\n>>>>>>> REPLACE\n", None),
    ],
)
def test_search_replace_block_changes_exactly_its_lines(
    git: GitRepository, answer: str, expected: str | None
) -> None:
    assert _applied(git, answer, {"a.md": DOC}) == (None if expected is None else {"a.md": expected})


@pytest.mark.parametrize("line", [1, 2, 4, 9])
def test_the_line_of_a_block_chooses_between_equal_places(git: GitRepository, line: int) -> None:
    files = {"a.py": "x = 1\n\n\ny = 0\n\n\n\nx = 1\n"}
    head = "<apply_diff>\n<path>a.py</path>\n<<<<<<< SEARCH\n"
    block = head + ":start_line:{}\n-------\nx = 1\n=======\nx = {}\n>>>>>>> REPLACE\n"
    result = make_patch(block.format(line, 5), files)
    expected = {1: "x = 5\n\n\ny = 0\n\n\n\nx = 1\n", 9: "x = 1\n\n\ny = 0\n\n\n\nx = 5\n"}
    expected[2] = expected[1]
    assert git.apply(result.patch, files) == ({"a.py": expected[line]} if line in expected else None), result
    assert line not in expected or any(note.startswith("guessed") for note in result.repairs)
    both = make_patch(block.format(1, 5) + block.format(8, 6), files)
    assert git.apply(both.patch, files) == {"a.py": "x = 5\n\n\ny = 0\n\n\n\nx = 6\n"}


CALL = (
    "def f(a):\n    return call(\n        a,\n        'x y',\n        {1: 2},\n    )\n\n\n"
    "if a:\n    if b:\n        b()\n    c(1, 2)\n"
)
JOINED = "    return call(a, 'x y', {1: 2})\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (_block(JOINED, JOINED.replace("a, ", "")), "    return call('x y', {1: 2})\n"),
        (f"--- a/a.md\n+++ b/a.md\n@@ -1,3 +1,2 @@\n def f(a):\n-{JOINED}+    return 0\n \n", "    return 0\n"),
        (f"--- a/a.md\n+++ b/a.md\n@@ -1,3 +1,3 @@\n def f(a):\n+    a = 0\n {JOINED} \n", "    a = 0\n{}"),
        (_block("    return call(a,\n        'x y'\n", "    return 0\n"), None),
        (_block(JOINED[4:], "return 0\n"), None),
        (_block("    if b:\n        b()\n        c( 1, 2)\n", "    d()\n"), None),
    ],
)
def test_lines_may_be_broken_differently_from_the_file(git: GitRepository, answer: str, expected: str | None) -> None:
    old = "".join(CALL.splitlines(keepends=True)[1:6])
    for end in ("\n", "\r\n"):
        files = {"a.md": CALL.replace("\n", end)}
        wanted = (
            None if expected is None else {"a.md": CALL.replace(old, expected.replace("{}", old)).replace("\n", end)}
        )
        assert _applied(git, answer, files) == wanted


@pytest.mark.parametrize(
    ("path", "created"),
    [
        ("Makefile", "Makefile"),
        ("`bin/run`", "bin/run"),
        ("/testbed/x/new.py", "x/new.py"),
        ("x\\new.py", "x/new.py"),
    ],
)
def test_new_file_may_have_no_extension_or_the_path_of_a_container(
    git: GitRepository, path: str, created: str
) -> None:
    assert _applied(git, _block("", "a = 1\n", path), FILES) == {**FILES, created: "a = 1\n"}


def test_line_ends_of_a_file_with_both_kinds_are_kept(git: GitRepository) -> None:
    files = {"m.txt": "a\r\nb\nc\r\nd\ne\r\n"}
    for answer in (
        _block("a\nb\nc\n", "a\nB\nC\n", "m.txt"),
        "--- a/m.txt\n+++ b/m.txt\n@@ -1,9 +1,9 @@\n a\n-b\n+B\n-c\n+C\n d\n",
    ):
        assert _applied(git, answer, files) == {"m.txt": "a\r\nB\nC\r\nd\ne\r\n"}
