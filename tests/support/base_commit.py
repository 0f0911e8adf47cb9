"""A repository with files of every kind, rows of instances at its commit, and a checkout for git's own verdict."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.support.git_server import Files, git, make_repository

__all__ = ["GOLD", "GONE", "SHOWN", "BaseCommit"]

GONE = "0123456789abcdef0123456789abcdef01234567"
SHOWN = "src/dos.py"
TREE: Files = {
    b"README.md": ("100644", b"# caf\xe9\r\n"),
    b"src/dos.py": ("100644", b"a = 1\r\nb = 'caf\xe9'\r\nc = 3\r\n"),
    b"src/other.py": ("100755", b"def f():\n    return 1\n"),
    b"src/deep/more.py": ("100644", b"m = 1"),
    b"link.py": ("120000", b"src/other.py"),
    b"lib": ("120000", b"src"),
    b"vendor": ("160000", GONE.encode()),
}
GOLD = "--- a/src/dos.py\n+++ b/src/dos.py\n@@ -1 +1 @@\n-a = 1\r\n+a = 2\r\n"


class BaseCommit:
    """A repository, a checkout of its base commit, and rows of the instances at that commit."""

    def __init__(self, root: Path) -> None:
        self.clones = root / "clones"
        bare = self.clones / "o" / "n.git"
        self.commit = make_repository(bare, {"refs/heads/main": TREE})["refs/heads/main"]
        self.checkout = root / "checkout"
        git("clone", "--quiet", "--no-checkout", bare, self.checkout)
        git("-C", self.checkout, "checkout", "--quiet", self.commit)
        self.rows = root / "rows.jsonl"
        row = {"repo": "o/n", "base_commit": self.commit, "problem_statement": "Fix it.", "patch": GOLD}
        self.rows.write_text("".join(json.dumps({"instance_id": f"o__n-{n}", **row}) + "\n" for n in range(3)))

    def applies(self, patch: str) -> bool:
        """Whether ``git apply`` takes the patch at the base commit, and does something: of a folder it says that it
        was changed, and leaves it."""
        return bool(self.after(patch))

    def after(self, patch: str) -> dict[str, bytes | None] | None:
        """The files that ``git apply`` changes at the base commit, None for one that is gone; None where it refuses
        the patch."""
        command = ["git", "-C", str(self.checkout), "apply", "-"]
        done = subprocess.run(command, input=patch.encode("utf-8", "surrogateescape"), capture_output=True)
        listed = git("-C", self.checkout, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
        paths = [self.checkout / line[3:] for line in listed.split("\0") if line]
        made = {str(p.relative_to(self.checkout)): p.read_bytes() if p.is_file() else None for p in paths}
        git("-C", self.checkout, "reset", "--quiet", "--hard")
        git("-C", self.checkout, "clean", "-fdq")
        return made if done.returncode == 0 else None

    def arguments(self, *more: str) -> list[str]:
        """Overrides of a run over the rows, which needs no network."""
        return [
            "dataset=jsonl", f"dataset.path={self.rows}", f"context.repositories={self.clones}",
            "context.offline=true", "tracker=none", *more,
        ]  # fmt: skip
