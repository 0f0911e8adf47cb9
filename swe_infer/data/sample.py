"""The bundled sample instances: small Python files with a bug, for a first run and for tests (``dataset=sample``)."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from swe_infer.data.base import DatasetOptions
from swe_infer.data.jsonl import JsonlRows
from swe_infer.errors import DataError
from swe_infer.options import Option


@dataclass(frozen=True, kw_only=True)
class SampleDataset(DatasetOptions):
    """The instances of :mod:`swe_infer.sample`. Needs no network."""

    run_tests: Annotated[
        bool | Literal["unsafe"],
        Option("false: as evaluation=none; unsafe: evaluation=own_tests without a sandbox.", "reporting"),
    ] = True

    @property
    def name(self) -> str:
        return "sample"

    def open(self) -> JsonlRows:
        resource = importlib.resources.files("swe_infer") / "sample" / "instances.jsonl"
        if not isinstance(resource, Path):
            raise DataError("the sample instances are in a zip archive: install swe_infer as plain files")
        return JsonlRows(resource, self.text_column, label="the bundled sample")
