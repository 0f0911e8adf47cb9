"""The interface of the group ``selection``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from swe_infer.conf_files import node_of, options_of, unknown_option
from swe_infer.data.base import ISSUE_COLUMN, Rows
from swe_infer.errors import ConfigError, DataError
from swe_infer.run_directory.predictions import Candidate, Choice

log = logging.getLogger(__name__)

LoadFiles = Callable[[], Mapping[str, str]]
"""Returns the files of an instance: path to content. Raises SweInferError or OSError if they are not available."""


class SelectionRule(Protocol):
    """Selects one of the answers to an instance. Constructors are cheap."""

    @property
    def name(self) -> str:
        """The option of the group."""
        ...

    def choose(self, candidates: Sequence[Candidate], files: LoadFiles) -> Choice | None:
        """Selects a candidate; None: the instance is not submitted.

        Args:
            candidates: at least one, in order.
            files: of the instance, called only if the rule needs them.
        """
        ...


def rule_named(name: str) -> SelectionRule:
    """The rule of an option of the group, with its default options.

    Raises:
        ConfigError: there is no such option.
    """
    if name not in options_of("selection"):
        raise ConfigError(unknown_option("selection", name, options_of("selection")))
    return _built(node_of("selection", name))


def recorded_rule(config: Mapping[str, object]) -> SelectionRule | None:
    """The rule that the configuration of a run names; ``first`` if it names none. None for a class outside this
    package: the configuration may be untrusted, so nothing is imported for it."""
    recorded = config.get("selection")
    if recorded is None:
        return rule_named("first")
    target = recorded.get("_target_") if isinstance(recorded, Mapping) else None
    nodes = (node_of("selection", option) for option in options_of("selection"))
    return next((_built(node) for node in nodes if node["_target_"] == target), None)


def _built(node: Mapping[str, object]) -> SelectionRule:
    import importlib

    module, _, name = str(node["_target_"]).rpartition(".")
    options = {key: value for key, value in node.items() if key != "_target_"}
    rule: SelectionRule = getattr(importlib.import_module(module), name)(**options)
    return rule


class FilesOfRows:
    """The files of instances, by instance id.

    Args:
        open_rows: called once, when files are first needed.
    """

    def __init__(self, open_rows: Callable[[], Rows]) -> None:
        self._open_rows = open_rows
        self._rows: Rows | None = None
        self._indices: dict[str, int] = {}

    def __call__(self, instance_id: str) -> Mapping[str, str]:
        """
        Raises:
            SweInferError: they are not available.
        """
        rows, index = self._row(instance_id)
        return rows.inputs_of_check(index)[0]

    def issue(self, instance_id: str) -> str:
        """The issue of an instance; the row's own prompt if it has no column for the issue.

        Raises:
            SweInferError: it is not available.
        """
        rows, index = self._row(instance_id)
        issue = rows.row(index).get(ISSUE_COLUMN)
        return issue if isinstance(issue, str) and issue.strip() else rows[index].prompt.question

    def _row(self, instance_id: str) -> tuple[Rows, int]:
        if self._rows is None:
            self._rows = self._open_rows()
            self._indices = {name: index for index, name in enumerate(self._rows.ids)}
        if instance_id not in self._indices:
            raise DataError("the dataset does not have the instance")
        return self._rows, self._indices[instance_id]


class InstanceSelector:
    """Applies a rule to the instances of a run. It is a :class:`swe_infer.run_directory.predictions.Selector`.

    Args:
        files_of: returns the files of an instance, as :class:`FilesOfRows` does.
    """

    def __init__(self, rule: SelectionRule, files_of: Callable[[str], Mapping[str, str]]) -> None:
        self.name = rule.name
        self._rule = rule
        self._files_of = files_of

    def select(self, instance_id: str, candidates: Sequence[Candidate]) -> Choice | None:
        try:
            return self._choose(instance_id, candidates)
        except Exception:  # a fault in our code must not end the run
            log.exception("%s: no answer could be selected by %s; the first one is submitted", instance_id, self.name)
            return Choice(0, "internal error of the rule; the first answer")

    def _choose(self, instance_id: str, candidates: Sequence[Candidate]) -> Choice | None:
        return self._rule.choose(candidates, lambda: self._files_of(instance_id))
