"""The interface of contexts. A context chooses which files of the repository a prompt shows."""

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
    """The files that a prompt shows: path -> text, with ``\\n`` as line end.

    Args:
        files: in the context's order.
        readmes: sorted by path. A README that is also one of ``files`` is in both, as in SWE-bench.
        creates_file: the context was read from a patch that adds a file. SWE-bench's layouts show it as
            ``/dev/null``.
        left_out: chosen files that are not shown: path -> reason.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    readmes: Mapping[str, str] = field(default_factory=dict)
    creates_file: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """All files that are shown, each once."""
        return tuple(dict.fromkeys((*self.files, *self.readmes)))


class Context(ABC):
    """The ``context`` group. Constructors check the options, and read the files that the options name."""

    @property
    @abstractmethod
    def rules(self) -> str:
        """Name and version of the rules that choose files, and a digest of the files that the options name.

        Part of a run's identity.
        """

    @property
    def required_columns(self) -> Mapping[str, str]:
        """Columns without which no row can be shown: name -> the option that needs it, for messages."""
        return {}

    @property
    def gives_text(self) -> bool:
        """Whether the row contains a finished prompt, which is used unchanged."""
        return False

    @property
    def repository_options(self) -> RepositoryOptions | None:
        """Where repositories are; None: the context never reads one."""
        return None

    @property
    @abstractmethod
    def needs_repository(self) -> bool:
        """Whether :meth:`choose` reads a commit."""

    @abstractmethod
    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        """Chooses the files to show for one row.

        Args:
            commit: the row's base commit; may be None where :attr:`needs_repository` is False.

        Raises:
            DataError: this row cannot be shown; the message says why.
        """
