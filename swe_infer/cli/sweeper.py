"""The jobs of a sweep: every combination of the swept values and of the points of ``sweep.points``.

A key that only some options of a swept group have applies to the jobs with those options: in a sweep over
``model=tiny,gpt-4o``, ``provider.max_concurrency=8`` applies to ``gpt-4o``. A key that no job has is an error.

Composing a configuration takes 0.1 s or more. To check the jobs, only the combinations of options are composed.
The keys of the other overrides are looked up in the result.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from swe_infer.cli.choices import raw_overrides
from swe_infer.cli.composer import Composed, Composer, JobComposer
from swe_infer.cli.from_run import RecordedStart
from swe_infer.cli.hydra_errors import one_line
from swe_infer.cli.points import POINT, Point, read_points
from swe_infer.cli.quoting import text_value
from swe_infer.cli.recorded_run import read_recorded
from swe_infer.conf_files import ROOT_KEYS, class_parameters, key_named, options_of, suggestion
from swe_infer.errors import ConfigError

OWN_SWEEPER = "hydra_plugins.swe_infer_sweeper.PointSweeper"
"""The sweeper that runs the jobs of :func:`sweep_jobs`."""


def sweep_jobs(overrides: Sequence[Override], points_file: str | None, composer: Composer) -> list[list[str]]:
    """The overrides of each job, in the order of the points, then of the swept values.

    Prints which keys apply to some jobs only, and how the jobs differ from the run that ``from`` names.

    Args:
        overrides: of the command line; the last one of a key counts.
        points_file: the value of ``sweep.points``.

    Raises:
        ConfigError: a key exists in no job, or a point or the run of ``from`` is invalid.
        HydraException: an option does not exist, or a kind of sweep needs another sweeper.
    """
    jobs = _Jobs(overrides, composer)
    if points_file is None:
        jobs.add(())
    else:
        for point in read_points(points_file):
            with _naming(points_file, point):
                jobs.add([*point.overrides, f"{POINT}={point.name}"])
    return jobs.checked()


def expand_for_search(config: DictConfig, loader: ConfigLoader) -> None:
    """Adds the configuration of the run that ``from`` names to the overrides of a sweep with another sweeper.

    Raises:
        ConfigError: the sweeper cannot run the points of a file, or the run cannot be started from.
    """
    target = str(config.hydra.sweeper.get("_target_"))
    if target == OWN_SWEEPER:
        return
    if config.sweep.points:
        raise ConfigError(f"sweep.points={config.sweep.points}: the sweeper {target} chooses its own points")
    if config["from"]:
        own = raw_overrides(config.hydra.overrides.task)
        params: Any = config.hydra.sweeper.get("params") or {}
        given = OverridesParser.create().parse_overrides([*(f"{key}={params[key]}" for key in params), *own])
        try:
            recorded, started = _shared_start(config["from"], given, JobComposer(loader, config))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(one_line(error)) from None
        with flag_override(config, ["readonly", "struct"], False), flag_override(config.hydra, ["readonly"], False):
            config.hydra.overrides.task = [*recorded, *own]
            for key in started:  # the sweeper reads the objective, for instance
                config[key] = started[key]


def _shared_start(
    source: str, overrides: Sequence[Override], composer: Composer
) -> tuple[Sequence[str], Mapping[str, Any]]:
    """The recorded overrides for every combination of the options that a search varies, and what they compose.

    Raises:
        ConfigError: they differ: the sweeper has one list of overrides for all of its jobs.
    """
    start = RecordedStart(read_recorded(source), composer)
    options = [_single_overrides(override) for override in overrides if options_of(override.key_or_group)]
    keys = {override.key_or_group for override in overrides}
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for choices in itertools.product(*options):
        found.setdefault(tuple(start.overrides(choices, keys)), choices)
    if len(found) > 1:
        first, second = (set(choices) for choices in list(found.values())[:2])
        different = f"{' '.join(sorted(first - second))} and {' '.join(sorted(second - first))}"
        raise ConfigError(f"from={source}: {different} need different parts of that run; search over one of them")
    ((recorded, choices),) = found.items()
    single = [one.input_line or "" for one in overrides if not one.is_sweep_override()]
    composed = composer.compose([*recorded, *choices, *single])
    swept = [one for one in overrides if one.is_sweep_override()]
    start.print_changes([(composed, {one.key_or_group: (one.input_line or "").partition("=")[2] for one in swept})])
    return recorded, composed.cfg


@contextmanager
def _naming(points_file: str, point: Point) -> Iterator[None]:
    """Names the point in the message of an error."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"sweep.points={points_file}: point {point.name}: {one_line(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"sweep.points={points_file}: point {point.name}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Combination:
    """Chosen options, composed.

    Args:
        recorded: the overrides from the run that ``from`` names.
        plain: the composed configuration as plain values.
    """

    recorded: tuple[str, ...]
    composed: Composed
    plain: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Job:
    """A job of the sweep.

    Args:
        overrides: the overrides that apply to it.
        missing: the keys of the overrides that do not, because its options lack them.
        source: the run that ``from`` names.
    """

    overrides: tuple[str, ...]
    missing: frozenset[str]
    source: str | None
    combination: _Combination

    def values(self) -> dict[str, Any]:
        """The values of its keys, for display."""
        parser = OverridesParser.create()
        parsed = [parser.parse_override(override) for override in self.overrides if is_assignment(override)]
        values: dict[str, Any] = {one.key_or_group: one.value() for one in parsed}
        return {key: value.text if isinstance(value, QuotedString) else value for key, value in values.items()}


class _Jobs:
    """The jobs of a sweep, without duplicates."""

    def __init__(self, overrides: Sequence[Override], composer: Composer) -> None:
        self._composer = composer
        self._choices = {_unforced(one.get_key_element()): _single_overrides(one) for one in overrides}
        self._combinations: dict[tuple[Any, ...], _Combination] = {}
        self._starts: dict[str, RecordedStart] = {}
        self._jobs: dict[tuple[str, ...], _Job] = {}

    def add(self, own: Sequence[str]) -> None:
        """Adds the jobs of a point.

        Args:
            own: the point's overrides, which replace those of the command line.

        Raises:
            ConfigError: one of ``own`` has a key that none of these jobs has.
        """
        choices = {**self._choices, **{_unforced(one).partition("=")[0]: [one] for one in own}}
        jobs = [self._job(combination) for combination in itertools.product(*choices.values())]
        self._check_keys(own, jobs)
        for job in jobs:
            self._jobs.setdefault(job.overrides, job)

    def checked(self) -> list[list[str]]:
        """The overrides of the jobs, once each key of the command line applies to at least one."""
        jobs = list(self._jobs.values())
        given = list(itertools.chain.from_iterable(self._choices.values()))
        self._check_keys(given, jobs)
        for key in dict.fromkeys(map(_key, given)):
            having = sum(key not in job.missing for job in jobs)
            if having < len(jobs):
                print(f"{key}: applies to the {having} of {len(jobs)} runs that have it", file=sys.stderr)
        for source, start in self._starts.items():
            start.print_changes([(job.combination.composed, job.values()) for job in jobs if job.source == source])
        return [list(job.overrides) for job in jobs]

    def _job(self, overrides: Sequence[str]) -> _Job:
        sources = [text_value(override) for override in overrides if override.startswith("from=")]
        source = sources[-1] if sources and sources[-1] else None
        options = [override for override in overrides if not is_assignment(override)]
        combination = self._combination(options, source, {_key(override) for override in overrides})
        applicable = [_applicable(override, combination.plain) for override in overrides]
        kept = [override for override in applicable if override is not None]
        missing = {_key(given) for given, override in zip(overrides, applicable, strict=True) if override is None}
        job = _Job((*combination.recorded, *kept), frozenset(missing), source, combination)
        if any(_is_mapping(override) or _adds(override) for override in kept):  # which Hydra may refuse
            self._composer.compose(job.overrides)
        return job

    def _combination(self, options: Sequence[str], source: str | None, keys: set[str]) -> _Combination:
        """Composes ``options``, once."""
        identity = (*options, source, *sorted(keys)) if source else tuple(options)
        if identity not in self._combinations:
            recorded = [] if source is None else self._start(source).overrides(options, keys)
            composed = self._composer.compose([*recorded, *options])
            self._combinations[identity] = _Combination(tuple(recorded), composed, composed.unresolved())
        return self._combinations[identity]

    def _start(self, source: str) -> RecordedStart:
        if source not in self._starts:
            self._starts[source] = RecordedStart(read_recorded(source), self._composer)
        return self._starts[source]

    def _check_keys(self, overrides: Iterable[str], jobs: Sequence[_Job]) -> None:
        """Raises ConfigError if no job has the key of an override."""
        for key in map(_key, overrides):
            if all(key in job.missing for job in jobs):
                raise ConfigError(self._unknown_key(key, jobs))

    def _unknown_key(self, key: str, jobs: Sequence[_Job]) -> str:
        parent, _, name = key.rpartition(".")
        siblings = set[str]().union(*(_names(_node_at(job.combination.plain, parent)) for job in jobs))
        if not siblings:
            return f"{key}: unknown key; no run of the sweep has keys of {parent}"
        hint = suggestion(name, siblings)
        if "did you mean" in hint:
            return f"{key}: unknown key{hint.replace('did you mean ', f'did you mean {parent}.')}"
        named = key_named(name)
        return f"{key}: unknown key" + (f"; did you mean {named}?" if named else hint)


def _single_overrides(override: Override) -> list[str]:
    """One override for each value of a swept one."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        kind = getattr(override.value_type, "name", "an interval").lower()
        raise HydraException(f"{key}: {kind} needs a sweeper that searches, such as hydra/sweeper=optuna")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _unforced(override: str) -> str:
    """The override without ``++``."""
    return override.removeprefix("++")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def is_assignment(override: str) -> bool:
    """Whether an override sets a key to a value, instead of choosing an option or deleting a key."""
    key, is_assigned, _ = override.lstrip("+").partition("=")
    is_key = ("." in key and not key.startswith("hydra.")) or key in ROOT_KEYS
    return bool(is_assigned) and is_key and not {"~", "@", "/"} & set(key)


def _is_mapping(override: str) -> bool:
    return is_assignment(override) and override.partition("=")[2].startswith("{")


def _adds(override: str) -> bool:
    """Whether an override adds a key that must not exist."""
    return is_assignment(override) and override.startswith("+") and not override.startswith("++")


def _applicable(override: str, plain: Mapping[str, Any]) -> str | None:
    """The override as the job needs it; None if its options lack the key."""
    if not is_assignment(override):
        return override
    node: Any = plain
    for depth, name in enumerate(_key(override).split(".")):
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        elif override.startswith("+") and depth > 0 and _accepts(node, name, is_group=depth == 1):
            return override
        else:
            return None
    return override if _is_mapping(override) else _unforced(override)


def _accepts(node: Any, name: str, *, is_group: bool) -> bool:
    """Whether a key may be added to a node: its class has the parameter, or it is a mapping without a class."""
    if isinstance(node, Mapping) and ("_target_" in node or is_group):
        return name in class_parameters(node.get("_target_"))
    return node is None or isinstance(node, Mapping)


def _node_at(plain: Mapping[str, Any], key: str) -> Any:
    node: Any = plain
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _names(node: Any) -> set[str]:
    """The keys that a node has or accepts."""
    if not isinstance(node, Mapping):
        return set()
    return {str(name) for name in node if name != "_target_"} | set(class_parameters(node.get("_target_")))
