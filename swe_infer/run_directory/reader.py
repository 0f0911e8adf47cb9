"""The one reader of a run directory, which may be damaged, unfinished, or a stranger's.

Links and special files are not read. What is read into memory is bounded. ``config.yaml`` may hold no YAML aliases
and no tags, which no run writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.files import open_regular
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage, read_coverage
from swe_infer.run_directory.figures import Summary, plausible
from swe_infer.run_directory.records import LONGEST_LINE, Damage, Key, Record, key_of, read_records
from swe_infer.run_directory.verdicts import read_verdicts
from swe_infer.text import bounded_json, first_line

_MOST_BYTES = 1 << 26
"""Of a summary or a configuration. A list of 500,000 instance ids fits."""
_MOST_NESTED = 100
_MOST_EVENTS = 1_000_000
"""Of the YAML parser: one for each value, two for each list and mapping. A node takes some hundred bytes."""
_MOST_NUMBER = 1 << 128


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run directory; nothing of it is read before it is asked for, and nothing is written."""

    path: Path

    def records(self, damage: Damage | None = None) -> Iterator[Record]:
        """The records in the order in which they were written, see :func:`.records.read_records`.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            yield from read_records(self.path / layout.RECORDS, damage)
        except OSError as error:
            raise ConfigError(layout.unreadable(self.path, error)) from None

    def config(self) -> dict[str, Any]:
        """``config.yaml``; empty where there is none.

        Raises:
            ConfigError: it cannot be read, or is not what a run writes.
        """
        content = layout.content(self.path, layout.CONFIG, _MOST_BYTES)
        return {} if content is None else read_yaml(content, self.path / layout.CONFIG)

    def identity_line(self) -> str:
        """The first line of ``config.yaml``, which names the digest of the run's identity; empty where there is none.

        Raises:
            ConfigError: the file cannot be read.
        """
        content = layout.content(self.path, layout.CONFIG, _MOST_BYTES) or b""
        return content.partition(b"\n")[0].decode("utf-8", "replace").strip()

    def summary(self) -> Summary:
        """``summary.json``, fractions as Decimal; empty where there is none. Figures of another type or without
        end are left out.

        Raises:
            ConfigError: it cannot be read, or is no JSON object.
        """
        content = layout.content(self.path, layout.SUMMARY, _MOST_BYTES)
        if content is None:
            return {}
        try:
            summary = bounded_json(content, parse_float=_fraction, parse_constant=_fraction)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise ConfigError(f"{self.path / layout.SUMMARY}: not JSON ({first_line(error)})") from None
        if not isinstance(summary, dict):
            raise ConfigError(f"{self.path / layout.SUMMARY}: not a JSON object")
        return plausible(summary)

    def coverage(self) -> Coverage | None:
        """What the last command asked; None where no file says it.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            return read_coverage(self.path)
        except OSError as error:
            raise ConfigError(layout.unreadable(self.path, error)) from None

    def covered_ids(self) -> frozenset[str] | None:
        """The instances that the figures cover; None: all that have a record.

        Raises:
            ConfigError: the file cannot be read.
        """
        asked = self.coverage()
        return None if asked is None else asked.ids

    def resolved(self) -> dict[Key, bool]:
        """Whether each evaluated (instance, sample) is resolved; empty where the run was not evaluated.

        Raises:
            ConfigError: the verdicts cannot be read.
        """
        return {verdict.key: verdict.resolved for verdict in read_verdicts(self.path)}

    def patches(self) -> dict[Key, str]:
        """The patch of every completed (instance, sample) that the last command asked for; empty where the answer
        held none.

        Raises:
            ConfigError: a file cannot be read.
        """
        asked = self.covered_ids()
        patches: dict[Key, str] = {}
        for record in self.records():
            key = key_of(record)
            if record["status"] == "skipped":
                patches.pop(key, None)  # a later command left it out
            elif record["status"] == "completed" and (asked is None or key[0] in asked):
                patches[key] = str(record.get("model_patch") or "")
        return patches

    def label(self) -> str | None:
        """``model_name_or_path`` of the predictions; None where there is no prediction.

        Raises:
            ConfigError: a file of predictions cannot be read.
        """
        for path in layout.predictions(self.path):
            try:
                with open(open_regular(path), "rb") as file:
                    return str(bounded_json(file.readline(LONGEST_LINE))["model_name_or_path"])
            except OSError as error:
                raise ConfigError(layout.unreadable(self.path, error)) from None
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return None


def _fraction(text: str) -> Decimal:
    """
    Raises:
        ValueError, ArithmeticError: not a finite number that a float can hold.
    """
    number = Decimal(text)
    if not math.isfinite(float(number)):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def read_yaml(content: bytes, path: Path) -> dict[str, Any]:
    """What a YAML file of a stranger holds: plain values, whose size is that of the text.

    Raises:
        ConfigError: names ``path``: it is not YAML, no mapping, or holds aliases, tags or deep nesting.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for number, event in enumerate(yaml.parse(content, loader)):
            if number > _MOST_EVENTS:
                raise ConfigError(f"{path}: holds more than {_MOST_EVENTS:,} values")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ConfigError(f"{path}: holds YAML aliases, which no run writes")
            if getattr(event, "tag", None) not in (None, "!"):
                raise ConfigError(f"{path}: holds YAML tags, which no run writes")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_NESTED:
                raise ConfigError(f"{path}: is nested more than {_MOST_NESTED} levels deep")
        loaded = yaml.load(content, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({first_line(error)})") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: not a mapping of keys to values")
    for value in _inner(loaded):
        if not isinstance(value, str | int | float | None):
            raise ConfigError(f"{path}: holds a value of the type {type(value).__name__}, which no run writes")
        if isinstance(value, int) and abs(value) >= _MOST_NUMBER:
            raise ConfigError(f"{path}: holds a whole number of more than 128 bits, which no run writes")
    return {str(key): value for key, value in loaded.items()}


def _inner(node: object) -> Iterator[object]:
    """The keys and plain values in lists and mappings, whose nesting is bounded."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from _inner(value)
    elif isinstance(node, list):
        for value in node:
            yield from _inner(value)
    else:
        yield node
