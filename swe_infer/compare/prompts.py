"""The prompts behind a comparison, from the datasets that the runs name, where those can still be opened.

A dataset is opened from what the run's configuration says of it, without Hydra and without a network.
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
    """An instance as the dataset has it; ``gold`` is the patch that solved it, where the dataset tells."""

    prompt: str
    gold: str | None


class PromptSource:
    """Prompts by instance. Nothing is fetched from a network.

    Args:
        notes: why the prompts of a dataset are not there.
    """

    def __init__(self, runs: Iterable[LoadedRun]) -> None:
        self.notes: list[str] = []
        self._rows: list[tuple[Rows, dict[str, int]]] = []
        seen: list[dict[str, Any]] = []
        for run in runs:
            place = _place_of(run.nested_config.get("dataset"))
            if place is not None and place not in seen:
                seen.append(place)
                self._open(place)

    def __getitem__(self, instance_id: str) -> Task | None:
        """The task, or None where no dataset at hand has it."""
        for rows, indices in self._rows:
            index = indices.get(instance_id)
            if index is not None and rows.fault(index) is None:
                instance = rows[index]
                gold = instance.metadata.get("patch")
                return Task(instance.prompt.text, gold if isinstance(gold, str) else None)
        return None

    def _open(self, place: dict[str, Any]) -> None:
        try:
            rows = _open_recorded(place)
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
_PLACE_KEYS = ("path", "name", "split", "subset", "revision", "text_column")


def _place_of(node: object) -> dict[str, Any] | None:
    """The part of a ``dataset`` node that says where it lies; None for a class that is not of this project.

    Nothing else in the node counts: the file may come from anywhere, and names no code that is run.
    """
    if not isinstance(node, Mapping) or str(node.get("_target_")) not in _OPENERS:
        return None
    return {key: node[key] for key in ("_target_", *_PLACE_KEYS) if node.get(key) is not None}


def _open_recorded(place: Mapping[str, Any]) -> Rows:
    """Open what :func:`_place_of` returned; a dataset of the hub from its cache alone.

    Raises:
        DataError: it is no longer there, or its keys are of another version.
    """
    keys = {key: value for key, value in place.items() if key != "_target_"}
    try:
        return _OPENERS[place["_target_"]](keys)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the recorded keys of {place['_target_']} do not fit: {error}") from error
