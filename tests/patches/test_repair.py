"""Repairs and refusals. ``git apply`` checks every repaired patch."""

from __future__ import annotations

import pytest

from swe_infer.patches.pipeline import make_patch
from swe_infer.types import PatchResult
from tests.patches.git import GitRepository, needs_git

pytestmark = needs_git

MODULE = """\
import os
import sys


class First:
    def run(self, value):
        if value:
            return self.go(value)
        return None

    def stop(self):
        self.running = False
        return None


class Second:
    def run(self, value):
        for part in value:
            self.go(part)
        return None

    def stop(self):
        self.halted = True
        return None
"""
FILES = {"pkg/mod.py": MODULE, "pkg/other.py": "x = 1\ny = 2\nz = 3\n", "pkg/__init__.py": ""}
HEADER = "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n"


def _repaired(git: GitRepository, diff: str, files: dict[str, str] = FILES) -> tuple[PatchResult, dict[str, str]]:
    result = make_patch(f"```diff\n{diff}```\n", files)
    assert result.status == "repaired", result
    assert result.repairs
    applied = git.apply(result.patch, files)
    assert applied is not None, result.patch
    return result, applied


def _refused(diff: str, files: dict[str, str] = FILES) -> str:
    result = make_patch(f"```diff\n{diff}```\n", files)
    assert result.status == "does_not_apply", result
    assert result.reason is not None
    assert result.patch
    return result.reason


HALTED = MODULE.replace("        self.halted = True\n", "        self.halted = bool(1)\n")


@pytest.mark.parametrize(
    ("diff", "repair"),
    [
        (
            "@@ -21,9 +21,4 @@\n     def stop(self):\n-        self.halted = True\n+        self.halted = bool(1)\n"
            "         return None\n",
            "recounted and moved hunks",
        ),
        (
            "@@ ... @@\n     def stop(self):\n-        self.halted = True\n+        self.halted = bool(1)\n",
            "recounted and moved hunks",
        ),
        (
            "@@ -21,3 +21,3 @@\n     def stop(self):  \n-        self.halted = True   \n"
            "+        self.halted = bool(1)\n         return None\n",
            "ignored trailing white space",
        ),
        (
            "@@ -21,3 +21,3 @@\n def stop(self):\n-    self.halted = True\n"
            "+    self.halted = bool(1)\n     return None\n",
            "ignored indentation",
        ),
        (
            "@@ -22,3 +22,3 @@\n 22     def stop(self):\n-23         self.halted = True\n"
            "+        self.halted = bool(1)\n 24         return None\n",
            "dropped line numbers",
        ),
        (
            "@@ -22,3 +22,3 @@\n 22     def stop(self):\n-23         self.halted = True\n"
            "+23         self.halted = bool(1)\n 24         return None\n",
            "dropped line numbers",
        ),
        (
            "@@ -20,5 +20,5 @@\n     def pause(self):\n         pass\n-        self.halted = True\n"
            "+        self.halted = bool(1)\n         return None\n \n     def more(self):\n",
            "dropped context that the file does not have",
        ),
    ],
)
def test_hunk_is_applied_where_it_matches(git: GitRepository, diff: str, repair: str) -> None:
    result, files = _repaired(git, HEADER + diff)
    assert repair in result.repairs
    assert files["pkg/mod.py"] == HALTED


def test_patch_that_applies_is_unchanged() -> None:
    exact = HEADER + "@@ -1,3 +1,3 @@ anything\n import os\n-import sys\n+import re\n \n"
    result = make_patch(f"```diff\n{exact}```\n", FILES)
    assert (result.status, result.patch, result.repairs) == ("applies", exact, ())


@pytest.mark.parametrize(
    "hunk",
    [
        "@@ -8,9 +8,9 @@\n-        return None\n+        return 0\n",
        "@@ -8,9 +8,9 @@\n     def stop(self):\n+        print()\n",
        "@@ ... @@\n \n-        return None\n+        return 0\n \n",
        "@@ -6,9 +6,9 @@\n     def run(self, value):\n+        print(value)\n         raise ValueError(value)\n",
    ],
)
def test_two_equal_matches_are_not_repaired(hunk: str) -> None:
    assert "more than one location" in _refused(HEADER + hunk)


def test_addition_between_lines_that_are_not_neighbours_is_not_repaired() -> None:
    reason = _refused(
        HEADER + "@@ -1,9 +1,9 @@\n import os\n import sys\n+import re\n class First:\n     def run(self, value):\n"
    )
    assert "location" in reason


def test_removed_line_that_the_file_does_not_have_is_named_with_its_hunk() -> None:
    good = "@@ -1,2 +1,2 @@\n import os\n-import sys\n+import re\n"
    bad = "@@ -9,2 +9,2 @@\n     def stop(self):\n-        self.stopped = True\n+        self.stopped = False\n"
    assert _refused(HEADER + good + bad) == "pkg/mod.py: hunk 2 has old lines that are not in the file"


def test_hunks_out_of_order_with_shared_context_become_one_patch(git: GitRepository) -> None:
    second = "@@ -22,9 +22,9 @@\n         self.halted = True\n-        return None\n+        return 1\n"
    first = "@@ -20,9 +20,9 @@\n     def stop(self):\n-        self.halted = True\n+        self.halted = bool(1)\n"
    _, files = _repaired(git, HEADER + second + first)
    assert files["pkg/mod.py"].endswith("        self.halted = bool(1)\n        return 1\n")


def test_later_hunk_may_match_lines_that_an_earlier_one_added(git: GitRepository) -> None:
    first = "@@ -1,9 +1,9 @@\n import os\n-import sys\n+import re\n"
    second = "@@ -1,9 +1,9 @@\n import os\n import re\n+import abc\n"
    _, files = _repaired(git, HEADER + first + second)
    assert files["pkg/mod.py"].startswith("import os\nimport re\nimport abc\n\n")


def test_hunk_whose_context_leaves_lines_out_is_split(git: GitRepository) -> None:
    hunk = (
        "@@ -1,9 +1,9 @@\n import os\n-import sys\n+import re\n class First:\n"
        "     def run(self, value):\n         if value:\n"
        "-            return self.go(value)\n+            return self.went(value)\n"
    )
    result, files = _repaired(git, HEADER + hunk)
    assert "split a hunk whose context leaves lines out" in result.repairs
    expected = MODULE.replace("import sys", "import re").replace("return self.go(value)", "return self.went(value)")
    assert files["pkg/mod.py"] == expected


def test_context_line_without_its_sign_keeps_the_added_lines_as_they_are(git: GitRepository) -> None:
    changes = "-        self.halted = True\n+        self.halted = bool(1)\n"
    hunk = f"@@ -1,9 +1,9 @@\n    def stop(self):\n{changes}        return None\n"
    assert _repaired(git, HEADER + hunk)[1]["pkg/mod.py"] == HALTED


def test_repeated_and_empty_hunks_are_dropped(git: GitRepository) -> None:
    hunk = "@@ -1,2 +1,2 @@\n import os\n-import sys\n+import re\n"
    result, files = _repaired(
        git, HEADER + hunk + hunk + "@@ -5,2 +5,2 @@\n class First:\n     def run(self, value):\n"
    )
    assert set(result.repairs) >= {"dropped a repeated hunk", "dropped a hunk that changes nothing"}
    assert files["pkg/mod.py"] == MODULE.replace("import sys", "import re")


def test_hunks_that_contradict_each_other_are_not_repaired() -> None:
    one, other = (f"@@ -1,2 +1,2 @@\n import os\n-import sys\n+import {name}\n" for name in ("re", "abc"))
    _refused(HEADER + one + other)


@pytest.mark.parametrize(
    "header",
    [
        "--- pkg/mod.py\n+++ pkg/mod.py\n",
        "--- mod.py\n+++ mod.py\n",
        "--- a/repository/pkg/mod.py\n+++ b/repository/pkg/mod.py\n",
        "--- a/pkg/mod.py\n\n+++ b/pkg/mod.py\n",
        "--- a/pkg/mod.py 2026-01-01 00:00:00.000000000 +0000\n+++ b/pkg/mod.py 2026-01-01 00:00:01 +0000\n",
        "diff --git a/pkg/mod.py b/pkg/mod.py\n--- a/pkg/mod.py 2026-01-01 00:00:00\n+++ b/pkg/mod.py\n",
        "--- a/pkg/mod.py\t1970-01-01 00:00:00 +0000\n+++ b/pkg/mod.py\t2026-01-01 00:00:01 +0000\n",
        "--- a/pkg/mod.py\t1970-01-01 00:00:00 +0000\n+++ b/pkg/mod.py\t1970-01-01 00:00:00 +0000\n",
        "--- a/pkg/mod.py Mon Jan  5 00:00:00 2026\n+++ b/pkg/mod.py Mon, 05 Jan 2026 00:00:00 +0000\n",
        "--- a/pkg/mod.py 2026-01-01T00:00:00Z\n+++ b/pkg/mod.py 2026-01-01 00:00:00 UTC\n",
        "--- a/pkg/./mod.py\n+++ b/pkg//mod.py\n",
        "--- a/pkg/mod.py (original)\n+++ b/pkg/mod.py (modified)\n",
        "--- a/pkg\\mod.py\n+++ b/pkg\\mod.py\n",
        "--- C:\\work\\pkg\\mod.py\n+++ C:\\work\\pkg\\mod.py\n",
        "--- /testbed/pkg/mod.py\n+++ /testbed/pkg/mod.py\n",
        "--- a/testbed/pkg/mod.py\n+++ b/testbed/pkg/mod.py\n",
        "--- ./pkg/mod.py\n+++ ./pkg/mod.py\n",
        "--- a/./pkg/mod.py\n+++ b/./pkg/mod.py\n",
        "--- `a/pkg/mod.py`\n+++ `b/pkg/mod.py`\n",
        "--- a/pkg/mod.py.orig\n+++ b/pkg/mod.py\n",
        "diff --git a/pkg/mod.py b/pkg/mod.py\n",
        "",
    ],
)
def test_headers_are_repaired(git: GitRepository, header: str) -> None:
    hunk = "@@ -2,9 +2,9 @@\n     def stop(self):\n-        self.halted = True\n+        self.halted = bool(1)\n"
    assert _repaired(git, header + hunk)[1]["pkg/mod.py"] == HALTED


def test_bare_hunk_gets_the_file_that_the_text_before_it_names(git: GitRepository) -> None:
    files = {**FILES, "pkg/copy.py": MODULE}
    hunk = "@@ -2,9 +2,9 @@\n     def stop(self):\n-        self.halted = True\n+        self.halted = bool(1)\n"
    result = make_patch(f"Change `pkg/copy.py`:\n```diff\n{hunk}```\n", files)
    assert result.status == "repaired"
    assert (git.apply(result.patch, files) or {})["pkg/copy.py"] == HALTED
    assert make_patch(f"Change this:\n```diff\n{hunk}```\n", files).status == "does_not_apply"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("/dev/null 1970-01-01 00:00:00.000000000 +0000", "b/new.py 2026-01-01 00:00:01.000000000 +0000", "new.py"),
        ("a/new.py\t1970-01-01 00:00:00 +0000", "b/new.py\t2026-01-01 00:00:01 +0000", "new.py"),
        ("a/dev/null", "b/new.py (new)", "new.py"),
        ("/dev/null", "/testbed/pkg/new.py", "pkg/new.py"),
        ("/dev/null", "/src/new.py", "new.py"),
        ("/dev/null", "b/pkg\\new.py", "pkg/new.py"),
        ("/dev/null", "Makefile", "Makefile"),
        ("/dev/null", "b/new folder /run", "new folder /run"),
    ],
)
def test_new_file_gets_the_path_that_is_meant(git: GitRepository, old: str, new: str, path: str) -> None:
    for count in (1, 7):
        result = make_patch(f"```diff\n--- {old}\n+++ {new}\n@@ -0,0 +1,{count} @@\n+a = 1\n```\n", FILES)
        assert result.status in ("applies", "repaired"), result
        assert git.apply(result.patch, FILES) == {**FILES, path: "a = 1\n"}


def test_path_with_a_folder_is_not_the_file_of_that_name_in_the_root(git: GitRepository) -> None:
    files = {"mod.py": MODULE, "pkg/mod.py": MODULE}
    hunk = "@@ -21,3 +21,3 @@\n     def stop(self):\n-        self.halted = True\n+        self.halted = bool(1)\n"
    diff = f"--- pkg/mod.py\n+++ pkg/mod.py\n{hunk}         return None\n"
    assert _repaired(git, diff, files)[1] == {"mod.py": MODULE, "pkg/mod.py": HALTED}


def test_new_file_gets_its_header_and_count(git: GitRepository) -> None:
    for diff in (
        "diff --git a/new.py b/new.py\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1,9 @@\n+a = 1\n\n+b = 2\n",
        "--- a/new.py\n+++ b/new.py\n@@ -0,0 +1,3 @@\n+a = 1\n+\n+b = 2\n",
        "*** Begin Patch\n*** Add File: new.py\n+a = 1\n+\n+b = 2\n*** End Patch\n",
    ):
        assert _repaired(git, diff)[1]["new.py"] == "a = 1\n\nb = 2\n"


def test_new_and_removed_files_and_one_line_hunks_survive_a_repair(git: GitRepository) -> None:
    diff = (
        HEADER + "@@ -2 +2 @@\n-import sys\n+import re\n"
        "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+--- a/x\n"
        "--- a/pkg/other.py\n+++ /dev/null\n@@ -1,9 +0,0 @@\n-x = 1\n-y = 2\n-z = 3\n"
    )
    _, files = _repaired(git, diff)
    assert files == {
        "pkg/mod.py": MODULE.replace("import sys", "import re"),
        "new.py": "--- a/x\n",
        "pkg/__init__.py": "",
    }


def test_content_that_looks_like_a_header_is_not_split(git: GitRepository) -> None:
    files = {"q.sql": "-- a\n-- b\nselect 1;\n"}
    diff = "--- a/q.sql\n+++ b/q.sql\n@@ -1,3 +1,9 @@\n --- a\n--- b\n+++ b\n select 1;\n".replace(" --- a", " -- a")
    assert _repaired(git, diff, files)[1] == {"q.sql": "-- a\n++ b\nselect 1;\n"}


def test_rename_is_kept_and_its_hunks_are_placed(git: GitRepository) -> None:
    diff = (
        "diff --git a/pkg/other.py b/pkg/moved.py\nrename from pkg/other.py\nrename to pkg/moved.py\n"
        "--- a/pkg/other.py\n+++ b/pkg/moved.py\n@@ -7,9 +7,9 @@\n x = 1\n-y = 2\n+y = 3\n"
    )
    _, files = _repaired(git, diff)
    assert files["pkg/moved.py"] == "x = 1\ny = 3\nz = 3\n"
    assert "pkg/other.py" not in files


def test_codex_style_patch_is_placed(git: GitRepository) -> None:
    diff = (
        "*** Begin Patch\n*** Update File: pkg/mod.py\n@@ class Second:\n     def stop(self):\n"
        "-        self.halted = True\n+        self.halted = bool(1)\n*** Delete File: pkg/other.py\n*** End Patch\n"
    )
    result = make_patch(diff, FILES)
    assert result.status == "repaired"
    assert git.apply(result.patch, FILES) == {"pkg/mod.py": HALTED, "pkg/__init__.py": ""}


@pytest.mark.parametrize("end", ["", "\n"])
def test_missing_newline_at_the_end_of_the_file_is_kept_as_the_file_has_it(git: GitRepository, end: str) -> None:
    files = {"a.txt": "one\ntwo" + end}
    diff = "--- a/a.txt\n+++ b/a.txt\n@@ -1,5 +1,5 @@\n one\n-two\n+TWO\n"
    assert _repaired(git, diff, files)[1] == {"a.txt": "one\nTWO" + end}
    grown = "--- a/a.txt\n+++ b/a.txt\n@@ -1,5 +1,5 @@\n one\n two\n+three\n"
    assert _repaired(git, grown, files)[1] == {"a.txt": "one\ntwo\nthree" + end}


def test_crlf_of_the_file_is_kept(git: GitRepository) -> None:
    files = {"a.txt": "one\r\ntwo\r\nthree\r\n"}
    diff = "--- a/a.txt\n+++ b/a.txt\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
    assert _repaired(git, diff, files)[1] == {"a.txt": "one\r\nTWO\r\nthree\r\n"}


@pytest.mark.parametrize(
    "hunk",
    [
        "@@ -1,9 +1,9 @@\n one\n-two\n+TWO\n+2\n three\n four\n",
        "@@ -1,9 +1,9 @@\n one\r\n-two\n+TWO\n+2\n three\r\n four\n",
        "@@ -1,4 +1,5 @@\n one\r\n-two\n+TWO\n+2\n three\r\n four\n",
    ],
)
def test_line_ends_of_a_file_with_both_kinds_are_kept(git: GitRepository, hunk: str) -> None:
    files = {"a.txt": "one\r\ntwo\nthree\r\nfour\n"}
    result = make_patch(f"```diff\n--- a/a.txt\n+++ b/a.txt\n{hunk}```\n", files)
    assert git.apply(result.patch, files) == {"a.txt": "one\r\nTWO\n2\nthree\r\nfour\n"}


@pytest.mark.parametrize("start", [2, 4, 7, 30])
def test_a_hunk_that_git_moves_changes_its_own_lines_of_a_file_with_both_line_ends(
    git: GitRepository, start: int
) -> None:
    files = {"a.txt": "a\r\nb\nc\r\nd\ne\nf\r\ng\nh\n"}
    diff = f"--- a/a.txt\n+++ b/a.txt\n@@ -{start},3 +{start},4 @@\n c\n-d\n+D\n+DD\n e\n"
    result = make_patch(f"```diff\n{diff}```\n", files)
    assert git.apply(result.patch, files) == {"a.txt": "a\r\nb\nc\r\nD\nDD\ne\nf\r\ng\nh\n"}, result


def test_hunk_that_removes_one_of_two_lines_with_different_ends_removes_that_one(git: GitRepository) -> None:
    files = {"a.txt": "a\nx\nb\na\nx\r\nb\n"}
    for counts in ("-4,3 +4,2", "-4,7 +4,7"):
        diff = f"--- a/a.txt\n+++ b/a.txt\n@@ {counts} @@\n a\n-x\r\n b\n"
        result = make_patch(f"```diff\n{diff}```\n", files)
        assert git.apply(result.patch, files) == {"a.txt": "a\nx\nb\na\nb\n"}, result


NBSP = "\u00a0"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('    return "kid"', '    return "child"', '    return "child"'),
        (f'{NBSP * 4}return "kid"', f'{NBSP * 4}return "child"', '    return "child"'),
        (f'{NBSP} {NBSP} return{NBSP}"kid"', f'{NBSP} {NBSP} return{NBSP}"child"', '    return "child"'),
        ("    return \u201ckid\u201d", "    return \u201cchild\u201d", '    return "child"'),
        ("return \u201ckid\u201d", "return \u201cchild\u201d", '    return "child"'),
        ('    return "kid"', "    return \u201cchild\u201d", "    return \u201cchild\u201d"),
    ],
)
def test_typographic_characters_for_ascii_ones_are_replaced(
    git: GitRepository, old: str, new: str, expected: str
) -> None:
    files = {"a.py": 'def name():\n    """It\u2019s one."""\n    return "kid"\n'}
    first = f'{old[:4] if old[0] in (" ", NBSP) else ""}"""It\'s one."""'
    for answer in (
        f"--- a/a.py\n+++ b/a.py\n@@ -1,9 +1,9 @@\n {first}\n-{old}\n+{new}\n",
        f"a.py\n<<<<<<< SEARCH\n{first}\n{old}\n=======\n{first}\n{new}\n>>>>>>> REPLACE\n",
    ):
        applied = git.apply(make_patch(f"```\n{answer}```\n", files).patch, files)
        assert applied == {"a.py": files["a.py"].replace('    return "kid"', expected)}, answer


def test_empty_file_takes_additions(git: GitRepository) -> None:
    diff = "--- a/pkg/__init__.py\n+++ b/pkg/__init__.py\n@@ -1,0 +1,4 @@\n+a = 1\n"
    assert _repaired(git, diff)[1]["pkg/__init__.py"] == "a = 1\n"


FIRST_RETURN = MODULE.replace("self.running = False\n        return None", "self.running = False\n        return 0")
SECOND_RETURN = MODULE.replace("self.halted = True\n        return None", "self.halted = True\n        return 0")
RUN_RETURN = MODULE.replace("self.go(part)\n        return None", "self.go(part)\n        return 0")
RETURN = "-        return None\n+        return 0\n"


def _v4a(*lines: str) -> str:
    return "*** Begin Patch\n" + "".join(lines) + "*** End Patch\n"


PRINTED = MODULE.replace("    def stop(self):\n", "    def stop(self):\n        print()\n", 1)
HALT = "-        self.halted = True\n+        self.halted = bool(1)\n"
UPDATE = "*** Update File: pkg/mod.py\n"
STOP = "     def stop(self):\n"


@pytest.mark.parametrize(
    ("diff", "expected", "word"),
    [
        (_v4a(UPDATE, "@@ class Second:\n@@     def run(self, value):\n", RETURN), RUN_RETURN, "an anchor"),
        (_v4a(UPDATE, "@@ class Second\n@@ def stop\n", RETURN), SECOND_RETURN, "an anchor"),
        (_v4a(UPDATE, "@@ class First:\n@@ def stop(self):\n", RETURN), FIRST_RETURN, "an anchor"),
        (_v4a(UPDATE, "@@\n", RETURN, "*** End of File\n"), SECOND_RETURN, "the end of the file"),
        (_v4a(UPDATE, "@@ class Second:\n@@ def gone(self):\n", HALT), None, ""),
        (_v4a(UPDATE, "@@ class First:\n@@ def stop(self):\n", HALT), None, ""),
        (_v4a(UPDATE, "@@ class Gone:\n", HALT), HALTED, "ignored an anchor"),
        (_v4a(UPDATE, "@@ class Second:\n", RETURN), None, ""),
        (
            HEADER + "@@ -9,2 +9,2 @@ def stop(self):\n         self.running = False\n" + RETURN,
            FIRST_RETURN,
            "recounted and moved hunks",
        ),
        (HEADER + f"@@ -1,3 +1,3 @@ class First:\n{STOP}+        print()\n", PRINTED, "the heading"),
        (HEADER + f"@@ -1,3 +1,3 @@ class Nowhere:\n{STOP}+        print()\n", None, ""),
        (HEADER + "@@ -13,2 +13,2 @@\n" + RETURN, FIRST_RETURN, "guessed"),
        (HEADER + "@@ -13,1 +13,1 @@\n" + RETURN, FIRST_RETURN, "guessed"),
        (HEADER + "@@ -13,9 +13,9 @@\n" + RETURN, None, ""),
        (
            _v4a(
                UPDATE, "@@\n-        for part in value:\n+        for part in list(value):\n@@\n", RETURN,
                "@@\n", STOP, HALT,
            ),
            HALTED.replace("for part in value:", "for part in list(value):").replace(
                "self.go(part)\n        return None", "self.go(part)\n        return 0"
            ),
            "guessed",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["```diff\n{}```\n", "{}\nThat is all.\n"])
def test_anchors_then_headings_then_numbers_choose_between_equal_places(
    git: GitRepository, diff: str, expected: str | None, word: str, form: str
) -> None:
    result = make_patch(form.format(diff), FILES)
    if expected is None:
        assert result.status == "does_not_apply", result
        return
    assert result.status == "repaired", result
    assert any(word in note for note in result.repairs), result
    assert git.apply(result.patch, FILES) == {**FILES, "pkg/mod.py": expected}


def test_heading_outweighs_the_place_that_git_takes_and_a_guess_of_git_is_marked(git: GitRepository) -> None:
    hunk = "@@ -9,2 +9,2 @@{}\n-        return None\n+        return 0\n \n"
    result = make_patch(f"```diff\n{HEADER}{hunk.format(' class Second:').replace('9,2', '14,2')}```\n", FILES)
    assert (result.status, git.apply(result.patch, FILES)) == ("repaired", {**FILES, "pkg/mod.py": RUN_RETURN})
    text = HEADER + hunk.format("").replace("9,2", "14,2")
    result = make_patch(f"```diff\n{text}```\n", FILES)
    assert (result.status, result.patch) == ("applies", text)
    assert any("line number" in note for note in result.repairs)
    assert make_patch(f"```diff\n{HEADER}{hunk.format('')}```\n", FILES).repairs == ()


@pytest.mark.parametrize(
    ("lines", "content"),
    [
        ("+import a\n+\n+def test():\n+    assert 1\n", "import a\n\ndef test():\n    assert 1\n"),
        ("+import a\n\n+def test():\n+    assert 1\n", "import a\n\ndef test():\n    assert 1\n"),
        ("import a\n\ndef test():\n    assert 1\n", "import a\n\ndef test():\n    assert 1\n"),
        ("", None),
        ("+import a\ndef test():\n", None),
    ],
)
@pytest.mark.parametrize("form", ["```\n{}```\n", "{}", "Here it is:\n\n{}\nThis adds a file.\n"])
def test_added_file_has_its_content(git: GitRepository, lines: str, content: str | None, form: str) -> None:
    change = f"@@\n{HALT}"
    for before, after, module in (("", "", MODULE), ("", UPDATE + change, HALTED), (UPDATE + change, "", HALTED)):
        result = make_patch(form.format(_v4a(before, "*** Add File: t/x.py\n", lines, after)), FILES)
        if content is None:
            assert result.status == "does_not_apply", result
            continue
        assert result.status == "repaired", result
        assert git.apply(result.patch, FILES) == {**FILES, "t/x.py": content, "pkg/mod.py": module}
    empty = make_patch(form.format(_v4a("*** Add File: t/__init__.py\n")), FILES)
    assert git.apply(empty.patch, FILES) == {**FILES, "t/__init__.py": ""}


IMPORTS = "import os\nfrom a import (\n    b,\n)\n\nimport sys\n"


@pytest.mark.parametrize(
    ("hunk", "expected"),
    [
        (" import io\n import os\n+import re\n import time\n", IMPORTS.replace("os\n", "os\nimport re\n")),
        (
            " import io\n import re\n+import shlex\n import sys\n",
            IMPORTS.replace("import sys", "import shlex\nimport sys"),
        ),
        (
            " import io\n import os\n+import re\n+import sys\n import time\n",
            IMPORTS.replace("os\n", "os\nimport re\n"),
        ),
        (" import io\n import os\n+x = 1\n import time\n", None),
        (" import io\n from a import (\n+import re\n import time\n", None),
        (" import io\n import re\n+import shlex\n import time\n", None),
    ],
)
def test_an_import_is_added_beside_the_one_next_to_it(git: GitRepository, hunk: str, expected: str | None) -> None:
    files = {"a.py": IMPORTS}
    result = make_patch(f"--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,4 @@\n{hunk}", files)
    assert git.apply(result.patch, files) == (None if expected is None else {"a.py": expected})
    assert expected is None or any(note.startswith("guessed") for note in result.repairs)


SEARCHED = "def find(text):\n    found = re.findall(r'(.+?)x', text)\n    for one in found:\n        print(one)\n"


@pytest.mark.parametrize(
    ("removed", "around", "applies"),
    [
        ("    found = re.findall(r'(\\w+?)x', text)", "    for one in found:\n         print(one)", True),
        ("    found = re.findall(r'(.+?)x', line)", "    for one in found:\n         print(one)", False),
        ("    found = re.findall(r'(\\w+?)x', text)", "    for two in found:\n         print(two)", False),
        ("    found", "    for one in found:\n         print(one)", False),
    ],
)
def test_a_removed_line_may_differ_in_punctuation_between_lines_of_the_file(
    git: GitRepository, removed: str, around: str, *, applies: bool
) -> None:
    files = {"a.py": SEARCHED}
    hunk = f"@@ -1,9 +1,9 @@\n def find(text):\n-{removed}\n+    found = []\n {around}\n"
    result = make_patch(f"```\n--- a/a.py\n+++ b/a.py\n{hunk}```\n", files)
    lines = SEARCHED.splitlines(keepends=True)
    wanted = {"a.py": "".join([lines[0], "    found = []\n", *lines[2:]])}
    assert git.apply(result.patch, files) == (wanted if applies else None), result
    assert not applies or any(note.startswith("guessed") for note in result.repairs)


ENTRY = """\
    def entry(i, j):
        if j < pos:
            return self[i, j]
        elif j < pos + other.cols:
            return other[i, j - pos]
        return self[i, j - pos - other.cols]

    return self._new(self.rows, entry)
"""
ELIF = "         elif j < pos + other.cols:\n             return other[i, j - pos]\n         else:\n"
NEW = " \n     return self._new(self.rows, entry)\n"


@pytest.mark.parametrize(
    ("above", "removed", "added", "applies"),
    [
        (ELIF, "return self[i, j - other.cols]", "return self[i, pos + (j - pos - other.cols)]", True),
        (ELIF, "return self[i, j - other.cols]", "return self[i, j - 1 - other.cols]", False),  # loses "pos"
        (ELIF, "return self[i]", "return self[i, pos + (j - pos - other.cols)]", False),  # too little of the line
        (ELIF, "self[i, j - pos - other.cols]", "return -self[i, j - pos - other.cols]", False),  # another statement
        (f" x\n{ELIF}", "return self[i, j - other.cols]", "return self[i, pos + (j - pos - other.cols)]", False),
        (" else:\n", "return self[i, j - other.cols]", "return self[i, pos + (j - pos - other.cols)]", False),
    ],
)
def test_a_removed_line_may_leave_out_words_that_the_added_one_has(
    git: GitRepository, above: str, removed: str, added: str, *, applies: bool
) -> None:
    hunk = f"--- a/a.py\n+++ b/a.py\n@@ -1,9 +1,9 @@\n{above}-            {removed}\n+            {added}\n{NEW}"
    files = {"a.py": ENTRY, "b.py": ""}
    result = make_patch(hunk, files)
    wanted = {"a.py": ENTRY.replace("return self[i, j - pos - other.cols]", added), "b.py": ""}
    assert git.apply(result.patch, files) == (wanted if applies else None), result
    assert not applies or any(note.startswith("guessed") for note in result.repairs)
    twice = {"a.py": ENTRY * 2}
    assert make_patch(hunk, twice).status == "does_not_apply"


LOOP = "+        log()\n         for part in value:\n \n             self.go(part)\n"
PART = "     def run(self, value):\n         for part in value:\n+            self.go(part)\n         return None\n"


@pytest.mark.parametrize(
    ("hunk", "repair"),
    [
        (f"@@ -22,3 +22,3 @@\n     def gone(self):\n{HALT}         gone()\n", "dropped context"),
        (f"@@ -1,9 +1,9 @@\n     def gone(self):\n{HALT}         gone()\n", None),
        (f"@@ -17,7 +17,8 @@\n{PART} \n{STOP}{HALT}", "not added again"),
        (
            f"@@ -1,9 +1,9 @@\n             self.go(part)\n \n+        log()\n         return None\n \n{STOP}",
            "blank lines",
        ),
        (f"@@ -1,9 +1,9 @@\n class Second:\n \n     def run(self, value):\n \n{LOOP}", "blank lines"),
        (f"@@ -16,4 +16,5 @@\n{PART}@@ -23,1 +24,1 @@\n{HALT}", None),
    ],
)
def test_hunk_with_other_context_is_applied_if_its_place_is_certain(
    git: GitRepository, hunk: str, repair: str | None
) -> None:
    if repair is None:
        _refused(HEADER + hunk)
        return
    result, files = _repaired(git, HEADER + hunk)
    assert any(repair in note for note in result.repairs)
    expected = {
        "+        log()\n         for": MODULE.replace("        for part", "        log()\n        for part"),
        "+        log()\n         return": MODULE.replace("go(part)\n", "go(part)\n        log()\n"),
    }
    assert files["pkg/mod.py"] == next((text for part, text in expected.items() if part in hunk), HALTED)
