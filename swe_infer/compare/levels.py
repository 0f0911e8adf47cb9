"""Groups of instances and samples: by repository, difficulty, prompt length, edit format, finish reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from swe_infer.compare.loading import LoadedRun, Result
from swe_infer.compare.statistics import Interval, clustered_wilson
from swe_infer.errors import ConfigError

Group = Literal["repository", "difficulty", "prompt_length", "edit_format", "finish_reason"]
GROUPS: Sequence[Group] = get_args(Group)

_REPOSITORY = re.compile(r"^(?:instance_)?(.+?)__(.+?)(?:-\d+|-[0-9a-f]{7,}\S*|\.[0-9a-f]{8}\.\S*)$")
_PROMPT_LENGTHS = (2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000)  # tokens


def repository_of(instance_id: str) -> str:
    """``owner/name`` from an id in the forms of SWE-bench, SWE-bench Pro and SWE-smith; otherwise the id without its
    last part."""
    match = _REPOSITORY.match(instance_id)
    return f"{match[1]}/{match[2]}" if match else instance_id.rpartition("-")[0] or instance_id


def level_function(group: Group, run: LoadedRun) -> Callable[[Result], str]:
    """The function from a sample of a run to its level, such as ``django/django`` or ``4,000 to 8,000 tokens``.

    Raises:
        ConfigError: the levels are not known here.
    """
    if group == "repository":
        return lambda result: repository_of(result.instance_id)
    if group == "finish_reason":
        return lambda result: result.finish_reason or result.status
    if group == "prompt_length":
        tokens: dict[str, int] = {}
        for result in run.results.values():  # one sample may have the tokens of a request for several
            tokens[result.instance_id] = max(result.prompt_tokens, tokens.get(result.instance_id, 0))
        return lambda result: _prompt_length(tokens[result.instance_id])
    if group == "edit_format":
        stated = str(run.config.get("prompt.edit_format") or "unified_diff")
        return lambda result: stated
    difficulties = _difficulties(run)
    return lambda result: difficulties.get(result.instance_id, "unknown")


def _prompt_length(tokens: int) -> str:
    if not tokens:
        return "unknown"
    low = max((limit for limit in _PROMPT_LENGTHS if limit <= tokens), default=0)
    high = next((limit for limit in _PROMPT_LENGTHS if limit > tokens), None)
    return f"{low:,} to {high:,} tokens" if high else f"{low:,} tokens or more"


def _difficulties(run: LoadedRun) -> Mapping[str, str]:
    """The ``difficulty`` column of the run's dataset, such as that of SWE-bench Verified."""
    from swe_infer.compare.prompts import recorded_column

    try:
        found = recorded_column(run.nested_config, "difficulty")
    except ConfigError as error:
        raise ConfigError(f"--by difficulty: {run.name}: {error}") from error
    if not found:
        raise ConfigError(f"--by difficulty: the dataset of {run.name} has no column difficulty")
    return found


@dataclass(frozen=True, slots=True)
class LevelRate:
    """The success rate of a run over the samples of one level, with its 95 % interval clustered by instance."""

    successes: int
    samples: int
    instances: int
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a group.

    Args:
        rates: of each run; None without a sample in this level.
    """

    group: Group
    name: str
    rates: Sequence[LevelRate | None]


def levels_of(group: Group, runs: Sequence[LoadedRun], solved: Callable[[Result], bool]) -> list[Level]:
    """The rates of each run by the levels of ``group``, largest levels first; lengths in order.

    Only samples with a record have a level.

    Raises:
        ConfigError: the levels are not known here.
    """
    counts: list[dict[str, dict[str, list[bool]]]] = []
    for run in runs:
        level = level_function(group, run)
        own: dict[str, dict[str, list[bool]]] = {}
        for result in run.results.values():
            own.setdefault(level(result), {}).setdefault(result.instance_id, []).append(solved(result))
        counts.append(own)
    sizes: dict[str, int] = {}
    for own in counts:
        for name, instances in own.items():
            sizes[name] = max(sizes.get(name, 0), len(instances))
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    if group == "prompt_length":
        names.sort(key=lambda name: int(name.split()[0].replace(",", "")) if name[0].isdigit() else -1)
    return [Level(group, name, [_level_rate(own.get(name)) for own in counts]) for name in names]


def _level_rate(instances: Mapping[str, list[bool]] | None) -> LevelRate | None:
    if not instances:
        return None
    successes, samples = ([f(own) for own in instances.values()] for f in (sum, len))
    interval = clustered_wilson(successes, samples, samples=sum(samples))
    return LevelRate(sum(successes), sum(samples), len(instances), interval)
