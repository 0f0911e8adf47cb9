"""Statuses, refusals, running time, and recorded answers."""

from __future__ import annotations

import pytest

from swe_infer.patches.extract import find_blocks
from swe_infer.patches.lenient import parse_leniently
from swe_infer.patches.line_index import HunkNotFound, LineIndex
from swe_infer.patches.pipeline import make_patch
from swe_infer.prompt_format import PromptFiles
from swe_infer.types import PatchResult, Prompt
from tests.support.steps import calls_of, lines_executed

FILES = {"pkg/mod.py": "a = 1\nb = 2\nc = 3\n"}
CHANGE = "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1,3 +1,3 @@\n a = 1\n-b = 2\n+b = 4\n c = 3\n"
UNKNOWN = "--- a/pkg/far.py\n+++ b/pkg/far.py\n@@ -5,3 +5,3 @@\n x\n-y\n+z\n w\n"


def _add(path: str) -> str:
    return f"--- /dev/null\n+++ {path}\n@@ -0,0 +1 @@\n+x\n"


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (_add("b/../outside.py"), "leaves the repository"),
        (_add("b/pkg/../../outside.py"), "leaves the repository"),
        (_add("/etc/passwd"), "absolute"),
        (_add("b//etc/passwd"), "absolute"),
        (_add("b/C:/windows/x"), "absolute"),
        (_add("b/.git/hooks/post-checkout"), ".git"),
        (_add("b/sub/.GIT/config"), ".git"),
        ("--- a/pkg/mod.py\n+++ /etc/passwd\n@@ -1,3 +1,3 @@\n a = 1\n-b = 2\n+b = 4\n c = 3\n", "absolute"),
        ("diff --git a/pkg/mod.py b/../x.py\nrename from pkg/mod.py\nrename to ../x.py\n", "leaves the repository"),
        ("diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc\n", "symbolic link"),
        ("diff --git a/s b/s\nnew file mode 160000\n--- /dev/null\n+++ b/s\n@@ -0,0 +1 @@\n+Subproject\n", "160000"),
        ("diff --git a/i.png b/i.png\nindex 1..2 100644\nBinary files a/i.png and b/i.png differ\n", "binary"),
        ("diff --git a/i b/i\nnew file mode 100644\nindex 0..1\nGIT binary patch\nliteral 1\nIcmZ\n", "binary"),
    ],
)
@pytest.mark.parametrize("damage", ["", "@@ -9,9 +9,9 @@\n"])
def test_path_or_file_that_no_patch_may_touch_is_refused(patch: str, reason: str, damage: str) -> None:
    for answer in (f"```diff\n{patch}```\n", f"```diff\n{CHANGE}{patch}```\n", f"```diff\n{patch}{damage}```\n"):
        result = make_patch(answer, FILES)
        assert (result.status, result.patch) == ("none", "")
        assert "refused" in (result.reason or "")
        assert reason in (result.reason or "")


def _made(diff: str, files: dict[str, str]) -> tuple[PatchResult, int]:
    """The patch of an answer with one diff, and how often that is read leniently."""
    made: list[PatchResult] = []
    answer = f"```diff\n{diff}```\n"
    count = calls_of(parse_leniently.__code__, lambda: made.append(make_patch(answer, files)))
    return made[0], count


@pytest.mark.parametrize("header", ["", "diff --git {0}\n", "diff --git {0}\nindex 1..2 100644\n"])
def test_diff_as_git_writes_it_is_parsed_once(header: str) -> None:
    diff = header.format("a/pkg/mod.py b/pkg/mod.py") + CHANGE
    assert _made(diff, FILES) == (PatchResult(diff, "applies", format="fence"), 0)


@pytest.mark.parametrize(
    ("diff", "files", "status"),
    [
        (f"{CHANGE}A remark.\n", FILES, "applies"),
        (CHANGE, FILES | {"a/pkg/mod.py": FILES["pkg/mod.py"]}, "applies"),
        (CHANGE, FILES | {"b/pkg/mod.py": "d = 1\n"}, "applies"),
        (CHANGE.replace("-b = 2", "-b = 3"), FILES, "does_not_apply"),
        (CHANGE.replace("a/pkg", "pkg"), FILES, "applies"),
        (f"diff --git a/pkg/mod.py b/pkg/mod.py\nindex 1..2 120000\n{CHANGE}", FILES, "repaired"),
        (f"diff --git a/pkg/mod.py b/pkg/mod.py\nindex 1..2 644\n{CHANGE}", FILES, "repaired"),
        (f"diff --git a/pkg/mod.py b/pkg/mod.py\nold mode 100644\nnew mode 120000\n{CHANGE}", FILES, "none"),
    ],
)
def test_any_other_diff_is_read_leniently(diff: str, files: dict[str, str], status: str) -> None:
    result, count = _made(diff, files)
    assert (result.status, count > 0) == (status, True), result


@pytest.mark.parametrize(
    ("answer", "is_scanned"),
    [
        (f"A change.\n\n```diff\n{CHANGE}```\n\nIt fixes a[0].", False),
        (f"<patch>\n{CHANGE}</patch>", False),
        (CHANGE, True),
        (f"```diff\n{CHANGE}", True),
        (f"```diff\n{CHANGE}```\n```\nb = 4\n```\n", True),
        (f"```diff\n{CHANGE}```\n\n> diff --git a/x b/x\n", True),
        (f"```diff\n{CHANGE}```\nx &amp;&amp; y\n", True),
        (f"<patch>\n{CHANGE}</diff>\n", True),
        (f"```diff\n{CHANGE}+```\n", True),
        (f"```diff\n{CHANGE}--\n2.39.1\n```\n", True),
        (f"```diff\n{CHANGE}".replace("\n", "\r\n") + "```\r\n", True),
    ],
)
def test_only_an_answer_with_more_than_a_usual_diff_is_scanned(answer: str, is_scanned: bool) -> None:
    made: list[PatchResult] = []
    scans = calls_of(find_blocks.__code__, lambda: made.append(make_patch(answer, FILES)))
    assert (scans > 0) == is_scanned
    kind = "tag" if answer.startswith("<") else "fence"
    assert is_scanned or made == [PatchResult(CHANGE, "applies", format=kind)]


@pytest.mark.parametrize(
    ("numbers", "status"), [((1, 2, 3, 4, 5, 6), "applies"), ((1, 9, 3, 4, 5, 6), "does_not_apply")]
)
def test_a_diff_is_checked_against_the_file_that_the_prompt_means(numbers: tuple[int, ...], status: str) -> None:
    """Lines whose numbers have a gap are a table, in which the numbers belong to the lines."""
    shown = "\n".join(f"{number} {line}" for number, line in zip(numbers, ("a", "b", "c", "d", "e", ""), strict=True))
    prompt = Prompt(None, f"Fix it.\n[start of t.txt]\n{shown}\n[end of t.txt]\n")
    diff = "--- a/t.txt\n+++ b/t.txt\n@@ -3,2 +3,3 @@\n c\n+x\n d\n"
    assert make_patch(f"```diff\n{diff}```\n", PromptFiles(prompt)).status == status


def test_file_outside_of_the_prompt_makes_the_patch_unchecked() -> None:
    result = make_patch(f"```diff\n{CHANGE}{UNKNOWN}```\n", FILES)
    assert (result.status, result.patch, result.reason) == (
        "unchecked", CHANGE + UNKNOWN, "not in the prompt: pkg/far.py",
    )  # fmt: skip
    assert make_patch(f"```diff\n{CHANGE}```\n", {}).status == "unchecked"


def test_counts_of_an_unchecked_file_are_corrected_and_its_neighbour_is_repaired() -> None:
    damaged = (CHANGE + UNKNOWN).replace("-1,3 +1,3", "-8,9 +8,9").replace("-5,3 +5,3", "-5,7 +5,8")
    result = make_patch(f"```diff\n{damaged}```\n", FILES)
    assert result.status == "unchecked"
    assert "@@ -5,3 +5,3 @@\n x\n-y\n+z\n w\n" in result.patch
    assert "@@ -1,3 +1,3 @@\n a = 1\n-b = 2\n+b = 4\n c = 3\n" in result.patch


def test_mismatch_in_a_known_file_outweighs_an_unknown_file() -> None:
    result = make_patch(f"```diff\n{CHANGE.replace('b = 2', 'b = 5')}{UNKNOWN}```\n", FILES)
    assert result.status == "does_not_apply"
    assert "pkg/mod.py: hunk 1" in (result.reason or "")


_FILES = {"f.py": "".join(f"u{n}\n" for n in range(3000)), "g.py": "a\n" * 3000}
_HEAD = "--- a/f.py\n+++ b/f.py\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (_HEAD + "@@ -1,3 +1,3 @@\n", "+x\n"),
        (_HEAD, "@@ -1,3 +1,4 @@\n zz\n u7\n-u8\n+b\n u9\n yy\n"),
        ("--- a/g.py\n+++ b/g.py\n", "@@ -1,3 +1,4 @@\n zz\n a\n+b\n a\n yy\n"),
        ("", "```diff\n--- a/f.py\n+++ b/f.py\n@@ -1,3 +1,3 @@\n u1\n-u2\n+b\n```\n"),
        ("", "@@ -1,3 +1,4 @@\n u3\n-u4\n+b\n"),
        ("", "```\n"),
        ("", "<patch>\n"),
        ("", "<file path=f.py>"),
        ("", "<<<<<<< SEARCH\nu1\n=======\nb\n>>>>>>> REPLACE\n"),
        ("--- a/g.py\n+++ b/g.py\n", "@@ -9,3 +9,3 @@ a\n a\n-a\n+b\n a\n"),
        ("*** Begin Patch\n*** Update File: g.py\n", "@@ a\n@@ a\n-a\n+b\n"),
        ("<<<<<<< SEARCH\n", "=======\n"),
        ("[start of f.py]\n", "7 u1\n"),
        ("--- a/", " "),
        ("diff --git ", "a/ b/ "),
    ],
)
def test_time_is_linear_in_the_answer(head: str, piece: str, large_size: int) -> None:
    """Eight times the text: a quadratic algorithm would take sixty-four times as many steps."""

    def steps(count: int) -> int:
        return lines_executed(lambda: make_patch(head + piece * count, _FILES))

    one = steps(1)  # includes what a file of 3000 lines takes by itself
    assert steps(240) - one <= 14 * (steps(30) - one)
    # A backtracking regular expression executes no additional lines, but takes long here.
    make_patch(head + piece * (large_size // len(piece)), _FILES)


def test_a_file_with_too_many_distinct_lines_does_not_match() -> None:
    with pytest.raises(HunkNotFound, match="too many distinct lines"):
        LineIndex([str(number) for number in range(0x110000)]).find_all(["b = 2"], "exact")
