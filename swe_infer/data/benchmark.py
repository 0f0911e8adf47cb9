"""A published benchmark, from the hub or a local copy, with SWE-bench's columns (``dataset=swebench_pro``, …)."""

from __future__ import annotations

import glob
import hashlib
import logging
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar

from swe_infer.data.arrow import ArrowRows, silence_datasets
from swe_infer.data.base import ID_COLUMN, Rows
from swe_infer.data.choices import FileChoices
from swe_infer.data.disk import DiskDataset
from swe_infer.data.hub import HubDataset
from swe_infer.data.jsonl import JsonlDataset, JsonlRows
from swe_infer.data.normalise import Normaliser
from swe_infer.data.parquet import ParquetDataset
from swe_infer.errors import ConfigError, DataError
from swe_infer.harnesses import BenchmarkName
from swe_infer.options import Option
from swe_infer.text import first_line
from swe_infer.types import EditFormat, Instance, PathText, Skip

_log = logging.getLogger(__name__)
_JSON = (".jsonl", ".json", ".ndjson", ".gz")
_LANGUAGES = frozenset({"c", "cpp", "csharp", "go", "java", "js", "php", "python", "ruby", "rust", "ts"})
"""Splits of SWE-bench-Live/MultiLang, which state the language of their rows."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkDataset(HubDataset):
    """The rows of a benchmark with SWE-bench's columns, see :class:`swe_infer.data.normalise.Normaliser`."""

    benchmark: Annotated[
        BenchmarkName, Option("Whose columns the rows have, and whose harness evaluates the predictions.", "answer")
    ]
    path: Annotated[
        PathText | None,
        Option("A local copy instead: JSON lines, CSV, parquet, save_to_disk, a folder or a pattern.", "answer"),
    ] = None
    files: Annotated[
        tuple[str, ...] | None,
        Option(
            "Only these JSON lines files of the hub's repository, such as [java/*.jsonl]; null: a split.", "answer"
        ),
    ] = None
    interface: Annotated[
        bool | None,
        Option("Append the row's interface to the issue; null: as the benchmark's own code does.", "answer"),
    ] = None

    _local: ClassVar[str] = "dataset.path names a local copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path == "":
            raise ConfigError("dataset.path is empty: name a local copy of the dataset, or null for the hub")
        if self.files is not None and not self.files:
            raise ConfigError("dataset.files is an empty list: name files such as [java/*.jsonl], or null")

    @property
    def rules(self) -> str:
        return f"{self.benchmark}-1"

    def open(self, *, cached_only: bool = False) -> Rows:
        """Opens the local copy, or loads the dataset from the hub or its cache, see :meth:`HubDataset.open`.

        Raises:
            DataError: it cannot be read, or its rows are not of this benchmark.
        """
        if self.path is not None:
            return self._open_local(self.path, Normaliser(self.benchmark, self.interface))
        language = self.split if self.split in _LANGUAGES else None
        normaliser = Normaliser(self.benchmark, self.interface, language)
        if self.files is None:
            return self._open_table(cached_only, normaliser)
        folder = self._download(self.files, cached_only)
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(_JSON))
        matching = [path for path in paths if any(path.relative_to(folder).match(name) for name in self.files)]
        if not matching:
            raise DataError(f"dataset.files={list(self.files)} matches no JSON lines file of {self.name}")
        rows = self._open_json([(path, f"{self.name}/{path.relative_to(folder)}") for path in matching], normaliser)
        rows.revision = folder.name
        _log.info("%s: commit %s, %d files", self.name, folder.name, len(matching))
        return rows

    def _open_local(self, path: str, normaliser: Normaliser) -> Rows:
        from swe_infer.remote.reading import dataset_path

        place = dataset_path(path, "dataset.path")
        if place.is_dir():
            if any((place / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
                split = self.split if (place / "dataset_dict.json").is_file() else None
                return DiskDataset(path=path, text_column=self.text_column, split=split).open(normaliser)
            paths = [file for file in sorted(place.iterdir()) if file.name.endswith(_JSON)]
        else:
            found = [place] if place.is_file() else [Path(name) for name in sorted(glob.glob(str(place)))]
            if not found:
                raise DataError(f"dataset.path={path}: file not found (looked for {place.absolute()})")
            if all(file.suffix == ".csv" for file in found):
                return self._open_csv(found, normaliser)
            paths = [file for file in found if file.name.endswith(_JSON)]
        if not paths:
            return ParquetDataset(path=path, text_column=self.text_column).open(normaliser)
        if len(paths) == 1:
            return JsonlDataset(path=str(paths[0]), text_column=self.text_column).open(normaliser)
        return self._open_json([(file, str(file)) for file in paths], normaliser)

    def _open_csv(self, paths: Sequence[Path], normaliser: Normaliser) -> ArrowRows:
        """CSV files with a header. Every value is text, an empty one too."""
        import csv

        import datasets

        label = self.path or self.name
        try:
            with paths[0].open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                header, first = next(reader, []), next(reader, None)
            if first is None:
                raise DataError(f"dataset.path={label} has no rows")
            silence_datasets()
            features = datasets.Features({name: datasets.Value("string") for name in header})
            table = datasets.Dataset.from_csv([str(path) for path in paths], features=features, keep_default_na=False)
        except DataError:
            raise
        except Exception as error:  # the builder wraps errors of pandas, Arrow and the OS
            reason = first_line(error.__cause__ or error)
            raise DataError(f"dataset.path={label} cannot be read as CSV: {reason}") from error
        assert isinstance(table, datasets.Dataset)
        return ArrowRows(table, self.text_column, label, normaliser)

    def _open_json(self, paths: Sequence[tuple[Path, str]], normaliser: Normaliser) -> JoinedRows:
        parts = [JsonlRows(path, self.text_column, label=label, normaliser=normaliser) for path, label in paths]
        return JoinedRows(parts)

    def _download(self, patterns: Sequence[str], cached_only: bool) -> Path:
        """The folder of a snapshot of the hub's repository, whose name is the commit."""
        import huggingface_hub

        try:
            cached_only = cached_only or not self._is_hub_reachable()
            return Path(
                huggingface_hub.snapshot_download(
                    self.name,
                    repo_type="dataset",
                    revision=self.revision,
                    allow_patterns=list(patterns),
                    local_files_only=cached_only,
                )
            )
        except Exception as error:  # the library passes errors of HTTP and the OS through
            raise DataError(self._explain(error)) from error


class JoinedRows:
    """The rows of several files, one after the other.

    Raises:
        DataError: two files have an instance of the same id.
    """

    has_known_lengths = True
    file_choices: FileChoices | None = None

    def __init__(self, parts: Sequence[JsonlRows]) -> None:
        self.revision: str | None = None
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))
        self.ids: Sequence[str] = [instance_id for part in parts for instance_id in part.ids]
        self.columns: Collection[str] = frozenset().union(*(part.columns for part in parts))
        seen: set[str] = set()
        for instance_id in self.ids:
            if instance_id in seen:
                raise DataError(f"{ID_COLUMN} {instance_id!r} is in two of the files; each row needs its own")
            seen.add(instance_id)

    def __len__(self) -> int:
        return len(self.ids)

    def _at(self, index: int) -> tuple[JsonlRows, int]:
        number = bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)

    def characters(self, index: int) -> int:
        part, at = self._at(index)
        return part.characters(at)

    def fault(self, index: int) -> Skip | None:
        part, at = self._at(index)
        return part.fault(at)

    def row(self, index: int) -> Mapping[str, Any]:
        part, at = self._at(index)
        return part.row(at)

    def inputs_of_check(self, index: int) -> tuple[Mapping[str, str], EditFormat | None]:
        part, at = self._at(index)
        return part.inputs_of_check(at)

    def __getitem__(self, index: int) -> Instance:
        part, at = self._at(index)
        return part[at]

    def content_sha256(self) -> str:
        """SHA-256 of the files' own digests."""
        return hashlib.sha256("".join(part.content_sha256() for part in self._parts).encode()).hexdigest()
