"""A directory that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote (``dataset=disk``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from swe_infer.data.arrow import ArrowRows, choose_split
from swe_infer.data.base import DatasetOptions
from swe_infer.data.normalise import Normaliser
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.text import first_line
from swe_infer.types import PathText


@dataclass(frozen=True, kw_only=True)
class DiskDataset(DatasetOptions):
    """A saved dataset, memory-mapped from disk."""

    path: Annotated[PathText, Option("The directory that save_to_disk wrote.", "answer")]
    split: Annotated[str | None, Option("The split, if the directory contains several.", "answer")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("dataset.path is empty: name a directory that save_to_disk wrote")

    @property
    def name(self) -> str:
        return Path(self.path).name

    def open(self, normaliser: Normaliser | None = None) -> ArrowRows:
        from swe_infer.remote.reading import dataset_path

        directory = dataset_path(self.path, "dataset.path")
        if not directory.exists():
            raise DataError(f"dataset.path={self.path}: directory not found (looked for {directory.absolute()})")
        if directory.is_file():
            raise DataError(f"dataset.path={self.path} is a file: dataset=jsonl or dataset=parquet reads those")
        if not any((directory / marker).is_file() for marker in ("dataset_info.json", "dataset_dict.json")):
            raise DataError(
                f"dataset.path={self.path} was not written by save_to_disk: it has neither dataset_info.json nor "
                "dataset_dict.json"
            )
        import datasets

        try:
            loaded = datasets.load_from_disk(str(directory))
        except Exception as error:  # damaged files raise any error of Arrow, JSON or the OS
            raise DataError(f"dataset.path={self.path} cannot be loaded: {first_line(error)}") from error
        return ArrowRows(choose_split(loaded, self.split, self.path), self.text_column, self.path, normaliser)
