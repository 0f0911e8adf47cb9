"""The check in memory against the real ``git apply``, for each of git's rules."""

from __future__ import annotations

import pytest

from swe_infer.patches.apply import Applied, apply_patch
from swe_infer.patches.diff import PatchError
from tests.patches.git import GitRepository, needs_git

pytestmark = needs_git

NUMBERS = "".join(f"{n}\n" for n in range(1, 21))
FILES = {
    "n.txt": NUMBERS,
    "same.txt": "a\nb\n" * 10,
    "open.txt": "one\ntwo",
    "dos.txt": "one\r\ntwo\r\n",
    "d/e.txt": "",
}


def _hunk(header: str, *lines: str, path: str = "n.txt") -> str:
    return f"--- a/{path}\n+++ b/{path}\n{header}\n" + "".join(line + "\n" for line in lines)


FIVE = _hunk("@@ -4,3 +4,3 @@", " 4", "-5", "+five", " 6")
TEN = "@@ -9,3 +9,3 @@\n 9\n-10\n+ten\n 11\n"
ONE = "@@ -1,2 +1,2 @@\n-1\n+one\n 2\n"
ADD = "@@ -0,0 +1 @@\n+a\n"


def _with_index(index: str) -> str:
    return f"diff --git a/n.txt b/n.txt\n{index}\n{FIVE}"


CASES = {
    "exact": FIVE,
    "offset": _hunk("@@ -9,3 +9,3 @@", " 4", "-5", "+five", " 6"),
    "nearest of many": _hunk("@@ -9,3 +9,3 @@", " a", "-b", "+B", " a", path="same.txt"),
    "nearest of many, later first": _hunk("@@ -8,3 +8,3 @@", " a", "-b", "+B", " a", path="same.txt"),
    "counts too large": _hunk("@@ -4,4 +4,4 @@", " 4", "-5", "+five", " 6"),
    "counts too small": _hunk("@@ -4,2 +4,2 @@", " 4", "-5", "+five", " 6"),
    "no count means one": _hunk("@@ -1 +1 @@", "-1", "+one"),
    "first line must match the start": _hunk("@@ -1,2 +1,2 @@", "-5", "+five", " 6"),
    "no trailing context must match the end": _hunk("@@ -4,2 +4,2 @@", " 4", "-5", "+five"),
    "no trailing context at the end": _hunk("@@ -19,2 +19,2 @@", " 19", "-20", "+twenty"),
    "wrong context": _hunk("@@ -4,3 +4,3 @@", " 44", "-5", "+five", " 6"),
    "white space differs": _hunk("@@ -4,3 +4,3 @@", " 4 ", "-5", "+five", " 6"),
    "empty context line without a sign": _hunk("@@ -0,0 +1,2 @@", "+x", "", path="d/e.txt"),
    "two hunks": _hunk("@@ -1,2 +1,2 @@", "-1", "+one", " 2") + TEN,
    "second hunk moved": FIVE + "@@ -12,3 +12,3 @@\n 9\n-10\n+ten\n 11\n",
    "first hunk moved": _hunk("@@ -7,3 +7,3 @@", " 4", "-5", "+five", " 6") + TEN,
    "line of the hunk before": FIVE + "@@ -4,3 +4,3 @@\n 4\n-five\n+six\n 6\n",
    "line of the hunk before, moved": FIVE + "@@ -9,3 +9,3 @@\n 4\n-five\n+six\n 6\n",
    "overlapping context": FIVE + "@@ -6,3 +6,3 @@\n 6\n-7\n+seven\n 8\n",
    "hunks out of order": "--- a/n.txt\n+++ b/n.txt\n" + TEN + "@@ -2,3 +2,3 @@\n 2\n-3\n+three\n 4\n",
    "into an empty file": _hunk("@@ -0,0 +1,1 @@", "+x", path="d/e.txt"),
    "start of a file that is not empty": _hunk("@@ -0,0 +1,1 @@", "+x"),
    "no newline kept": _hunk(
        "@@ -1,2 +1,2 @@", " one", "-two", "\\ No newline at end of file", "+TWO", "\\ No newline at end of file",
        path="open.txt",
    ),
    "no newline mended": _hunk(
        "@@ -1,2 +1,2 @@", " one", "-two", "\\ No newline at end of file", "+two", path="open.txt"
    ),
    "no newline not said": _hunk("@@ -1,2 +1,2 @@", " one", "-two", "+TWO", path="open.txt"),
    "crlf": _hunk("@@ -1,2 +1,2 @@", " one\r", "-two\r", "+TWO\r", path="dos.txt"),
    "crlf not written": _hunk("@@ -1,2 +1,2 @@", " one", "-two", "+TWO", path="dos.txt"),
    "new file": "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1,2 @@\n+a\n+b\n",
    "new file with git's header": "diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n" + ADD,
    "new file whose mode is missing": "diff --git a/x b/x\n--- /dev/null\n+++ b/x\n" + ADD,
    "new file that exists": "--- /dev/null\n+++ b/n.txt\n" + ADD,
    "new empty file": "diff --git a/x b/x\nnew file mode 100644\nindex 0000000..e69de29\n",
    "new file with context": "--- /dev/null\n+++ b/x\n@@ -1 +1,2 @@\n a\n+b\n",
    "deleted": "--- a/open.txt\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n\\ No newline at end of file\n",
    "deleted in part": "--- a/n.txt\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-1\n-2\n",
    "deleted, empty": "diff --git a/d/e.txt b/d/e.txt\ndeleted file mode 100644\nindex e69de29..0000000\n",
    "renamed": "diff --git a/n.txt b/m.txt\nsimilarity index 100%\nrename from n.txt\nrename to m.txt\n",
    "renamed and changed": (
        "diff --git a/n.txt b/m.txt\nsimilarity index 90%\nrename from n.txt\nrename to m.txt\n"
        "--- a/n.txt\n+++ b/m.txt\n" + ONE
    ),
    "renamed onto a file": "diff --git a/n.txt b/open.txt\nrename from n.txt\nrename to open.txt\n",
    "copied": "diff --git a/n.txt b/m.txt\nsimilarity index 100%\ncopy from n.txt\ncopy to m.txt\n",
    "mode alone": "diff --git a/n.txt b/n.txt\nold mode 100644\nnew mode 100755\n",
    "index": _with_index("index 1234567..89abcde 100644"),
    "index without a mode": _with_index("index 1234567..89abcde"),
    "index without hashes": _with_index("index xyz 120000"),
    "index with the mode of an executable": _with_index("index 1234567..89abcde 100755"),
    "index with the mode of a link": _with_index("index 1234567..89abcde 120000"),
    "index with a mode without a type": _with_index("index 1234567..89abcde 644"),
    "index with a word": _with_index("index 1234567..89abcde file"),
    "index with a blank at its end": _with_index("index 1234567..89abcde "),
    "index with the new mode": "diff --git a/n.txt b/n.txt\nold mode 100644\nnew mode 100755\nindex 1..2 100755\n",
    "git header alone, then the same": _with_index("diff --git a/n.txt b/n.txt\nindex 1..2"),
    "git header alone, then another": "diff --git a/open.txt b/open.txt\n" + _with_index("index 1..2"),
    "git header alone, then a new file": (
        "diff --git a/x b/x\ndiff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n" + ADD
    ),
    "git header alone, then no git header": f"diff --git a/open.txt b/open.txt\nwords\n{FIVE}",
    "same file twice": _hunk("@@ -1,2 +1,2 @@", "-1", "+one", " 2") + _hunk("@@ -1,2 +1,2 @@", "-one", "+uno", " 2"),
    "removed, then changed": "--- a/d.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n--- a/n.txt\n+++ b/n.txt\n" + ONE,
    "hunk without changes": _hunk("@@ -4,2 +4,2 @@", " 4", " 5"),
    "hunk without header": ONE,
    "garbage before and after": "Hello\n\n" + FIVE + "\nBye\n",
    "garbage between hunks": FIVE + "so\n" + TEN,
    "no folder, no side": "--- n.txt\n+++ n.txt\n" + ONE,
    "time stamps": "--- a/n.txt\t2020-01-01 10:00:00\n+++ b/n.txt\t2020-01-01 10:00:01\n" + ONE,
    "date behind blanks": "--- a/n.txt 2020-01-01 10:00:00 +0000\n+++ b/n.txt  2020-01-01\n" + ONE,
    "date behind blanks in a git header": (
        "diff --git a/n.txt b/n.txt\n--- a/n.txt 2020-01-01 10:00:00\n+++ b/n.txt\n" + ONE
    ),
    "epoch": "--- a/n.txt\t1970-01-01 02:00:00 +0200\n+++ b/n.txt\t2020-01-01 10:00:01 +0000\n" + ONE,
    "epoch of a new file": "--- a/x\t1969-12-31 16:00:00 -0800\n+++ b/x\t2020-01-01 10:00:01 +0000\n" + ADD,
    "epoch behind blanks": "--- a/n.txt 1970-01-01 00:00:00 +0000\n+++ b/n.txt\n" + ONE,
    "blank before a slash": "diff --git a/d /x b/d /x\nnew file mode 100644\n",
    "blank before a slash, quoted": 'diff --git "a/d /x" "b/d /x"\nnew file mode 100644\n',
    "blank in a folder": "diff --git a/e f/x b/e f/x\nnew file mode 100644\n",
    "sides of two depths": "--- a/d/e.txt\n+++ n.txt\n" + ONE,
    "old name differs": "--- a/n.txt.orig\n+++ b/n.txt\n" + ONE,
    "git header and file line differ": (
        "diff --git a/n.txt b/n.txt\nnew file mode 100644\n--- a/n.txt\n+++ b/n.txt\n" + ONE
    ),
    "content that looks like a header": _hunk("@@ -0,0 +1,2 @@", "+-- a/x", "+++ b/x", path="d/e.txt"),
    "line of another kind": _hunk("@@ -4,3 +4,3 @@", " 4", "5", "+five", " 6"),
    "nothing": "just words\n",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_verdict_and_result_are_those_of_git_apply(git: GitRepository, name: str) -> None:
    expected = git.apply(CASES[name], FILES)
    if name == "blank before a slash" and expected is not None:
        pytest.skip("this version of git takes the blank as a part of the name; git 2.39 refuses it")
    assert _result(CASES[name]) == expected


def _result(patch: str) -> dict[str, str] | None:
    try:
        applied = apply_patch(patch, FILES)
    except PatchError:
        return None
    return None if applied.unknown_files else _tree(applied)


def _tree(result: Applied) -> dict[str, str]:
    merged: dict[str, str | None] = {**FILES, **result.files}
    return {path: content for path, content in merged.items() if content is not None}


def test_addition_without_context_is_not_put_at_the_end_of_the_file() -> None:
    with pytest.raises(PatchError, match="without any line around"):
        apply_patch(_hunk("@@ -5,0 +6,1 @@", "+x"), FILES)


def test_change_of_a_file_that_is_not_given_is_reported_as_unknown() -> None:
    result = apply_patch(_hunk("@@ -1 +1 @@", "-a", "+b", path="unknown.py"), FILES)
    assert (result.files, result.unknown_files) == ({}, ["unknown.py"])


def test_reason_names_file_and_hunk() -> None:
    text = _hunk("@@ -1,2 +1,2 @@", "-1", "+one", " 2") + "@@ -9,3 +9,3 @@\n 9\n-ten\n+10\n 11\n"
    with pytest.raises(PatchError, match=r"n\.txt: hunk 2 of 2"):
        apply_patch(text, FILES)


def test_hunk_without_old_lines_does_not_make_a_file_under_a_path_cut_short() -> None:
    """Git reads ``d/e.txt`` with ``-p1`` as ``e.txt``, and creates that."""
    assert apply_patch("--- d/e.txt\n+++ d/e.txt\n" + ADD, FILES).unknown_files == ["e.txt"]
