"""Parquet files: one, a directory of them, or a pattern (``dataset=parquet``)."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from swe_infer.data.arrow import ArrowRows, check_columns, silence_datasets
from swe_infer.data.base import DatasetOptions
from swe_infer.data.normalise import Normaliser
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.text import first_line
from swe_infer.types import PathText


@dataclass(frozen=True, kw_only=True)
class ParquetDataset(DatasetOptions):
    """Parquet files with the columns ``instance_id`` and ``text``, read in the order of their names.

    The ``datasets`` library converts them once to Arrow in its cache (``HF_HOME``). Random access to Parquet would
    decode a compressed row group for each row.
    """

    path: Annotated[PathText, Option("A file, a directory of them, or a pattern such as test-*.parquet.", "answer")]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("dataset.path is empty: name a parquet file, a directory of them or a pattern")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def open(self, normaliser: Normaliser | None = None) -> ArrowRows:
        files = self._files()
        if normaliser is None:
            self._check(files)
        import datasets

        silence_datasets()
        try:
            table = datasets.Dataset.from_parquet([str(file) for file in files])
        except Exception as error:  # the builder wraps errors of Arrow and the OS
            reason = first_line(error.__cause__ or error)
            raise DataError(f"dataset.path={self.path} cannot be read: {reason}") from error
        assert isinstance(table, datasets.Dataset)
        return ArrowRows(table, self.text_column, self.path, normaliser)

    def _files(self) -> list[Path]:
        from swe_infer.remote.reading import dataset_path

        path = dataset_path(self.path, "dataset.path")
        if path.is_dir():
            files = sorted(path.glob("*.parquet"))
            if not files:
                raise DataError(f"dataset.path={self.path}: the directory contains no *.parquet file")
            return files
        if path.is_file():
            return [path]
        files = [Path(name) for name in sorted(glob.glob(str(path)))]
        if not files:
            raise DataError(f"dataset.path={self.path}: file not found (looked for {path.absolute()})")
        return files

    def _check(self, files: list[Path]) -> None:
        """Reads only the footers, so that an invalid file or column is reported before the conversion."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in files:
            try:
                schema = pq.read_schema(file)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{file} is not a parquet file: {first_line(error)}") from error
            check_columns({field.name: field.type for field in schema}, self.text_column, str(file))
