"""Fixtures of the tests of patches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patches.git import GitRepository


@pytest.fixture(scope="session")
def git(tmp_path_factory: pytest.TempPathFactory) -> GitRepository:
    """A repository for the tests that compare with ``git apply``."""
    root: Path = tmp_path_factory.mktemp("repository")
    return GitRepository(root)


@pytest.fixture(scope="session")
def large_size(request: pytest.FixtureRequest) -> int:
    """Characters of a text over which a quadratic regular expression takes many seconds; with ``--all``, minutes."""
    return 400_000 if request.config.getoption("full") else 50_000
