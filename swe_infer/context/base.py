"""The interface of contexts. A context chooses which files of the repository a prompt shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from swe_infer.context.reading import Commit
from swe_infer.types import Prompt

if TYPE_CHECKING:
    from swe_infer.repositories.options import RepositoryOptions

__all__ = ["Commit", "Context", "CountTokens", "FileRequests", "Row", "Shown"]

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
        keeps_order: the prompt shows ``files`` in their order. Otherwise SWE-bench's layouts sort them by path.
        windows: the lines that the prompt shows of a file, see :data:`swe_infer.context.windows.Windows`. Other files
            are shown whole.
        tokens: the tokens of the chosen files, shown or not, best first. Files of more than 100,000 tokens may be
            missing. None: the context does not count all of them.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    readmes: Mapping[str, str] = field(default_factory=dict)
    creates_file: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    keeps_order: bool = False
    windows: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    tokens: Mapping[str, int] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All files that are shown, each once."""
        return tuple(dict.fromkeys((*self.files, *self.readmes)))


class FileRequests(Protocol):
    """The requests of a context for which a model chooses the files, one for each instance."""

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of the files that are shown."""
        ...

    def prompt(self, row: Row, commit: Commit | None, count_tokens: CountTokens, most_tokens: int | None) -> Prompt:
        """The prompt that requests the files of one row.

        Args:
            most_tokens: of the prompt; None: unknown.

        Raises:
            DataError: the row lacks something that the prompt needs; the message says what.
            RepositoryError: the repository cannot be read.
        """
        ...

    def choose_answered(
        self, answer: str, row: Row, commit: Commit | None, count_tokens: CountTokens, lines: int | None = None
    ) -> Shown:
        """The files to show, where ``answer`` is the model's answer to :meth:`prompt`.

        Args:
            lines: shown before and after each place; None: whole files.

        Raises:
            DataError: as :meth:`Context.choose`.
        """
        ...


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
    def file_requests(self) -> FileRequests | None:
        """How a model is requested to choose the files; None: :meth:`choose` alone does."""
        return None

    @property
    def names_lines(self) -> bool:
        """Whether :meth:`choose_lines` is implemented."""
        return False

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

    def choose_lines(self, row: Row, commit: Commit | None, count_tokens: CountTokens, lines: int) -> Shown:
        """As :meth:`choose`, with the ``lines`` before and after each place that the context names in the files.

        Raises:
            DataError: as :meth:`choose`.
        """
        raise NotImplementedError(f"{type(self).__name__} names no lines")
