"""File contents of a repository at a commit, byte for byte, without a work tree."""

from __future__ import annotations

from swe_infer.errors import RepositoryError, RepositoryInterrupted
from swe_infer.repositories.cache import Repositories
from swe_infer.repositories.commit import Commit, Entry
from swe_infer.repositories.options import RepositoryOptions

__all__ = ["Commit", "Entry", "Repositories", "RepositoryError", "RepositoryInterrupted", "RepositoryOptions"]
