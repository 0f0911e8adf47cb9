"""What a context is: it chooses, for one row of a dataset, the files of the repository that a prompt shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from swe_infer.context.reading import README_PREFIX, Commit, as_shown, followed
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option

__all__ = ["Commit", "Context", "CountTokens", "RepositoryContext", "Row", "Shown", "required"]

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


def required(commit: Commit | None) -> Commit:
    """The commit of a context that reads one.

    Raises:
        DataError: there is none.
    """
    if commit is None:
        raise DataError("the files of its repository are not available")
    return commit


@dataclass(frozen=True, kw_only=True)
class RepositoryContext(Context):
    """The options of the contexts that read a repository."""

    readmes: Annotated[bool, Option("Show the READMEs of the repository's root before the files.", "answer")] = True
    max_tokens: Annotated[
        int | None,
        Option("Tokens of files at most, line numbers not counted: what does not fit is left out.", "answer"),
    ] = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"context.max_tokens={self.max_tokens}: must be at least 1, or null")

    @property
    def needs_repository(self) -> bool:
        return True

    def _show(
        self,
        commit: Commit,
        paths: Iterable[str],
        count_tokens: CountTokens,
        *,
        creates_file: bool = False,
        left_out: Mapping[str, str] | None = None,
    ) -> Shown:
        """The texts of ``paths``, which are in the tree, and of the READMEs; all are read at once.

        With ``max_tokens`` files are taken in their order, then READMEs. One that does not fit is left out, and the
        next ones are tried.
        """
        wanted = list(dict.fromkeys(paths))
        root = commit.top_level() if self.readmes else {}
        readmes = sorted(path for path in root if path.lower().startswith(README_PREFIX))
        contents = followed(commit, dict.fromkeys((*wanted, *readmes)))
        missing = dict(left_out or {})
        room = self.max_tokens
        shown: list[dict[str, str]] = [{}, {}]
        for part, group in zip(shown, (wanted, readmes), strict=True):
            for path in group:
                text, why = as_shown(contents[path])
                if text is not None and room is not None:
                    tokens = count_tokens(f"{path}\n{text}\n")
                    if tokens > room:
                        text, why = None, f"its {tokens:,} tokens do not fit in context.max_tokens"
                    else:
                        room -= tokens
                if text is None:
                    missing[path] = why
                else:
                    part[path] = text
        return Shown(shown[0], shown[1], creates_file, missing)
