"""What a context is: it chooses, for one row of a dataset, the files of the repository that a prompt shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swe_infer.context.reading import Commit

if TYPE_CHECKING:
    from swe_infer.repositories.options import RepositoryOptions

__all__ = ["Commit", "Context", "CountTokens", "Row", "Shown"]

Row = Mapping[str, Any]
"""The columns of one row of a dataset."""

CountTokens = Callable[[str], int]
"""Counts the tokens of a text by the run's own tokenizer."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a prompt shows of a repository: path -> text, with ``\\n`` alone as line end.

    Args:
        files: in the order in which the context names them.
        readmes: in the order of their paths. A README that is also one of ``files`` is in both, as in SWE-bench.
        creates_file: the context was read from a patch that adds a file. SWE-bench's forms show it as
            ``/dev/null``.
        left_out: what is not shown although it was chosen: path -> why.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    readmes: Mapping[str, str] = field(default_factory=dict)
    creates_file: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file that is shown, once."""
        return tuple(dict.fromkeys((*self.files, *self.readmes)))


class Context(ABC):
    """The ``context`` group. Constructors check the options, and read the files that these name."""

    @property
    @abstractmethod
    def rules(self) -> str:
        """Name and version of the rules by which files are chosen, and the digest of what they read; part of a
        run's identity."""

    @property
    def gives_text(self) -> bool:
        """Whether the row brings a finished prompt, which is used as it is."""
        return False

    @property
    def repository_options(self) -> RepositoryOptions | None:
        """Where repositories are; None: the context has nothing to do with any."""
        return None

    @property
    @abstractmethod
    def needs_repository(self) -> bool:
        """Whether :meth:`choose` reads a commit."""

    @abstractmethod
    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        """The files to show for one row.

        Args:
            commit: the row's base commit; may be None where :attr:`needs_repository` is False.

        Raises:
            DataError: this row cannot be shown; the message says why.
        """
