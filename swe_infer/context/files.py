"""``context=files``: files listed in a column of the dataset or in a JSON file, such as the output of a retriever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from swe_infer.context.base import Commit, CountTokens, Row, Shown
from swe_infer.context.repository import RepositoryContext, required
from swe_infer.context.windows import Range, equal_weights, path_and_place, windows_of_words
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.resources import read_named
from swe_infer.types import PathText

_FORM = 'a JSON object such as {"django__django-11099": ["django/forms/models.py"]}'


@dataclass(frozen=True, kw_only=True)
class FilesContext(RepositoryContext):
    """The files that ``context.column`` or ``context.path`` names, in that order.

    A path may end in a line or lines: ``pkg/a.py:10-20``. Paths that are not in the repository are left out, because
    models invent some. A row without any valid path fails.
    """

    column: Annotated[str | None, Option("The column of the dataset that lists the paths.", "answer")] = None
    path: Annotated[
        PathText | None,
        Option(
            "A JSON file with the paths by instance_id, instead of a column; its content is part of the identity.",
            "address",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.column is None) == (self.path is None):
            found = "neither is set" if self.column is None else "both are set"
            raise ConfigError(f"context=files needs context.column or context.path; {found}")
        if self.path is not None:
            self._listed  # noqa: B018 - read now, so that a mistake is known before anything is paid for

    @property
    def rules(self) -> str:
        return "files-1" if self.path is None else f"files-1-{self._listed[1]}"

    @property
    def required_columns(self) -> Mapping[str, str]:
        return {} if self.column is None else {self.column: "context.column"}

    @property
    def names_lines(self) -> bool:
        return True

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        return self._choose(row, required(commit), count_tokens, None)

    def choose_lines(self, row: Row, commit: Commit | None, count_tokens: CountTokens, lines: int) -> Shown:
        return self._choose(row, required(commit), count_tokens, lines)

    def _choose(self, row: Row, repository: Commit, count_tokens: CountTokens, lines: int | None) -> Shown:
        written = self._written(row)
        names = {path: path.removeprefix("./") for path in written}
        tree = repository.entries((*names.values(), *(path_and_place(name)[0] for name in names.values())))
        places: dict[str, list[Range]] = {}
        for path, name in names.items():
            plain, place = path_and_place(name)
            if name not in tree and place is not None and plain in tree:
                names[path] = plain
                places.setdefault(plain, []).append(place)
        left_out = {path: "it is not in the repository" for path, name in names.items() if name not in tree}
        if written and len(left_out) == len(names):
            raise DataError(f"none of the files to show is in the repository: {', '.join(written[:3])}")
        found = (name for path, name in names.items() if path not in left_out)
        windows = (
            None if lines is None else windows_of_words(equal_weights(row.get("problem_statement")), lines, places)
        )
        return self._show(repository, found, count_tokens, left_out=left_out, windows=windows)

    def _written(self, row: Row) -> list[str]:
        if self.column is not None:
            if row.get(self.column) is None:
                raise DataError(f"the row has no column {self.column!r} (context.column)")
            return _paths(row[self.column], f"column {self.column!r}")
        listed = self._listed[0]
        if row["instance_id"] not in listed:
            raise DataError(f"context.path={self.path} lists no files for this instance")
        return _paths(listed[row["instance_id"]], f"context.path={self.path}")

    @cached_property
    def _listed(self) -> tuple[Mapping[str, Any], str]:
        """The content of ``context.path`` and its digest."""
        assert self.path is not None
        content = read_named(self.path, "context.path")
        try:
            listed = json.loads(content)
        except (ValueError, RecursionError):
            listed = None
        if not isinstance(listed, dict):
            raise ConfigError(f"context.path={self.path}: must contain {_FORM}")
        for instance_id, paths in listed.items():
            try:
                _paths(paths, f"{instance_id}: the value")
            except DataError as error:
                raise ConfigError(f"context.path={self.path}: {error}") from None
        return listed, hashlib.blake2b(content, digest_size=8).hexdigest()


def _paths(value: Any, where: str) -> list[str]:
    """Paths as datasets list them: a list, a JSON list in a string, or hits of a retriever (``{"docid": PATH}``).

    Raises: DataError: it has another form.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        found = [item.get("docid") if isinstance(item, Mapping) else item for item in value]
        paths = [path for path in found if isinstance(path, str)]
        if len(paths) == len(found):
            return paths
    raise DataError(f"{where} must be a list of paths")
