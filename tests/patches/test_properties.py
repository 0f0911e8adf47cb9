"""Any ``git diff`` of random files, damaged as models damage them, is repaired to the same result or refused."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from swe_infer.patches.pipeline import make_patch
from tests.patches.damage import DAMAGES, WRAPPERS
from tests.patches.git import GitRepository, needs_git

pytestmark = needs_git

_SETTINGS = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)

_SHORTEST_WHOLE = 10
"""Lines of a file from which on a third of it is an excerpt in any case."""

_COMMON = ["", "", "    return None", "    pass", "        else:", "}", "# -- a", "++i", "-- x", "    "]
_LINES = st.one_of(
    st.sampled_from(_COMMON),
    st.integers(0, 400).map(lambda n: f"{'    ' * (n % 4)}name_{n} = {n}"),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=12),
)


@st.composite
def _file(draw: st.DrawFn) -> list[str]:
    return draw(st.lists(_LINES, min_size=1, max_size=40))


@st.composite
def _edited(draw: st.DrawFn, lines: list[str]) -> list[str]:
    edited = list(lines)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(edited)))
        removed = draw(st.integers(0, 3))
        edited[at : at + removed] = draw(st.lists(_LINES, max_size=3))
    return edited


@st.composite
def _change(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, str]]:
    """Two trees of up to three files; some are added, removed, or lose their final newline."""
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for path in draw(st.lists(st.sampled_from(["a.py", "src/b.py", "src/deep/c d.py"]), min_size=1, unique=True)):
        lines = draw(_file())
        kind = draw(st.sampled_from(["change", "change", "change", "create", "remove"]))
        old, new = (
            "\n".join(x) + draw(st.sampled_from(["\n", "\n", "\n", ""])) for x in (lines, draw(_edited(lines)))
        )
        if kind != "create":
            before[path] = old
        if kind != "remove":
            after[path] = new
    return before, after


def _without_indentation(files: Mapping[str, str]) -> dict[str, str]:
    return {path: "\n".join(line.lstrip(" \t\u00a0") for line in text.split("\n")) for path, text in files.items()}


@_SETTINGS
@given(change=_change())
def test_check_accepts_every_git_diff_and_gives_its_result(
    git: GitRepository, change: tuple[dict[str, str], dict[str, str]]
) -> None:
    before, after = change
    diff = git.diff(before, after)
    if not diff:
        return
    result = make_patch(f"```diff\n{diff}```\n", before)
    assert result.status == "applies", (result.reason, diff)
    assert git.apply(result.patch, before) == after


@_SETTINGS
@given(
    change=_change(),
    damages=st.lists(st.sampled_from(sorted(DAMAGES)), min_size=1, max_size=3, unique=True),
    wrapper=st.sampled_from(sorted(WRAPPERS)),
    seed=st.integers(0, 1 << 30),
)
def test_damaged_diff_is_repaired_to_the_same_result_or_refused(
    git: GitRepository,
    change: tuple[dict[str, str], dict[str, str]],
    damages: list[str],
    wrapper: str,
    seed: int,
) -> None:
    before, after = change
    diff = git.diff(before, after)
    if not diff:
        return
    lines = diff.removesuffix("\n").split("\n")
    for name in damages:
        lines = DAMAGES[name](lines, random.Random(seed))
    damaged = "\n".join(lines) + "\n"
    result = make_patch(WRAPPERS[wrapper](damaged), before)
    if result.status in ("does_not_apply", "unchecked", "none"):
        return
    applied = git.apply(result.patch, before)
    assert applied is not None, (damaged, result)
    if any(note.startswith("guessed") for note in result.repairs):
        return
    # If git accepts the damaged text unchanged, its result counts: nothing was repaired.
    as_it_is = git.apply(damaged.replace("\r", ""), before)
    # An indentation that nothing in the file contradicts stays as written.
    settle = _without_indentation if {"shift", "no_break_spaces"} & set(damages) else dict
    assert settle(applied) in (settle(after), settle(as_it_is or {})), (damaged, result)


_BLOCKS = {
    "search_replace": "{path}\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n",
    "conflict": "<<<<<<< {path}\n{old}=======\n{new}>>>>>>> fix\n",
    "headings": "`{path}`\nBefore:\n`````\n{old}`````\nAfter:\n`````\n{new}`````\n",
    "roo": "{path}\n<<<<<<< SEARCH\n:start_line:{line}\n-------\n{old}=======\n{new}>>>>>>> REPLACE\n",
    "call": "edit({path!r}, {old!r}, {new!r})\n",
}
_FORMS = ["whole_file", "v4a", *_BLOCKS]


def _changes(old: list[str], new: list[str]) -> list[tuple[int, int, int, int]]:
    """Start and end of each changed range in both versions."""
    codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(a, b, c, d) for kind, a, b, c, d in codes if kind != "equal"]


def _as_blocks(block: str, path: str, old: list[str], new: list[str], number: bool) -> str:
    blocks = []
    for start, end, first, last in _changes(old, new):
        above, below = min(start, 2), min(len(old) - end, 2)
        texts = (
            "".join(f"{line}\n" for line in _numbered(lines, number, start - above))
            for lines in (old[start - above : end + below], new[first - above : last + below])
        )
        blocks.append(
            block.format(path=path, line=start - above + 1, **dict(zip(("old", "new"), texts, strict=True)))
        )
    return "\n".join(blocks)


def _as_v4a(path: str, old: list[str], new: list[str], number: bool) -> str:
    lines = ["*** Begin Patch", f"*** Update File: {path}"]
    for start, end, first, last in _changes(old, new):
        above, below = min(start, 2), min(len(old) - end, 2)
        heading = next((text for text in reversed(old[: start - above]) if text.strip()), "")
        lines += [f"@@ {heading}" if number else "@@"]
        lines += [f" {text}" for text in old[start - above : start]]
        lines += [f"-{text}" for text in old[start:end]]
        lines += [f"+{text}" for text in new[first:last]]
        lines += [f" {text}" for text in old[end : end + below]]
    return "\n".join([*lines, "*** End Patch", ""])


def _numbered(lines: list[str], number: bool, start: int = 0) -> list[str]:
    return [f"{at} {line}" for at, line in enumerate(lines, start + 1)] if number else lines


@_SETTINGS
@given(
    data=st.data(),
    form=st.sampled_from(_FORMS),
    path=st.sampled_from(["pkg/a.py", "/testbed/pkg/a.py", "./pkg/a.py", "pkg\\a.py"]),
    number=st.booleans(),
    carriage=st.sampled_from(["none", "all", "some"]),
    excerpt=st.booleans(),
)
def test_edits_in_other_forms_give_the_same_result_or_are_refused(
    git: GitRepository, data: st.DataObject, form: str, path: str, number: bool, carriage: str, excerpt: bool
) -> None:
    old = data.draw(_file())
    new = data.draw(_edited(old))
    # In a file with both kinds of line ends, each kind has its own lines.
    ends = {line: {"none": "", "all": "\r", "some": "\r" * (len(line) % 2)}[carriage] for line in (*old, *new)}
    before, after = ("".join(f"{line}{ends[line]}\n" for line in lines) for lines in (old, new))
    if form == "whole_file":
        at = data.draw(st.integers(0, len(new)))
        shown = new[at : at + min(len(new), len(old)) // 3] if excerpt else new
        body = "\n".join(_numbered(shown, number, at if excerpt else 0))
        answer = data.draw(
            st.sampled_from(
                [f"[start of {path}]\n{body}\n[end of {path}]\n", f'<file path="{path}">\n{body}\n</file>\n']
            )
        )
    else:
        blocks = _BLOCKS.get(form)
        answer = _as_v4a(path, old, new, number) if blocks is None else _as_blocks(blocks, path, old, new, number)
        changes = _changes(old, new)
        searched = ["\n".join(old[max(start - 2, 0) : end + 2]).strip("\n") for start, end, _, _ in changes]
        # Edits of the same text are versions of one edit, and an edit may leave one of two equal texts.
        places = ["".join(f"\n{line}" for line in old).count(f"\n{text}\n") for text in searched]
        assume(len(searched) == 1 or (len(set(searched)) == len(searched) and max(places, default=1) < 2))
    files = {"pkg/a.py": before, "pkg/b.py": "b = 1\n"}
    result = make_patch(answer, files)
    if result.status not in ("applies", "repaired"):
        return
    applied = git.apply(result.patch, files)
    assert applied is not None, (answer, result)
    if any(note.startswith("guessed") for note in result.repairs) or (excerpt and len(old) <= _SHORTEST_WHOLE):
        return
    assert applied.keys() == files.keys()
    assert applied["pkg/b.py"] == files["pkg/b.py"]
    expected, got = (_comparable(text, carriage) for text in (after, applied["pkg/a.py"]))
    assert expected == got, (answer, result)


def _comparable(content: str, carriage: str) -> list[str]:
    """Lines without white space at their ends where it is not decidable: an added line may get either line end."""
    return [line.rstrip() if carriage == "some" else line for line in content.rstrip().split("\n")]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(max_size=300))
def test_no_text_makes_it_raise(text: str) -> None:
    result = make_patch(text, {"a.py": "x\n"})
    assert (result.status == "none") == (result.patch == "")


_PIECES = [
    "--- a/a.py\n", "+++ b/a.py\n", "@@ -1,2 +1,2 @@\n", "@@\n", "@@ -0,0 +1 @@\n", "-x\n", "+y\n", " z\n",
    "\n", "```\n", "```diff\n", "<patch>\n", "</patch>\n", "diff --git a/a.py b/a.py\n",
    "new file mode 100644\n", "--- /dev/null\n", "deleted file mode 100644\n", "rename from a.py\n",
    "rename to b.py\n", "+++ /dev/null\n", "*** Begin Patch\n", "\\ No newline at end of file\n",
    "*** Update File: a.py\n", "*** Add File: c.py\n", "*** Move to: d.py\n", "*** Delete File: a.py\n",
    "*** End Patch\n", "<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n", "a.py\n", "x\n",
    "<file>a.py</file>", "<original>", "</original>", "<patched>", "</patched>", "[start of a.py]\n",
    "[end of a.py]\n", "Binary files a and b differ\n", "GIT binary patch\n", '--- "a/\\303"\n', "\r\n", "\x00",
    "\ud800", "    ", "> ", "<think>",
]  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=25))
def test_no_mix_of_diff_fragments_makes_it_raise(pieces: list[str]) -> None:
    result = make_patch("".join(pieces), {"a.py": "x\nz\n", "e.py": "", "deep/b.py": "x\ny"})
    assert (result.status == "none") == (result.patch == "")
    assert result.status in ("applies", "repaired") or result.reason
