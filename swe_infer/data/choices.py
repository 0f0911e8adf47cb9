"""The files that a model chooses for the rows of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import purpose_of
from swe_infer.types import Prompt, Skip


class FileChoices(Protocol):
    """The files that a model chooses for each row. A row has no prompt before that."""

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of the files of a row."""
        ...

    def is_chosen(self, index: int) -> bool:
        """Whether the files of a row are chosen, or the row cannot be shown."""
        ...

    def request(self, index: int, most_tokens: int | None) -> Prompt | Skip:
        """The prompt that requests the files of a row, or why the row cannot be shown, which is its fault then.

        Args:
            most_tokens: of the prompt; None: unknown.
        """
        ...

    def choose(self, index: int, answer: str) -> None:
        """Set the files of a row by the model's answer."""
        ...


def load_file_choices(choices: FileChoices | None, ids: Sequence[str], directories: Iterable[Path]) -> None:
    """Sets the files that were chosen in runs with the same identity; the first run comes first.

    Args:
        choices: of the rows of a dataset; None: nothing is read.
        ids: of the rows.

    Raises:
        ConfigError: the records of a run cannot be read.
    """
    if choices is None:
        return
    indices = {instance_id: index for index, instance_id in enumerate(ids)}
    for directory in directories:
        for record in RunDirectory(directory).records(auxiliary=True):
            index = indices.get(record["instance_id"])
            if purpose_of(record) != "context" or record["status"] == "failed" or index is None:
                continue
            if not choices.is_chosen(index):
                choices.choose(index, record.get("full_output") or "")
