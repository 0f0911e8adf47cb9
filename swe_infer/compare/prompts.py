"""The prompts behind a comparison, from the datasets that the runs name, where those are still at hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from swe_infer.compare.loading import LoadedRun
from swe_infer.data.base import Rows
from swe_infer.data.recorded import open_recorded, place_of
from swe_infer.errors import ConfigError

__all__ = ["PromptSource", "Task"]


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
            place = place_of(run.nested_config.get("dataset"))
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
            rows = open_recorded(place)
        except ConfigError as error:
            self.notes.append(f"No prompts: {error}")
            return
        self._rows.append((rows, {instance_id: index for index, instance_id in enumerate(rows.ids)}))
