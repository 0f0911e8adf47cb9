"""The prompts of a comparison, from the datasets that the runs' configurations name, if they are still available.

Datasets are opened without Hydra and without network access.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swe_infer.compare.loading import LoadedRun
from swe_infer.data.base import Rows
from swe_infer.data.disk import DiskDataset
from swe_infer.data.hub import HubDataset
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.parquet import ParquetDataset
from swe_infer.data.sample import SampleDataset
from swe_infer.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Task:
    """The prompt of an instance, and the reference patch if the dataset has one."""

    prompt: str
    gold: str | None


class PromptSource:
    """Prompts by instance id, without network access.

    Attributes:
        notes: why the prompts of a dataset are missing.
    """

    def __init__(self, runs: Iterable[LoadedRun]) -> None:
        self.notes: list[str] = []
        self._rows: list[tuple[Rows, dict[str, int]]] = []
        seen: list[dict[str, Any]] = []
        for run in runs:
            location = _location_of(run.nested_config.get("dataset"))
            if location is not None and location not in seen:
                seen.append(location)
                self._open(location)

    def __getitem__(self, instance_id: str) -> Task | None:
        """The task, or None if no available dataset has it."""
        for rows, indices in self._rows:
            index = indices.get(instance_id)
            if index is not None and rows.fault(index) is None:
                instance = rows[index]
                gold = instance.metadata.get("patch")
                return Task(instance.prompt.text, gold if isinstance(gold, str) else None)
        return None

    def _open(self, location: dict[str, Any]) -> None:
        try:
            rows = _open_recorded(location)
        except ConfigError as error:
            self.notes.append(f"No prompts: {error}")
            return
        self._rows.append((rows, {instance_id: index for index, instance_id in enumerate(rows.ids)}))


_OPENERS: Mapping[str, Callable[[dict[str, Any]], Rows]] = {
    "swe_infer.data.jsonl.JsonlDataset": lambda keys: JsonlDataset(**keys).open(),
    "swe_infer.data.disk.DiskDataset": lambda keys: DiskDataset(**keys).open(),
    "swe_infer.data.parquet.ParquetDataset": lambda keys: ParquetDataset(**keys).open(),
    "swe_infer.data.sample.SampleDataset": lambda keys: SampleDataset(**keys).open(),
    "swe_infer.data.hub.HubDataset": lambda keys: HubDataset(**keys).open(cached_only=True),
}
_LOCATION_KEYS = ("path", "name", "split", "subset", "revision", "text_column")


def _location_of(node: object) -> dict[str, Any] | None:
    """The keys of a ``dataset`` node that locate the dataset; None for a class that is not of this project.

    The node may come from a stranger, so no other key is used and no other class is imported.
    """
    if not isinstance(node, Mapping) or str(node.get("_target_")) not in _OPENERS:
        return None
    return {key: node[key] for key in ("_target_", *_LOCATION_KEYS) if node.get(key) is not None}


def _open_recorded(location: Mapping[str, Any]) -> Rows:
    """Opens the dataset of :func:`_location_of`; a dataset of the hub from its cache alone.

    Raises:
        DataError: the dataset is not available, or its keys are invalid.
    """
    keys = {key: value for key, value in location.items() if key != "_target_"}
    try:
        return _OPENERS[location["_target_"]](keys)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the recorded keys of {location['_target_']} are invalid: {error}") from error
