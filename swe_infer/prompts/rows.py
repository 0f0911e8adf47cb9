"""Renders the prompts of a dataset's rows when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swe_infer.context.base import Context, CountTokens, FileRequests, Row, Shown
from swe_infer.context.reading import Commit
from swe_infer.errors import DataError, RepositoryError, RepositoryInterrupted
from swe_infer.instance_files import BRANCH_COLUMN, FILES_COLUMN, EntryType, InstanceFiles, files_of
from swe_infer.prompt_format import PromptFiles, edit_format_of
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.repositories import Repositories
from swe_infer.types import EditFormat, Instance, Prompt, Skip, TokenCounter

NOT_AVAILABLE = "RepositoryNotAvailable"
"""Reason to skip an instance whose repository cannot be read. The next command tries again."""
NOT_RENDERED = "PromptNotRendered"
"""Reason to skip an instance whose row lacks data for its prompt."""
_NOT_CHOSEN = Skip("FilesNotChosen", "the model has not chosen the files to show yet")

_MOST_COUNTS = 100_000
"""Maximum number of cached token counts, of some 100 bytes each."""


class RawRows(Protocol):
    """The interface of a dataset's rows, as in :class:`swe_infer.data.base.Rows`."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def columns(self) -> Collection[str]: ...

    def __len__(self) -> int: ...

    def characters(self, index: int) -> int: ...

    def fault(self, index: int) -> Skip | None: ...

    def row(self, index: int) -> Mapping[str, Any]: ...

    def content_sha256(self) -> str | None: ...

    @property
    def revision(self) -> str | None: ...


class RenderedRows:
    """The rows of a dataset with rendered prompts.

    A prompt is rendered when its row is read. The last one is cached, because a row is checked before it is read.

    Args:
        repositories: from which the context reads files; None if it reads none. Rows with a ``files`` column and no
            ``base_commit`` contain their own files.
        count_tokens: the run's tokenizer, for ``context.max_tokens``.
        text_column: the column with finished prompts.
    """

    has_known_lengths = False

    def __init__(
        self,
        rows: RawRows,
        context: Context,
        renderer: PromptRenderer,
        repositories: Repositories | None,
        count_tokens: TokenCounter,
        text_column: str,
    ) -> None:
        self._rows = rows
        self._context = context
        self._renderer = renderer
        self._repositories = repositories
        self._count_tokens = count_tokens
        self._text_column = text_column
        self._counts: dict[bytes, int] = {}
        self._last: tuple[int, Instance | Skip] | None = None
        self._last_shown: tuple[int, Shown] | None = None
        requests = context.file_requests
        self.file_choices = None if requests is None else ModelChoices(self, requests)

    @property
    def ids(self) -> Sequence[str]:
        return self._rows.ids

    @property
    def columns(self) -> Collection[str]:
        return self._rows.columns

    def __len__(self) -> int:
        return len(self._rows)

    def characters(self, index: int) -> int:
        """Length of the row's issue in characters, as a proxy for the length of the prompt, which is unknown until it
        is rendered.
        """
        return self._rows.characters(index)

    def row(self, index: int) -> Mapping[str, Any]:
        return self._rows.row(index)

    def content_sha256(self) -> str | None:
        """SHA-256 of the dataset's files, in hexadecimal; None if it is unknown."""
        return self._rows.content_sha256()

    def fault(self, index: int) -> Skip | None:
        """The reason why this row has no prompt; None if it has one. Renders it."""
        made = self._rendered(index)
        return made if isinstance(made, Skip) else None

    def __getitem__(self, index: int) -> Instance:
        """The row with its prompt, and the files of its repository.

        Raises:
            DataError: the row has no prompt, see :meth:`fault`.
        """
        made = self._rendered(index)
        if isinstance(made, Skip):
            raise DataError(f"{self.ids[index]}: {made.message}")
        return made

    def inputs_of_check(self, index: int) -> tuple[Mapping[str, str], EditFormat | None]:
        """The files and the form of answer for checking an answer to a row. Files are read lazily.

        Raises:
            DataError: the row's own text is unusable.
        """
        if self._context.gives_text or (self._last is not None and self._last[0] == index):
            instance = self[index]
            return instance.files, instance.edit_format
        return InstanceFiles(lambda: self.shown(index).paths, lambda: self.commit(self._rows.row(index))), None

    def shown(self, index: int) -> Shown:
        """The files that the context chooses for a row; cached for the last row.

        Raises:
            DataError: the row lacks what the context needs.
            RepositoryError: its repository cannot be read.
        """
        if self._last_shown is None or self._last_shown[0] != index:
            row = self._rows.row(index)
            commit = self.commit(row) if self._context.needs_repository else None
            if self.file_choices is not None:
                shown = self.file_choices.shown(index, row, commit, self._count, self._renderer.lines)
            elif self._renderer.lines is None:
                shown = self._context.choose(row, commit, self._count)
            else:
                shown = self._context.choose_lines(row, commit, self._count, self._renderer.lines)
            self._last_shown = (index, shown)
        return self._last_shown[1]

    @property
    def revision(self) -> str | None:
        """The commit on the hub; None if the rows do not come from there."""
        return self._rows.revision

    def forget(self, index: int) -> None:
        """Render a row again when it is read."""
        self._last = None if self._last is not None and self._last[0] == index else self._last
        if self._last_shown is not None and self._last_shown[0] == index:
            self._last_shown = None

    def own_fault(self, index: int) -> Skip | None:
        """The reason why the dataset's row is unusable, whatever its prompt shows; None if it is usable."""
        return self._rows.fault(index)

    def count_tokens(self, text: str) -> int:
        """The tokens of a text by the run's tokenizer."""
        return self._count_tokens(Prompt(None, text))

    def _count(self, text: str) -> int:
        """The tokens of a file. Many rows show the same files, such as the READMEs, so counts are cached."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest not in self._counts:
            if len(self._counts) == _MOST_COUNTS:
                self._counts.clear()
            self._counts[digest] = self.count_tokens(text)
        return self._counts[digest]

    def _rendered(self, index: int) -> Instance | Skip:
        if self._last is None or self._last[0] != index:
            self._last = (index, self._render(index))
        return self._last[1]

    def _render(self, index: int) -> Instance | Skip:
        if (fault := self._rows.fault(index)) is not None:
            return fault
        if self.file_choices is not None and (fault := self.file_choices.fault(index)) is not None:
            return fault
        row = self._rows.row(index)
        try:
            shown = self.shown(index)
            prompt = self._renderer.render(row, shown, text_column=self._text_column)
        except RepositoryInterrupted:
            raise
        except (RepositoryError, DataError) as error:
            return _skip_of(error)
        metadata = {key: value for key, value in row.items() if key not in ("instance_id", FILES_COLUMN)}
        files: Mapping[str, str] | None = InstanceFiles(lambda: shown.paths, lambda: self.commit(row))
        if self._context.gives_text:
            files = files_of(row)
        edit_format = edit_format_of(row) if self._renderer.takes_text else None
        files = PromptFiles(prompt) if files is None else files
        return Instance(self.ids[index], prompt, metadata, files, edit_format)

    def commit(self, row: Row) -> Commit:
        """The repository of a row at its base commit.

        Raises:
            RepositoryError: it is not available; the message says why.
        """
        commit = row.get("base_commit")
        if not commit and (files := files_of(row)) is not None:
            return RowFiles(files)
        if not commit and row.get(BRANCH_COLUMN) and row.get("repo") and self._repositories is not None:
            return self._repositories.open_bug(row["repo"], row[BRANCH_COLUMN])
        if not commit or not row.get("repo"):
            missing = "base_commit" if row.get("repo") else "repo"
            raise RepositoryError(f"the row has no {missing}, so its repository cannot be read")
        if self._repositories is None:
            raise RepositoryError("this context reads no repository")
        return self._repositories.open(row["repo"], commit)


def _skip_of(error: RepositoryError | DataError) -> Skip:
    return Skip(NOT_AVAILABLE if isinstance(error, RepositoryError) else NOT_RENDERED, str(error))


class ModelChoices:
    """The files that a model chooses, see :class:`swe_infer.data.choices.FileChoices`."""

    def __init__(self, rows: RenderedRows, requests: FileRequests) -> None:
        self._rows = rows
        self._requests = requests
        self._answers: dict[int, str | Skip] = {}

    @property
    def max_tokens(self) -> int:
        return self._requests.max_tokens

    def is_chosen(self, index: int) -> bool:
        return index in self._answers or self._rows.own_fault(index) is not None

    def request(self, index: int, most_tokens: int | None) -> Prompt | Skip:
        row = self._rows.row(index)
        try:
            return self._requests.prompt(row, self._rows.commit(row), self._rows.count_tokens, most_tokens)
        except RepositoryInterrupted:
            raise
        except (RepositoryError, DataError) as error:
            self._answers[index] = fault = _skip_of(error)
            self._rows.forget(index)
            return fault

    def choose(self, index: int, answer: str) -> None:
        self._answers[index] = answer
        self._rows.forget(index)

    def fault(self, index: int) -> Skip | None:
        """Why a row has no files; None if they are chosen."""
        answer = self._answers.get(index, _NOT_CHOSEN)
        return answer if isinstance(answer, Skip) else None

    def shown(
        self, index: int, row: Row, commit: Commit | None, count_tokens: CountTokens, lines: int | None
    ) -> Shown:
        """The files to show.

        Raises:
            DataError: they are not chosen.
        """
        answer = self._answers.get(index, _NOT_CHOSEN)
        if isinstance(answer, Skip):
            raise DataError(answer.message)
        return self._requests.choose_answered(answer, row, commit, count_tokens, lines)


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of a row's ``files`` column."""

    type: EntryType = "regular"
    oid: str | None = None


@dataclass(frozen=True, slots=True)
class RowFiles:
    """A row's ``files`` column as the repository at its base commit."""

    contents: Mapping[str, str]

    def top_level(self) -> dict[str, RowFile]:
        return {path: RowFile() for path in self.contents if "/" not in path}

    def entries(self, paths: Iterable[str]) -> dict[str, RowFile]:
        return {path: RowFile() for path in paths if path in self.contents}

    def paths(self) -> dict[str, RowFile]:
        return {path: RowFile() for path in self.contents}

    def links(self, paths: Iterable[str]) -> dict[str, str]:
        return {}

    def folders(self, paths: Iterable[str]) -> set[str]:
        return {path for path in paths if any(other.startswith(f"{path}/") for other in self.contents)}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        return {path: self.contents[path].encode("utf-8", "surrogateescape") for path in self.entries(paths)}
