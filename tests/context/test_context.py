"""Which files each context chooses, what it leaves out, and which rows it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swe_infer.context.base import Shown
from swe_infer.context.files import FilesContext
from swe_infer.context.given import GivenContext
from swe_infer.context.none import NoContext
from swe_infer.context.oracle import OracleContext
from swe_infer.errors import ConfigError, DataError
from swe_infer.repositories import Repositories
from tests.support import commands
from tests.support.commits import MemoryCommit
from tests.support.git_server import Files, make_repository

ROOT = Path(__file__).resolve().parent.parent.parent
PATCH = """\
diff --git a/pkg/b.py b/pkg/b.py
--- a/pkg/b.py
+++ b/pkg/b.py
@@ -1 +1 @@
-b
+B
diff --git a/pkg/new.py b/pkg/new.py
new file mode 100644
--- /dev/null
+++ b/pkg/new.py
@@ -0,0 +1 @@
+new
diff --git a/pkg/old.py b/pkg/moved.py
similarity index 100%
rename from pkg/old.py
rename to pkg/moved.py
diff --git a/pkg/a.py b/pkg/a.py
deleted file mode 100644
--- a/pkg/a.py
+++ /dev/null
@@ -1 +0,0 @@
-a
"""
ROW = {"instance_id": "i-1", "patch": PATCH}


def commit() -> MemoryCommit:
    return MemoryCommit(
        {
            "pkg/a.py": b"a\r\nA\rA",
            "pkg/b.py": b"\xef\xbb\xbfb\n\x0c caf\xe9\n",
            "pkg/old.py": b"",
            "pkg/data.bin": b"\x00\x01",
            "README.rst": b"read\r\nme\r\n",
            "readme_more.txt": b"more",
            "docs/README.md": b"not in the root",
            "docs/start.md": b"# Start\n",
            "lib.py": b"lib\n",
        },
        {"README.md": "docs/start.md", "README.out": "../../etc/passwd", "pkg/link.py": "../lib.py", "loop": "loop"},
        frozenset({"readme-module"}),
    )


def test_oracle_shows_what_the_gold_patch_edits_in_text_mode() -> None:
    repository = commit()
    shown = OracleContext().choose(ROW, repository, len)
    assert list(shown.files.items()) == [
        ("pkg/b.py", "\ufeffb\n\x0c caf\ufffd\n"),
        ("pkg/old.py", ""),
        ("pkg/a.py", "a\nA\nA"),
    ]
    assert list(shown.readmes.items()) == [
        ("README.md", "# Start\n"),
        ("README.rst", "read\nme\n"),
        ("readme_more.txt", "more"),
    ]
    assert shown.creates_file
    assert shown.left_out == {
        "README.out": "it does not lead to a file of the repository",
        "readme-module": "it is a submodule",
    }
    assert len(repository.reads) == 1, "all contents in one request"
    wrapped = {**ROW, "patch": f"<patch>\n{PATCH}\n</patch>"}
    assert OracleContext().choose(wrapped, repository, len) == shown, "as in the datasets with prompts"
    assert OracleContext(readmes=False).choose(ROW, repository, len).readmes == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instance_id": "i"}, "has no gold patch"),
        ({"instance_id": "i", "patch": "not a patch"}, r"gold patch \(column 'patch'\) cannot be read"),
        (
            {"instance_id": "i", "patch": PATCH.replace("pkg/b.py", "pkg/c.py")},
            "edits pkg/c.py, which is not in the repository",
        ),
    ],
)
def test_row_without_a_usable_gold_patch_is_refused(row: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        OracleContext().choose(row, commit(), len)
    with pytest.raises(DataError):
        OracleContext().choose(ROW, None, len)


def test_binary_file_and_links_are_left_out_or_followed() -> None:
    context = FilesContext(column="paths", readmes=False)
    shown = context.choose({"instance_id": "i", "paths": ["loop", "pkg/data.bin", "pkg/link.py"]}, commit(), len)
    assert shown.files == {"pkg/link.py": "lib\n"}
    assert shown.left_out == {"pkg/data.bin": "it is binary", "loop": "it does not lead to a file of the repository"}


def test_what_does_not_fit_in_the_tokens_is_left_out_and_the_next_is_tried() -> None:
    row = {"instance_id": "i", "paths": ["pkg/b.py", "lib.py", "pkg/a.py"]}
    context = FilesContext(column="paths", max_tokens=35)
    shown = context.choose(row, commit(), len)  # a token for each character; a path and two line ends are counted
    assert list(shown.files) == ["pkg/b.py", "lib.py"]
    assert list(shown.readmes) == []
    assert "do not fit in context.max_tokens" in shown.left_out["pkg/a.py"]
    assert set(shown.left_out) > {"README.rst", "readme_more.txt"}
    everything = FilesContext(column="paths").choose(row, commit(), lambda _: pytest.fail("no bound, no counting"))
    assert len(everything.paths) == 6


def test_files_come_from_a_column_or_a_file_in_their_order(tmp_path: Path) -> None:
    def files(value: object) -> list[str]:
        return list(FilesContext(column="c", readmes=False).choose({"c": value}, commit(), len).files)

    wanted = ["pkg/b.py", "lib.py"]
    assert files(wanted) == files(tuple(wanted)) == files(json.dumps(wanted)) == wanted
    assert files([{"docid": "pkg/b.py", "score": 2.0}, {"docid": "./lib.py", "score": 1.0}]) == wanted
    assert files([]) == []
    assert files(["lib.py", "made/up.py"]) == ["lib.py"]
    for value in (None, 3, "pkg/b.py", [3], ["made/up.py"]):
        with pytest.raises(DataError):
            files(value)

    listing = tmp_path / "listing.json"
    listing.write_text(json.dumps({"i-1": wanted}))
    context = FilesContext(path=str(listing), readmes=False)
    assert list(context.choose(ROW, commit(), len).files) == wanted
    with pytest.raises(DataError, match="lists no files for this instance"):
        context.choose({"instance_id": "i-2"}, commit(), len)
    listing.write_text(json.dumps({"i-1": wanted[:1]}))
    assert FilesContext(path=str(listing)).rules != context.rules, "the content counts, not the name"
    for content in ("[]", "{", '{"i-1": "a.py"}', '{"i-1": [1]}'):
        listing.write_text(content)
        with pytest.raises(ConfigError, match=r"context\.path=.*must"):
            FilesContext(path=str(listing))
    with pytest.raises(ConfigError, match="there is no such file"):
        FilesContext(path=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="not a regular file"):
        FilesContext(path=str(tmp_path))


def test_files_of_a_real_repository_at_the_base_commit(tmp_path: Path) -> None:
    tree: Files = {
        b"README.rst": ("120000", b"docs/start.rst"),
        b"readmes/x": ("100644", b"in a folder"),
        b"docs/start.rst": ("100644", b"Start\r\n"),
        b"pkg/b.py": ("100755", b"b\n\tcaf\xe9"),
        b"pkg/old.py": ("100644", b""),
        b"pkg/a.py": ("100644", b"a\n"),
    }
    sha = make_repository(tmp_path / "own" / "lib.git", {"refs/heads/main": tree})["refs/heads/main"]
    context = OracleContext(repositories=str(tmp_path), offline=True)
    with Repositories(context) as repositories:
        shown = context.choose(ROW, repositories.open("own/lib", sha), len)
    assert shown.files == {"pkg/b.py": "b\n\tcaf\ufffd", "pkg/old.py": "", "pkg/a.py": "a\n"}
    assert shown.readmes == {"README.rst": "Start\n"}
    assert shown.paths == ("pkg/b.py", "pkg/old.py", "pkg/a.py", "README.rst")


def test_contexts_that_read_no_repository() -> None:
    assert not GivenContext().needs_repository
    assert GivenContext().gives_text
    assert not NoContext().needs_repository
    assert NoContext().choose(ROW, None, len) == GivenContext().choose(ROW, None, len) == Shown()
    assert NoContext(readmes=True).needs_repository
    assert set(NoContext(readmes=True).choose(ROW, commit(), len).readmes) == {
        "README.md",
        "README.rst",
        "readme_more.txt",
    }


def test_option_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"context=files needs context\.column or context\.path; neither is set"):
        FilesContext()
    with pytest.raises(ConfigError, match=r"context=files needs context\.column or context\.path; both are set"):
        FilesContext(column="a", path="b")
    with pytest.raises(ConfigError, match=r"context\.max_tokens=0"):
        OracleContext(max_tokens=0)


def test_the_context_of_the_documentation_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "prompts.md").read_text()
    (tmp_path / "my_context.py").write_text(page.split("```python\n")[1].split("```")[0])
    option = tmp_path / "conf" / "context" / "first.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: my_context.FirstFile\n")
    arguments = [
        "dataset=sample", "dataset.limit=1", "--config-dir", "conf", "context=first", "prompt=style2",
        "--out", "rows.jsonl",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f".{os.pathsep}{ROOT}"}
    done = commands.run("swe_infer.prompts", *arguments, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "prompts    1 of 1" in done.stderr
    option.write_text("_target_: not_on_the_path.FirstFile\n")
    refused = commands.run("swe_infer.prompts", *arguments, cwd=tmp_path, env=environment)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: context._target_=not_on_the_path.FirstFile: cannot be imported, as there is no module "
        "not_on_the_path: add its folder to PYTHONPATH, or install its package\n"
    )
