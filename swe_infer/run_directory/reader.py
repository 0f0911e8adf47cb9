"""Reads run directories, which may be damaged, unfinished, or untrusted.

Links and special files are not read, and memory use is bounded. ``config.yaml`` may not contain YAML aliases or tags.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast

from swe_infer.errors import ConfigError
from swe_infer.files import open_regular
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage, read_coverage
from swe_infer.run_directory.figures import Summary, plausible
from swe_infer.run_directory.predictions import Candidate, Selected, read_selected
from swe_infer.run_directory.records import (
    LONGEST_LINE,
    Damage,
    Key,
    Record,
    key_of,
    purpose_of,
    read_records,
    supersedes,
    turn_of,
)  # fmt: skip
from swe_infer.run_directory.totals import Totals
from swe_infer.run_directory.verdicts import read_verdicts
from swe_infer.text import bounded_json, first_line

_Part = TypeVar("_Part")

_MAX_BYTES = 1 << 26
"""Maximum bytes of a summary or a configuration, enough for 500,000 instance ids."""
_WRITTEN_AGAIN = "the command of this run writes it again, and pays for no answer twice"
_TIMES = frozenset({"wall_s", "output_tokens_per_s", "stats", "stopped_by"})
"""What a summary has beside the counts of the records."""
_MAX_DEPTH = 100
_MAX_EVENTS = 1_000_000
"""Maximum YAML parser events: one for each value, two for each list and mapping."""
_MAX_INTEGER = 1 << 128
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_SURROGATE_BYTES = 1 << 22
"""Maximum bytes of a configuration with such an escape, which a slow parser reads."""
_MAX_CACHED = 200
"""Characters of a scalar whose value is cached."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Lazy, read-only access to a run directory."""

    path: Path

    def records(
        self, damage: Damage | None = None, *, auxiliary: bool = False, containing: bytes = b""
    ) -> Iterator[Record]:
        """The records in write order, see :func:`.records.read_records`.

        Args:
            auxiliary: include the records of auxiliary requests, which are not samples.
            containing: only parse the lines that contain these bytes.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            for record in read_records(self.path / layout.RECORDS, damage, containing=containing):
                if auxiliary or purpose_of(record) is None:
                    yield record
        except OSError as error:
            raise ConfigError(layout.unreadable(self.path, error)) from None

    def config(self) -> dict[str, Any]:
        """``config.yaml``; empty if it does not exist.

        Raises:
            ConfigError: it cannot be read, or is invalid.
        """
        content = layout.content(self.path, layout.CONFIG, _MAX_BYTES)
        try:
            return {} if content is None else read_yaml(content, self.path / layout.CONFIG)
        except ConfigError as error:
            # Without run_id, the command would refuse the directory.
            remedy = f"; {_WRITTEN_AGAIN}" if (self.path / "run_id").is_file() else ""
            raise ConfigError(f"{error}{remedy}") from None

    def identity_line(self) -> str:
        """The first line of ``config.yaml``, which contains the digest of the run's identity; may be empty.

        Raises:
            ConfigError: the file cannot be read.
        """
        content = layout.content(self.path, layout.CONFIG, _MAX_BYTES) or b""
        return content.partition(b"\n")[0].decode("utf-8", "replace").strip()

    def summary(self) -> Summary:
        """``summary.json``, with fractions as Decimal; empty if it does not exist. Invalid figures are dropped.

        Raises:
            ConfigError: it cannot be read, or is not a JSON object.
        """
        content = layout.content(self.path, layout.SUMMARY, _MAX_BYTES)
        if content is None:
            return {}
        try:
            summary = bounded_json(content, parse_float=_fraction, parse_constant=_fraction)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise ConfigError(
                f"{self.path / layout.SUMMARY}: not JSON ({first_line(error)}); {_WRITTEN_AGAIN}"
            ) from None
        if not isinstance(summary, dict):
            raise ConfigError(f"{self.path / layout.SUMMARY}: not a JSON object; {_WRITTEN_AGAIN}")
        return plausible(summary)

    def latest_summary(self) -> Summary:
        """The summary, with counts from the records if it has none, or is older than they are: a killed run wrote its
        last records after it.

        Raises:
            ConfigError: a file cannot be read.
        """
        summary = self.summary()
        if summary.get("remaining") == 0 or (summary and not self._is_outdated()):
            return summary
        coverage = self.coverage()
        totals = Totals() if coverage is None else Totals(coverage.ids, coverage.turns)
        damage = Damage()
        for record in self.records(damage, auxiliary=True):
            totals.add_record(record)
        damage.reconcile_cost(totals.cost_usd, summary)
        totals.add_damage(damage)
        asked = None if coverage is None or coverage.instance_ids is None else len(coverage.instance_ids)
        counted = totals.summary(
            instances=asked, samples=summary.get("samples"), unrecorded_usd=totals.unrecorded_usd(summary)
        )
        return cast(Summary, {**counted, **{key: value for key, value in summary.items() if key in _TIMES}})

    def _is_outdated(self) -> bool:
        try:
            written, recorded = ((self.path / name).lstat().st_mtime_ns for name in (layout.SUMMARY, layout.RECORDS))
        except OSError:
            return False
        return recorded > written

    def coverage(self) -> Coverage | None:
        """The coverage of the last command; None if no file states it.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            return read_coverage(self.path)
        except OSError as error:
            raise ConfigError(layout.unreadable(self.path, error)) from None

    def covered_ids(self) -> frozenset[str] | None:
        """The instances that the figures cover; None: all with a record.

        Raises:
            ConfigError: the file cannot be read.
        """
        coverage = self.coverage()
        return None if coverage is None else coverage.ids

    def resolved(self) -> dict[tuple[Key, int], bool]:
        """Whether each evaluated answer is resolved, by (instance, sample) and turn.

        Raises:
            ConfigError: the verdicts cannot be read.
        """
        return {(verdict.key, verdict.turn): verdict.resolved for verdict in read_verdicts(self.path)}

    def selected(self) -> dict[str, Selected]:
        """The selected answer of each instance, see :func:`.predictions.read_selected`.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            return read_selected(self.path)
        except OSError as error:
            raise ConfigError(layout.unreadable(self.path, error)) from None

    def patches(self) -> dict[Key, tuple[int, str]]:
        """The turn and the patch of the answer that counts of every covered, completed (instance, sample). The patch
        is an empty string if the answer contains none.

        Raises:
            ConfigError: a file cannot be read.
        """
        return {key: (turn, answer.patch) for key, (turn, answer) in self.candidates().items()}

    def candidates(self) -> dict[Key, tuple[int, Candidate]]:
        """The turn and the answer that counts of every covered, completed (instance, sample).

        Raises:
            ConfigError: a file cannot be read.
        """
        answers = self.answers(
            lambda record: Candidate(
                record["sample"], str(record.get("model_patch") or ""), record.get("patch_status")
            )
        )
        return {key: max(turns.items(), key=lambda item: item[0]) for key, turns in answers.items()}

    def answers(self, part: Callable[[Record], _Part], damage: Damage | None = None) -> dict[Key, dict[int, _Part]]:
        """A part of the record of each turn of every covered, completed (instance, sample). The last turn counts.

        Raises:
            ConfigError: a file cannot be read.
        """
        coverage = self.coverage() or Coverage(None, turns=None)
        covered = coverage.ids
        found: dict[Key, dict[int, _Part]] = {}
        for record in self.records(damage):
            key, turn = key_of(record), turn_of(record)
            if not coverage.has_turn(turn) or (covered is not None and key[0] not in covered):
                continue
            before = found.get(key)
            if before is not None and not supersedes(record["status"], "completed", turn, max(before)):
                continue
            if record["status"] == "completed":
                found.setdefault(key, {})[turn] = part(record)
            else:
                found.pop(key, None)  # skipped by a later command
        return found

    def label(self) -> str | None:
        """``model_name_or_path`` of the predictions; None if there are none.

        Raises:
            ConfigError: a predictions file cannot be read.
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
    """Parses a number.

    Raises:
        ValueError, ArithmeticError: it is not finite, or exceeds the range of a float.
    """
    number = Decimal(text)
    if not math.isfinite(float(number)):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def read_yaml(content: bytes, path: Path) -> dict[str, Any]:
    """Parses untrusted YAML to plain values, in one pass and in memory proportional to the text.

    Raises:
        ConfigError: it is not YAML, not a mapping, or contains aliases, tags or deep nesting. Names ``path``.
    """
    import yaml

    root: list[Any] = []
    open_nodes: list[tuple[Any, list[Any]]] = []  # each with the key that its next value belongs to
    try:
        for number, event in enumerate(yaml.parse(content, _loader(content))):
            if number > _MAX_EVENTS:
                raise ConfigError(f"{path}: contains more than {_MAX_EVENTS:,} values")
            if isinstance(event, yaml.CollectionEndEvent):
                open_nodes.pop()
                continue
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ConfigError(f"{path}: contains YAML aliases, which no run writes")
            if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
                continue
            if event.tag not in (None, "!"):
                raise ConfigError(f"{path}: contains YAML tags, which no run writes")
            if isinstance(event, yaml.ScalarEvent):
                value: Any = _plain_scalar(event.value) if event.implicit[0] else event.value
            else:
                value = {} if isinstance(event, yaml.MappingStartEvent) else []
            _add(open_nodes[-1] if open_nodes else (root, []), value)
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((value, []))
                if len(open_nodes) > _MAX_DEPTH:
                    raise ConfigError(f"{path}: is nested more than {_MAX_DEPTH} levels deep")
    except _NotWritten as error:
        raise ConfigError(f"{path}: contains {error}, which no run writes") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML ({first_line(error)})") from None
    if len(root) != 1 or not isinstance(root[0], dict):
        raise ConfigError(f"{path}: not a mapping of keys to values")
    return {str(key): value for key, value in root[0].items()}


def _loader(content: bytes) -> Any:
    """libyaml's loader if there is one. It refuses the escapes of lone surrogates, as in a path that is not UTF-8."""
    import yaml

    has_surrogate = len(content) <= _MAX_SURROGATE_BYTES and _SURROGATE.search(content)
    return yaml.SafeLoader if has_surrogate else getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _NotWritten(Exception):
    """A value that the configuration of a run never contains."""


def _add(node: tuple[Any, list[Any]], value: Any) -> None:
    """Adds a value to an open list; to an open mapping, a key or the value of the last key."""
    container, keys = node
    if isinstance(container, list):
        container.append(value)
    elif keys:
        container[keys.pop()] = value
    elif isinstance(value, dict | list):
        raise _NotWritten("a mapping or list as a key")
    else:
        keys.append(value)


def _plain_scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar."""
    return _cached_scalar(text) if len(text) <= _MAX_CACHED else _resolved_scalar(text)


def _resolved_scalar(text: str) -> str | int | float | bool | None:
    import yaml

    loader = yaml.SafeLoader("")
    tag: str = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag.endswith(":merge"):
        raise _NotWritten("a YAML merge key")
    value: object = loader.construct_object(yaml.ScalarNode(tag, text))
    if not isinstance(value, str | int | float | None):
        raise _NotWritten(f"a value of the type {type(value).__name__}")
    if isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise _NotWritten("an integer of more than 128 bits")
    return value


_cached_scalar = functools.lru_cache(maxsize=4096)(_resolved_scalar)
"""The scalars of many configurations are the same."""
