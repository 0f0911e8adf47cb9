"""``context=llm``: the list of paths, what the request shows, and which files an answer names."""

from __future__ import annotations

import pytest

from swe_infer.context.llm import LlmContext
from swe_infer.context.tree import fit_paths
from swe_infer.errors import ConfigError, DataError
from swe_infer.prompts.rows import RowFiles
from tests.support.commits import MemoryCommit

PATHS = [
    "README.md", "setup.py", "docs/a.rst", "img/logo.png", "pkg/core/deep/x.py", "pkg/core/deep/y.py",
    "pkg/core/main.py", "pkg/util.py", "tests/test_main.py", "pkg/core/test_x.py", "data/values.bin",
]  # fmt: skip
ROW = {"instance_id": "i", "problem_statement": "It fails."}


def characters(text: str) -> int:
    return len(text)


def fitted(limit: int, paths: list[str] = PATHS) -> list[str]:
    return fit_paths(paths, limit, characters)


def test_a_list_of_paths_is_shortened_until_it_fits() -> None:
    whole = sorted(PATHS)
    size = len("\n".join(whole))
    assert fitted(size) == whole
    sources = [path for path in whole if path.endswith(".py")]
    assert fitted(size - 1) == sources
    main = ["pkg/core/deep/x.py", "pkg/core/deep/y.py", "pkg/core/main.py", "pkg/util.py", "setup.py"]
    assert fitted(len("\n".join(sources)) - 1) == main
    assert fitted(len("\n".join(main)) - 1) == [
        "pkg/core/deep/ (2 files)",
        "pkg/core/main.py",
        "pkg/util.py",
        "setup.py",
    ]
    assert fitted(50) == ["pkg/core/ (3 files)", "pkg/util.py", "setup.py"]
    assert fitted(30) == ["pkg/ (4 files)", "setup.py"]
    assert fitted(15) == ["pkg/ (4 files)"]
    assert fitted(1) == []
    assert fitted(1000, ["a\nb.py", "\udce9.py", "c.py"]) == ["c.py"], "a line is a path"
    assert fitted(30, ["docs/a.md", "docs/b.md", "docs/sub/c.md"]) == ["docs/ (3 files)"], "where all are documents"
    for limit in range(size):
        lines = fitted(limit)
        assert len("\n".join(lines)) <= limit
        assert fitted(limit, PATHS[::-1]) == lines


def test_a_large_tree_is_counted_a_few_times_only() -> None:
    paths = [
        f"src/part{part}/mod{mod}/file{number}.py" for part in range(20) for mod in range(20) for number in range(30)
    ]
    calls: list[int] = []

    def count(text: str) -> int:
        calls.append(len(text))
        return len(text) // 4

    lines = fit_paths(paths, 2000, count)
    assert 0.5 * 2000 < count("\n".join(lines)) <= 2000
    assert len(calls) < 40
    assert "src/part7/ (600 files)" in lines or "src/part7/mod7/ (30 files)" in lines


@pytest.mark.parametrize(
    ("answer", "files"),
    [
        ("```\npkg/util.py\nsetup.py\n```", ["pkg/util.py", "setup.py"]),
        ("<think>\n```\nsetup.py\n```\n</think>\n```text\n1. `pkg/util.py`\n2. /testbed/pkg/core/main.py:12\n```",
         ["pkg/util.py", "pkg/core/main.py"]),
        ("- **pkg/util.py**: has the helper\n- pkg/none.py\n- ./setup.py, too", ["pkg/util.py", "setup.py"]),
        ("```\npkg/none.py\n```\nOr rather:\n```\nsetup.py", ["setup.py"]),
        ("```\nsetup.py\n```\nRun it:\n```\npython -m this\n```", ["setup.py"]),
        ("```\n" + "\n".join(PATHS) + "\n```", PATHS[:5]),
        ("```\nsetup.py\nsetup.py\npkg/../../etc/passwd\nvendor\n```", ["setup.py"]),
        ("I would look at the utilities.", []),
        ("", []),
    ],
)  # fmt: skip
def test_the_files_that_an_answer_names(answer: str, files: list[str]) -> None:
    commit = MemoryCommit(dict.fromkeys(PATHS, b"text\n"), submodules=frozenset({"vendor"}))
    shown = LlmContext().choose_answered(answer, ROW, commit, characters)
    assert list(shown.files) == files
    assert list(shown.readmes) == ["README.md"]


def test_the_request_and_the_files_stay_within_their_tokens() -> None:
    files = {**dict.fromkeys(PATHS, "text\n"), "pkg/util.py": "x" * 300}
    context, commit = LlmContext(max_tokens=240), RowFiles(files)
    prompt = context.prompt(ROW, commit, characters, None)
    assert "<issue>\nIt fails.\n</issue>" in prompt.user
    assert "\npkg/util.py\n" in prompt.user
    assert "Not all files are listed" not in prompt.user
    window = context.prompt(ROW, commit, characters, len(prompt.user))
    assert len(window.user) <= len(prompt.user)
    assert "Not all files are listed" in window.user
    shown = context.choose_answered("```\npkg/util.py\nsetup.py\n```", ROW, commit, characters)
    assert list(shown.files) == ["setup.py"]
    assert list(shown.left_out) == ["pkg/util.py"]
    assert context.prompt(ROW, commit, characters, None) == prompt
    with pytest.raises(DataError, match="problem_statement"):
        context.prompt({"instance_id": "i"}, commit, characters, None)
    with pytest.raises(ConfigError, match=r"context\.files=0: must be between"):
        LlmContext(files=0)
