"""The real git: creates diffs and applies them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

__all__ = ["GitRepository", "needs_git"]

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


class GitRepository:
    """A repository whose working tree is replaced by given files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run("init", "-q")
        self.run("config", "core.autocrlf", "false")

    def run(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[bytes]:
        data = None if text is None else text.encode("utf-8", "surrogatepass")
        environment = {**os.environ, **_ENVIRONMENT}
        return subprocess.run(
            ["git", *arguments], cwd=self.root, input=data, env=environment, capture_output=True, check=False
        )

    def set(self, files: Mapping[str, str]) -> None:
        """Replaces the working tree by ``files``."""
        for entry in self.root.iterdir():
            if entry.name != ".git":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for path, content in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode("utf-8", "surrogatepass"))

    def files(self) -> dict[str, str]:
        """The working tree's regular files."""
        return {
            entry.relative_to(self.root).as_posix(): entry.read_bytes().decode("utf-8", "surrogatepass")
            for entry in sorted(self.root.rglob("*"))
            if entry.is_file() and ".git" not in entry.relative_to(self.root).parts
        }

    def diff(self, before: Mapping[str, str], after: Mapping[str, str], *options: str) -> str:
        """``git diff`` from ``before`` to ``after``."""
        self.set(before)
        self.run("add", "-A")
        tree = self.run("write-tree").stdout.decode().strip()
        self.set(after)
        self.run("add", "-A")
        return self.run("diff", "--cached", "--text", *options, tree).stdout.decode("utf-8", "surrogatepass")

    def apply(self, patch: str, files: Mapping[str, str]) -> dict[str, str] | None:
        """The result of ``git apply`` on ``files``; None if it refuses."""
        self.set(files)
        done = self.run("apply", "-", text=patch)
        return self.files() if done.returncode == 0 else None
