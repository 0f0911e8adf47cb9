"""Rows whose prompts are rendered, and what patches are checked against: git's own verdict in a checkout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from swe_infer.context.base import Context
from swe_infer.context.none import NoContext
from swe_infer.context.oracle import OracleContext
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.instance_files import InstanceFiles
from swe_infer.patches.pipeline import make_patch
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.prompts.rows import RenderedRows
from swe_infer.repositories import Repositories, RepositoryOptions
from swe_infer.types import EditFormat, Prompt
from tests.support.base_commit import GONE, SHOWN, BaseCommit
from tests.support.steps import calls_of


class Characters:
    name = "characters"
    exact = True

    def __call__(self, prompt: Prompt) -> int:
        return len(prompt.text)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseCommit:
    return BaseCommit(tmp_path_factory.mktemp("base"))


def options(clones: Path) -> RepositoryOptions:
    return RepositoryOptions(repositories=str(clones), offline=True)


@pytest.fixture
def repositories(base: BaseCommit) -> Iterator[Repositories]:
    with Repositories(options(base.clones)) as opened:
        yield opened


def opened(base: BaseCommit, repositories: Repositories, context: Context) -> RenderedRows:
    renderer = PromptRenderer(style="style3")
    rows = JsonlDataset(path=str(base.rows), text_column=None).open()
    return RenderedRows(rows, context, renderer, repositories, Characters(), "text")


def changed(path: str, old: str, new: str, after: str = "", line: int = 1) -> str:
    """A diff of one line, and of the one behind it."""
    head = f"--- a/{path}\n+++ b/{path}\n"
    return head + (
        f"@@ -{line},2 +{line},2 @@\n-{old}\n+{new}\n {after}\n"
        if after
        else f"@@ -{line} +{line} @@\n-{old}\n+{new}\n"
    )


def created(path: str) -> str:
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+new\n"


CAFE = "b = 'caf\udce9'\r"
DIFFS: list[tuple[str, str, str | None]] = [
    (changed(SHOWN, "a = 1\r", "a = 2\r", CAFE), "applies", None),
    (changed(SHOWN, CAFE, "b = 0\r", "c = 3\r", 2), "applies", None),
    (changed("src/other.py", "def f():", "def g():", "    return 1"), "applies", None),
    (changed("src/other.py", "def h():", "def g():", "    return 1"), "does_not_apply", "src/other.py: hunk 1"),
    (changed("src/gone.py", "a", "b"), "does_not_apply", "src/gone.py: the file does not exist at the base commit"),
    (changed("src", "a", "b"), "does_not_apply", "src: the file does not exist at the base commit"),
    (changed("link.py", "def f():", "def g():"), "does_not_apply", "link.py: it is a symbolic link"),
    (changed("lib/other.py", "def f():", "def g():"), "does_not_apply", "the file does not exist"),
    (changed("vendor", GONE, "b"), "does_not_apply", "vendor: it is a submodule"),
    (created("src/new.py"), "applies", None),
    (created("src/a/b/new.py"), "applies", None),
    (created("src/other.py"), "does_not_apply", "already exists"),
    (created("link.py"), "does_not_apply", "a symbolic link of this name exists"),
    (created("lib/new.py"), "does_not_apply", "lib is a symbolic link, not a folder"),
    (created("src/other.py/new.py"), "does_not_apply", "src/other.py is a file, not a folder"),
    (created("src/deep"), "does_not_apply", "a folder of this name exists"),
    (created("one") + created("one/two"), "does_not_apply", "one is a file, not a folder"),
    (
        "--- a/src/deep/more.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-m = 1\n\\ No newline at end of file\n"
        + created("src/deep/more.py/new.py"),
        "applies",
        None,
    ),
    (
        "diff --git a/src/other.py b/src/deep/moved.py\nsimilarity index 100%\nrename from src/other.py\n"
        "rename to src/deep/moved.py\n",
        "applies",
        None,
    ),
    (
        "diff --git a/src/other.py b/src/other.py/copy.py\nsimilarity index 100%\ncopy from src/other.py\n"
        "copy to src/other.py/copy.py\n",
        "does_not_apply",
        "src/other.py is a file, not a folder",
    ),
    (
        "diff --git a/src/other.py b/src/other.py/moved.py\nsimilarity index 100%\nrename from src/other.py\n"
        "rename to src/other.py/moved.py\n",
        "applies",
        None,
    ),
    (
        "diff --git a/src/other.py b/link.py\nsimilarity index 100%\nrename from src/other.py\nrename to link.py\n",
        "does_not_apply",
        "a symbolic link of this name exists",
    ),
    (changed(SHOWN, "a = 1", "a = 2", CAFE[:-1]), "repaired", None),  # git requires the file's carriage returns
    (changed(SHOWN, "a = 1", "a = 2", "b = 'caf\ufffd'"), "repaired", None),  # as the prompt shows it
    (changed(SHOWN, "b = 'caf\ufffd'", "b = 'coffee'", "c = 3", 2), "repaired", None),
    (changed("src/other.py", "def f():", "def g():", "    return 1", 9), "applies", None),
]


@pytest.mark.parametrize("context", [OracleContext(), NoContext(), OracleContext(max_tokens=1)])
def test_a_status_is_git_s_own_verdict_at_the_base_commit(
    base: BaseCommit, repositories: Repositories, context: Context
) -> None:
    rows = opened(base, repositories, context)
    for patch, status, reason in DIFFS:
        result = make_patch(f"```diff\n{patch}```\n", rows[1].files)
        assert result.status == status, (patch, result)
        assert reason is None or reason in (result.reason or ""), (patch, result)
        applies = result.status in ("applies", "repaired")
        assert base.applies(result.patch if applies else patch) == applies, (patch, result)


EDITS: Mapping[EditFormat, str] = {
    "search_replace": "src/dos.py\n<<<<<<< SEARCH\na = 1\n=======\na = 2\n>>>>>>> REPLACE\n"
    "src/deep/more.py\n<<<<<<< SEARCH\nm = 1\n=======\nm = 2\nn = 3\n>>>>>>> REPLACE\n",
    "whole_file": "[start of src/deep/more.py]\nm = 2\nn = 3\n[end of src/deep/more.py]\n"
    "[start of src/dos.py]\na = 2\nb = 'caf\ufffd'\nc = 3\n[end of src/dos.py]\n",
    "json_edits": json.dumps(
        [
            {"path": "src/dos.py", "search": "a = 1\n", "replace": "a = 2\n"},
            {"path": "src/deep/more.py", "search": "m = 1", "replace": "m = 2\nn = 3"},
        ]
    ),
}


@pytest.mark.parametrize("edit_format", EDITS)
def test_edits_keep_line_ends_and_bytes_and_reach_files_that_are_not_shown(
    base: BaseCommit, repositories: Repositories, edit_format: EditFormat
) -> None:
    for context in (OracleContext(), NoContext()):
        result = make_patch(EDITS[edit_format], opened(base, repositories, context)[0].files, edit_format)
        assert result.status in ("applies", "repaired"), result
        after = base.after(result.patch)
        assert after is not None
        assert after[SHOWN] == b"a = 2\r\nb = 'caf\xe9'\r\nc = 3\r\n"
        assert (after["src/deep/more.py"] or b"").splitlines() == [b"m = 2", b"n = 3"]
        for path in ("src/gone.py", "link.py", "vendor"):
            answer = EDITS[edit_format].replace("src/deep/more.py", path)
            assert make_patch(answer, opened(base, repositories, context)[0].files, edit_format).status == "none" or (
                edit_format == "whole_file" and path == "src/gone.py"
            )


def test_files_without_a_prompt_are_those_of_the_instance(base: BaseCommit, repositories: Repositories) -> None:
    rows = opened(base, repositories, OracleContext())

    def look_up() -> Mapping[str, str]:
        files = rows.inputs_of_check(2)[0]
        assert list(files) == [SHOWN, "README.md"]
        return files

    assert calls_of(PromptRenderer.render.__code__, look_up) == 0
    assert calls_of(OracleContext.choose.__code__, lambda: rows.inputs_of_check(2)[0]) == 0, (
        "nothing is read before it is needed"
    )
    assert dict(rows.inputs_of_check(2)[0]) == dict(rows[2].files)
    assert rows.inputs_of_check(2)[0] is rows[2].files, "of the row that was read last"


def test_a_repository_that_becomes_unreadable_leaves_patches_unchecked(
    base: BaseCommit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(base.clones, tmp_path / "clones")
    with Repositories(options(tmp_path / "clones")) as repositories:
        rows = opened(base, repositories, OracleContext())
        files = rows[0].files
        assert SHOWN in files, "the shown files are read"
        repositories.close()
        assert make_patch(DIFFS[0][0], files).status == "applies"
        assert make_patch(DIFFS[2][0], files).status == "unchecked"
        assert make_patch(DIFFS[4][0], files).status == "unchecked"
        assert make_patch(DIFFS[9][0], files).status == "applies", "nothing is known to be in the way"
        later = rows.inputs_of_check(1)[0]
        assert list(later) == []
        assert make_patch(DIFFS[0][0], later).status == "unchecked"
    assert isinstance(files, InstanceFiles)
    assert "the repositories are closed" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_tokens_of_a_file_that_many_rows_show_are_counted_once(base: BaseCommit, repositories: Repositories) -> None:
    counted: list[str] = []

    class Counting(Characters):
        def __call__(self, prompt: Prompt) -> int:
            counted.append(prompt.text)
            return super().__call__(prompt)

    context = OracleContext(repositories=str(base.clones), offline=True, max_tokens=1000)
    rows = RenderedRows(
        JsonlDataset(path=str(base.rows), text_column=None).open(), context, PromptRenderer(style="style3"),
        repositories, Counting(), "text",
    )  # fmt: skip
    prompts = {rows[index].prompt for index in range(3)}
    assert len(prompts) == 1
    assert [text.partition("\n")[0] for text in counted] == [SHOWN, "README.md"]
