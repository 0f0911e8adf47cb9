"""``from=RUN_DIR`` and ``from=wandb:ENTITY/PROJECT/ID``: start from the configuration of a recorded run.

The recorded configuration becomes overrides: an option for each group, and the values that differ from the option's.
The user's own overrides follow, as if all of them had been typed. Classes come from the options of ``conf/`` and of
the user's own folder, never from the record; :mod:`swe_infer.cli.recorded_run` checks the values.

A group that the user chooses is not inherited, nor one whose option follows from that choice: another model may need
another provider. ``output_dir``, ``dry_run``, ``tracker.name`` and the names of a sweep are not inherited either.
``rules`` is not an option: the versions are those of this program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from swe_infer import config
from swe_infer.cli.choices import PLACES, place_choices
from swe_infer.cli.composer import Composed, Composer
from swe_infer.cli.recorded_run import Difference, RecordedRun
from swe_infer.conf_files import class_parameters, default_options, options_of
from swe_infer.errors import ConfigError
from swe_infer.text import clean, flatten, shown

_ROOT = ("shard", "budget", "locks", "objective")
"""Nodes and keys of the root that are inherited."""

_NOT_INHERITED = ("output_dir", "upload_interval_s", "dry_run", "from", "sweep", config.RULES)
_LABEL = "tracker.name"
_EXPERIMENT = "experiment"
_CHOOSERS = ("model", "dataset")
"""Groups whose options choose those of other groups."""
_MANY_CHANGES = 40


class RecordedStart:
    """A recorded run as the start of others.

    Raises:
        ConfigError: the recorded configuration does not compose.
    """

    def __init__(self, run: RecordedRun, composer: Composer) -> None:
        self._run, self._composer = run, composer
        self._options: dict[str, str] = {}
        self._choices: dict[str, list[str]] = {}
        self._errors: dict[str, ConfigError] = {}
        self._unknown: list[str] = [key for key in run.plain if key not in (*config.GROUPS, *_ROOT, *_NOT_INHERITED)]
        for group in config.GROUPS:
            self._choose_option(group)
        self._differences = self._all_differences()
        self._replaced_by: dict[tuple[str, ...], tuple[set[str], set[str]]] = {}
        if self._unknown:
            _print(run.source, f"ignored keys that this version does not have: {', '.join(sorted(self._unknown))}")

    def _choose_option(self, group: str) -> None:
        """Finds the option of a recorded group. A group without one is an error only if it is inherited."""
        if group not in self._run.plain:
            return  # of a version without this group
        node = self._run.plain[group]
        try:
            if not isinstance(node, Mapping):
                raise self._run.error(f"{group}={shown(node)}: must be a mapping with the keys of a {group}")
            option = self._nearest_option(group, node, group)
            self._choices[group] = [f"{group}={option}"]
            if option == "deployments":
                places = [name for name in PLACES if isinstance(node.get(name), Mapping)]
                nearest = {name: self._nearest_option(group, node[name], f"{group}.{name}") for name in places}
                self._choices[group] += place_choices(nearest)
            self._options[group] = option
        except ConfigError as error:
            self._choices.pop(group, None)
            self._errors[group] = error

    def _nearest_option(self, group: str, node: Mapping[str, Any], key: str) -> str:
        """The option with the recorded class whose values differ least from the recorded ones."""
        recorded, target = _items(node), node.get("_target_")
        nodes = dict(self._composer.option_nodes(group))
        options = [option for option, keys in nodes.items() if keys.get("_target_") == target]
        if not options:
            raise self._run.error(
                f"{key}._target_={shown(target)}: no option of the group {group} has this class; choose "
                f"{group}=OPTION, or name the folder of your own options with --config-dir"
            )
        return min(options, key=lambda option: len(_items(nodes[option]) ^ recorded))

    def _all_differences(self) -> dict[str, list[Difference]]:
        """The recorded values, by group, that differ from those of the recorded options."""
        choices = [choice for group_choices in self._choices.values() for choice in group_choices]
        try:
            base = config.resolved(self._composer.compose(choices).cfg)
        except OmegaConfBaseException as error:
            raise self._run.error(f"cannot be composed: {' '.join(str(error).split())}") from None
        found: dict[str, list[Difference]] = {}
        for key in (*self._options, *_ROOT):
            if key not in self._run.plain:
                continue
            try:
                found[key] = list(self._node_differences(base.get(key), self._run.plain[key], key))
            except ConfigError as error:
                self._errors[key] = error
        return found

    def _node_differences(self, base: Any, recorded: Any, key: str) -> Iterator[Difference]:
        """The differences within a node that configures a class, or a single one."""
        if not isinstance(recorded, Mapping) or not isinstance(base, Mapping) or "_target_" not in base:
            yield from _value_differences(base, recorded, Difference(key, recorded))
            return
        if recorded.get("_target_") != base["_target_"]:
            raise self._run.error(f"{key}._target_={shown(recorded.get('_target_'))}: is not the class of the option")
        parameters = class_parameters(base["_target_"])
        for name, value in recorded.items():
            path = f"{key}.{name}"
            if name == "_target_" or path == _LABEL:
                continue
            if isinstance(base.get(name), Mapping) and "_target_" in base[name]:
                yield from self._node_differences(base[name], value, path)
            elif name in base or name in parameters:
                difference = Difference(path, value, parameters.get(name))
                yield from _value_differences(base.get(name), value, difference)
            elif value is not None:
                self._unknown.append(path)

    def overrides(self, choices: Sequence[str], given: Iterable[str]) -> list[str]:
        """The recorded configuration as overrides, without what the user's overrides replace.

        Args:
            choices: the user's overrides of one run that choose options; others are ignored.
            given: the keys of the user's other overrides.

        Raises:
            ConfigError: a value of the recorded configuration cannot be used.
            HydraException: the choices do not compose.
        """
        picks = tuple(choice for choice in choices if _is_choice(choice))
        if picks not in self._replaced_by:
            self._replaced_by[picks] = self._replaced(picks)
        replaced, keys = self._replaced_by[picks]
        inherited = [group for group in config.GROUPS if group in self._run.plain and group not in replaced]
        for group in (*inherited, *_ROOT):
            if group in self._errors:
                raise self._errors[group]
        keys = keys | set(given)
        return [
            *(choice for group in inherited for choice in self._choices.get(group, ())),
            *(
                self._run.override(difference)
                for group in (*inherited, *_ROOT)
                for difference in self._differences.get(group, ())
                if not _is_within(difference.key, keys)
            ),
        ]

    def refused(self) -> list[Difference]:
        """The recorded values that ``from`` does not use, which the command line must give again.

        Raises:
            ConfigError: a group cannot be inherited at all.
        """
        if self._errors:
            raise next(iter(self._errors.values()))
        return [one for group in self._differences.values() for one in group if not self._run.accepts(one)]

    def _replaced(self, choices: tuple[str, ...]) -> tuple[set[str], set[str]]:
        """The groups and the keys that the user's choices of options replace.

        A choice replaces its own group, and those whose option it changes. A nested option replaces its keys, an
        experiment those that it sets.
        """
        chosen = {_package(choice): choice for choice in choices}
        groups, keys = set(chosen) & set(config.GROUPS), set(chosen) - set(config.GROUPS) - {_EXPERIMENT}
        if not groups and _EXPERIMENT not in chosen:
            return groups, keys
        after = self._composer.compose([choice for key, choice in chosen.items() if key not in keys])
        if _EXPERIMENT in chosen:
            groups |= {group for group in _CHOOSERS if after.choices.get(group) != default_options().get(group)}
            keys |= self._composer.keys_set_by(_EXPERIMENT, after.choices[_EXPERIMENT])
        before = self._composer.compose([choice for group in groups for choice in self._choices.get(group, ())])
        changed = {group for group in config.GROUPS if before.choices.get(group) != after.choices.get(group)}
        return groups | changed, keys

    def print_changes(self, runs: Sequence[tuple[Composed, Mapping[str, Any]]]) -> None:
        """Prints how the configurations of the started runs differ from the recorded one.

        Args:
            runs: of each run, the composed configuration, and values by key that replace its own.
        """
        lines = list(self._changes(runs)) or ["nothing is changed"]
        for line in lines[:_MANY_CHANGES]:
            _print(self._run.source, line)
        if len(lines) > _MANY_CHANGES:
            _print(self._run.source, f"… and {len(lines) - _MANY_CHANGES} more changes")

    def _changes(self, runs: Sequence[tuple[Composed, Mapping[str, Any]]]) -> Iterator[str]:
        recorded = {**self._options, **dict(flatten(self._run.plain))}
        plains = [config.resolved(composed.cfg) for composed, _ in runs]
        replaced = {group for group in config.GROUPS if any(self._is_replaced(group, plain) for plain in plains)}
        values: dict[str, list[str]] = {}
        for plain, (composed, own) in zip(plains, runs, strict=True):
            flat = {**dict(flatten(plain)), **{group: composed.choices.get(group) for group in replaced}, **own}
            for key in flat.keys() | (recorded.keys() - self._options.keys()):
                _add(values, key, _text(key, flat.get(key)))
        for key, texts in sorted(values.items()):
            group, is_inner, _ = key.partition(".")
            is_of_other_class = bool(is_inner) and group in replaced
            is_ignored = group in _NOT_INHERITED or key == _LABEL or _is_within(key, {*self._unknown})
            is_hidden = is_ignored or key.endswith("_target_") or is_of_other_class
            before = _text(key, recorded.get(key))
            if not is_hidden and texts != [before]:
                yield f"{key}: {before} → {', '.join(texts)}"

    def _is_replaced(self, group: str, plain: Mapping[str, Any]) -> bool:
        """Whether a group has another class than the recorded one."""
        return bool(_target(plain.get(group)) != _target(self._run.plain.get(group)))


def expand_from(run: RecordedRun, overrides: Sequence[str], composer: Composer) -> list[str]:
    """The overrides of a single run that starts from a recorded one. Prints what they change.

    Args:
        overrides: the user's, quoted for Hydra.

    Raises:
        ConfigError: the recorded configuration, or a value of it, cannot be used.
        HydraException: the user's overrides do not compose.
    """
    own = [override for override in overrides if not override.lstrip("+~").startswith("hydra")]
    start = RecordedStart(run, composer)
    recorded = start.overrides(own, {_key(override) for override in own})
    start.print_changes([(composer.compose([*recorded, *own]), {})])
    return [*recorded, *overrides]


def _print(source: str, line: str) -> None:
    print(f"from {source}: {clean(line)}", file=sys.stderr)


def _text(key: str, value: Any) -> str:
    """A value for display: the name of an option, or the value of a key."""
    return str(value) if key in config.GROUPS else repr(value)


def _add(lists: dict[str, list[str]], key: str, text: str) -> None:
    """Adds ``text`` to the list of ``key``, once."""
    texts = lists.setdefault(key, [])
    if text not in texts:
        texts.append(text)


def _value_differences(base: Any, recorded: Any, difference: Difference) -> Iterator[Difference]:
    """A value that differs; Hydra merges mappings, so keys that the recorded one lacks are deleted first."""
    if base == recorded:
        return
    if isinstance(base, Mapping) and isinstance(recorded, Mapping):
        for name in base.keys() - recorded.keys():
            yield Difference(f"{difference.key}.{name}", None, is_absent=True)
    yield difference


def _items(node: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(key, repr(value)) for key, value in flatten(node)}


def _target(node: Any) -> Any:
    return node.get("_target_") if isinstance(node, Mapping) else None


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _is_choice(override: str) -> bool:
    """Whether an override chooses an option of a group."""
    return bool(options_of(_key(override).partition("@")[0]))


def _package(choice: str) -> str:
    """The key at which a chosen option is placed: ``provider.first`` for ``provider@provider.first=openai``."""
    group, _, package = _key(choice).partition("@")
    return package or group.replace("/", ".")


def _is_within(key: str, keys: set[str]) -> bool:
    """Whether ``key`` or a mapping with it is one of ``keys``."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in keys for length in range(1, len(parts) + 1))
