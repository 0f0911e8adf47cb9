"""One small row of each published benchmark, in its own shape, over a repository that is made for it."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.git_server import git

Row = dict[str, Any]

FIXED = "def area(r):\n    return 3 * r * r\n"
BUGGY = "def area(r):\n    return 2 * r * r\n"
GOLD = (
    "diff --git a/area.py b/area.py\n--- a/area.py\n+++ b/area.py\n@@ -1,2 +1,2 @@\n def area(r):\n"
    "-    return 2 * r * r\n+    return 3 * r * r\n"
)
BUG = (
    GOLD.replace("-    return 2", "-    return 0")
    .replace("+    return 3", "+    return 2")
    .replace("return 0", "return 3")
)
SECRET = "test_that_no_prompt_shows"
TEST_PATCH = f"diff --git a/t.py b/t.py\n--- /dev/null\n+++ b/t.py\n@@ -0,0 +1 @@\n+{SECRET}\n"
TESTS = [f"t.py::{SECRET}", "t.py::it's"]
RESULT = {"run": "NONE", "test": "FAIL", "fix": "PASS"}
BRANCH = "o__n.1234.func_pm__abc"
WHEN = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Shape:
    """A row in the shape of a preset.

    Args:
        ends_with: the end of the normalised issue.
        expected: further columns of the normalised row.
    """

    row: Row
    instance_id: str = "o__n-1"
    ends_with: str = "Wrong area."
    expected: Row = field(default_factory=dict)


class Clones:
    """A repository ``o/n`` whose base commit has the bug, and its mirror in SWE-smith with a branch of a bug."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = _commits(root / "o" / "n", "main", [("Before", BUGGY)])
        for name, last in (("n", [("Remove F2P Tests", BUGGY + "# none\n")]), ("m", [])):
            _commits(root / "swesmith" / f"o__{name}.1234", BRANCH, [("Base", FIXED), ("Bug Patch", BUGGY), *last])

    def shapes(self) -> dict[str, Shape]:
        """A row for each preset."""
        swebench = {
            "repo": "o/n", "instance_id": "o__n-1", "base_commit": self.base, "patch": GOLD, "test_patch": TEST_PATCH,
            "problem_statement": "Wrong area.", "hints_text": "It is 3.", "created_at": "2024-05-06T07:08:09Z",
            "version": "1.0", "FAIL_TO_PASS": json.dumps(TESTS), "PASS_TO_PASS": "[]",
        }  # fmt: skip
        lists = {**swebench, "FAIL_TO_PASS": TESTS, "PASS_TO_PASS": []}
        pro = {key: value for key, value in swebench.items() if key not in ("FAIL_TO_PASS", "PASS_TO_PASS")}
        pro |= {
            "instance_id": "instance_o__n-1-v2", "fail_to_pass": repr(TESTS), "pass_to_pass": "[]",
            "requirements": "Use 3.", "interface": "None.", "repo_language": "python",
            "selected_test_files_to_run": repr(["t.py"]), "before_repo_set_cmd": f"git checkout x -- {SECRET}",
        }  # fmt: skip
        v2 = {**lists, "created_at": 1_714_979_289_000, "interface": "area(r)", "pr_description": SECRET}
        multi = {
            "org": "o", "repo": "n", "number": 1, "state": "closed", "title": "Fix area", "body": SECRET,
            "base": {"label": "o:main", "ref": "main", "sha": self.base}, "fix_patch": GOLD,
            "test_patch": TEST_PATCH, "resolved_issues": [{"number": 7, "title": "Bug", "body": "Wrong area."}],
            "f2p_tests": dict.fromkeys(TESTS, RESULT) | {"of another row": None}, "p2p_tests": {},
            "fixed_tests": {TESTS[0]: RESULT}, "run_result": {"passed_count": 0}, "hints": "",
        }  # fmt: skip
        smith = {
            "instance_id": BRANCH, "repo": "swesmith/o__n.1234", "patch": BUG, "FAIL_TO_PASS": TESTS,
            "PASS_TO_PASS": [], "image_name": "i", "problem_statement": "Wrong area.",
        }  # fmt: skip
        polybench = {
            **{key: str(value) for key, value in pro.items() if "to_pass" not in key and key != "interface"},
            "instance_id": "o__n-1", "F2P": repr(TESTS), "P2P": "[]", "language": "Python", "Dockerfile": "FROM x",
            "modified_nodes": json.dumps(["area.py->area"]),
        }  # fmt: skip
        return {
            "swebench_multilingual": Shape({**swebench, "eval_script": SECRET}),
            "swebench_multimodal": Shape(
                {**swebench, "image_assets": json.dumps({"problem_statement": ["u"], "patch": [], "test_patch": []})},
                expected={"image_assets": {"problem_statement": ["u"], "patch": [], "test_patch": []}},
            ),
            "swebench_pro": Shape(
                pro,
                "instance_o__n-1-v2",
                "Wrong area.\n\nRequirements:\nUse 3.\n\nNew interfaces introduced:\nNone.",
                {"language": "python"},
            ),
            "swebench_extra": Shape({**lists, "version": 1, "created_at": WHEN}, expected={"version": "1"}),
            "swe_rebench": Shape({**lists, "install_config": {"python": "3.9"}}),
            "swe_rebench_leaderboard": Shape({**lists, "version": 1.5}, expected={"version": "1.5"}),
            "swe_rebench_v2": Shape(v2),
            "swe_gym": Shape({**lists, "hints_text": None}),
            "swe_gym_lite": Shape(lists),
            "swe_smith": Shape(smith, BRANCH, expected={"base_branch": BRANCH, "patch": GOLD}),
            "swebench_live": Shape({**lists, "test_cmds": ["pytest"], "created_at": 1_714_979_289}),
            "swebench_live_multilang": Shape({**lists, "pull_number": "1"}),
            "multi_swe_bench": Shape(multi, ends_with="Bug\nWrong area.", expected={"version": "1"}),
            "swe_polybench": Shape(polybench, expected={"language": "Python"}),
            "swe_polybench_500": Shape(polybench),
            "swe_polybench_verified": Shape({**polybench, "F2P": json.dumps(TESTS)}),
        }


def _commits(path: Path, branch: str, commits: list[tuple[str, str]]) -> str:
    """A repository with a branch of commits of ``area.py``; returns the id of the last one."""
    git("init", "--quiet", f"--initial-branch={branch}", path)
    for message, content in commits:
        (path / "area.py").write_text(content)
        git("-C", path, "add", ".")
        author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        git("-C", path, *author, "commit", "--quiet", "--message", message)
    return git("-C", path, "rev-parse", "HEAD").strip()
