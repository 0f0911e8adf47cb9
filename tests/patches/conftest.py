"""A git repository for the tests that compare with ``git apply``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patches.git import GitRepository


@pytest.fixture(scope="session")
def git(tmp_path_factory: pytest.TempPathFactory) -> GitRepository:
    root: Path = tmp_path_factory.mktemp("repository")
    return GitRepository(root)
