"""Opens the dataset that a run's ``config.yaml`` names, long after the run: without Hydra, and without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from swe_infer.data.base import Rows
from swe_infer.data.disk import DiskDataset
from swe_infer.data.hub import HubDataset
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.parquet import ParquetDataset
from swe_infer.data.sample import SampleDataset
from swe_infer.errors import DataError

__all__ = ["open_recorded", "place_of"]

_OPENERS: Mapping[str, Callable[[dict[str, Any]], Rows]] = {
    "swe_infer.data.jsonl.JsonlDataset": lambda keys: JsonlDataset(**keys).open(),
    "swe_infer.data.disk.DiskDataset": lambda keys: DiskDataset(**keys).open(),
    "swe_infer.data.parquet.ParquetDataset": lambda keys: ParquetDataset(**keys).open(),
    "swe_infer.data.sample.SampleDataset": lambda keys: SampleDataset(**keys).open(),
    "swe_infer.data.hub.HubDataset": lambda keys: HubDataset(**keys).open(cached_only=True),
}
_PLACE_KEYS = ("path", "name", "split", "subset", "revision", "text_column")


def place_of(node: object) -> dict[str, Any] | None:
    """The part of a ``dataset`` node that says where it lies; None for a class that is not of this project.

    Nothing else in the node counts: the file may come from anywhere, and names no code that is run.
    """
    if not isinstance(node, Mapping) or node.get("_target_") not in _OPENERS:
        return None
    return {key: node[key] for key in ("_target_", *_PLACE_KEYS) if node.get(key) is not None}


def open_recorded(place: Mapping[str, Any]) -> Rows:
    """Open what :func:`place_of` returned; a dataset of the hub from its cache alone.

    Raises:
        DataError: it is no longer there, or its keys are of another version.
    """
    keys = {key: value for key, value in place.items() if key != "_target_"}
    try:
        return _OPENERS[place["_target_"]](keys)
    except TypeError as error:
        raise DataError(f"the recorded keys of {place['_target_']} do not fit: {error}") from error
