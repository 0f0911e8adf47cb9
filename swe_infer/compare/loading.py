"""Loads runs from their directories: figures into memory, answers and patches on demand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.compare.sources import Source, find_sources
from swe_infer.errors import INFRASTRUCTURE_ERRORS
from swe_infer.progress import progress
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.figures import Summary, TurnFigures, sum_usd
from swe_infer.run_directory.predictions import Selected
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Damage, Key, Record, key_of, purpose_of, supersedes, turn_of, usage_of
from swe_infer.run_directory.totals import Totals
from swe_infer.text import flatten
from swe_infer.types import MAX_SAMPLES, Usage


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one (instance, sample): its final record, with the usage and cost of all attempts.

    Args:
        resolved: whether the tests pass; None if not evaluated.
        cost_usd: dollars of all attempts; None if a price is unknown.
        extractor: the version of the extractor that found the patch; 1 if the record states none.
        turn: the further turn of the record, see :mod:`swe_infer.feedback`; 0: the first answer.
        prompt_tokens: input tokens of the first record, whose prompt is that of the instance.
        shared: another run has paid for the answer.
    """

    instance_id: str
    sample: int
    status: str
    finish_reason: str | None
    patch_status: str | None
    resolved: bool | None
    usage: Usage
    cost_usd: Decimal | None
    latency_s: float
    attempts: int
    error: str | None
    extractor: int = 1
    turn: int = 0
    prompt_tokens: int = 0
    shared: bool = False

    @property
    def infrastructure_failure(self) -> bool:
        """Whether infrastructure is the cause that there is no answer."""
        return self.status != "completed" and self.error in INFRASTRUCTURE_ERRORS

    @property
    def applies(self) -> bool:
        """Whether the patch is known to apply."""
        return self.status == "completed" and self.patch_status in ("applies", "repaired")


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """One run directory.

    Args:
        name: a short name, unique among the runs that were loaded together.
        config: the flattened configuration, ``{"decoding.temperature": 0.0, …}``; empty without one.
        results: of the samples that the last command requested, by (instance, sample), in record order.
        samples: of each instance, by the summary or, without one, by the records.
        evaluated: whether any instance has a verdict of its tests.
        feedback: the figures of further turns; None without any.
        selected: the selected answer of each instance, of a run with several samples.
        auxiliary_usage: of auxiliary requests (:attr:`swe_infer.types.Request.purpose`) of those instances.
        auxiliary_usd: their cost by instance; None if a price is unknown.
        unreadable: number of unreadable records.
        unreadable_usage: their usage, as far as it can be recovered.
        unreadable_usd: their cost; None if a price is unknown.
        address: ``wandb:ENTITY/PROJECT/RUN_ID`` of a run that was downloaded from W&B.
        remark: a note for the reader on how the run was loaded.
    """

    directory: Path
    name: str
    config: Mapping[str, Any]
    nested_config: Mapping[str, Any]
    summary: Summary
    results: Mapping[Key, Result]
    samples: int
    evaluated: bool
    feedback: TurnFigures | None = None
    selected: Mapping[str, Selected] = field(default_factory=dict)
    auxiliary_usage: Usage = field(default_factory=Usage)
    auxiliary_usd: Mapping[str, Decimal | None] = field(default_factory=dict)
    unreadable: int = 0
    unreadable_usage: Usage = field(default_factory=Usage)
    unreadable_usd: Decimal | None = Decimal(0)
    address: str | None = None
    remark: str | None = None

    @property
    def stopped_by_infrastructure(self) -> bool:
        """Whether infrastructure is the cause that samples remain."""
        return self.summary.get("stopped_by") in INFRASTRUCTURE_ERRORS and bool(self.summary.get("remaining"))

    def instances(self) -> dict[str, list[Result]]:
        """The samples of each instance, in order."""
        grouped: dict[str, list[Result]] = {}
        for result in self.results.values():
            grouped.setdefault(result.instance_id, []).append(result)
        for samples in grouped.values():
            samples.sort(key=lambda result: result.sample)
        return grouped


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a conversation.

    Args:
        number: 0 for the first answer.
        feedback: the message that it answers; empty for the first answer.
        reasoning: as far as the provider returned it.
    """

    number: int
    feedback: str
    answer: str
    reasoning: str
    patch: str


@dataclass(frozen=True, slots=True)
class Texts:
    """The long parts of the record that counts.

    Args:
        notes: turn, repairs, reason of the patch status and error.
        turns: all turns of the conversation up to that record.
    """

    answer: str
    patch: str
    notes: tuple[str, ...] = field(default=())
    turns: tuple[Turn, ...] = field(default=())


def load_runs(paths: Sequence[str]) -> list[LoadedRun]:
    """Loads the runs that ``paths`` name, each once, with distinct names.

    Raises:
        ConfigError: a path contains no run, or a W&B run cannot be read.
    """
    return load_sources(find_sources(paths)[0])


def load_sources(sources: Sequence[Source]) -> list[LoadedRun]:
    """Loads runs, with distinct names.

    Raises:
        ConfigError: a file of a run cannot be read.
    """
    names = distinct_names([source.label for source in sources])
    runs = []
    with progress("reading runs", len(sources)) as advance:
        for source, name in zip(sources, names, strict=True):
            run = load_run(source.directory, name)
            runs.append(replace(run, address=source.address, remark=source.remark))
            advance()
    return runs


def load_run(directory: Path, name: str | None = None) -> LoadedRun:
    """Loads one run directory. :func:`swe_infer.run_directory.records.supersedes` chooses among several records of an
    (instance, sample).

    Raises:
        ConfigError: a file of the run cannot be read.
    """
    run = RunDirectory(directory)
    verdicts, coverage = run.resolved(), run.coverage() or Coverage(None, turns=None)
    asked = coverage.ids
    results: dict[Key, Result] = {}
    damage, recorded = Damage(), Totals(asked, coverage.turns)
    # Before the records: a run in progress must not have fewer records than its summary counts.
    config, summary = run.config(), run.summary()
    if asked is not None and "instances" not in summary:  # a run was killed before its first summary
        summary = {**summary, "instances": len(asked)}
    auxiliary_usage, auxiliary_usd = Usage(), dict[str, Decimal | None]()
    for record in run.records(damage, auxiliary=True):
        recorded.add_record(record)
        key = key_of(record)
        if purpose_of(record) is not None:
            if recorded.counts(key[0]):
                auxiliary_usage += usage_of(record)
                auxiliary_usd[key[0]] = sum_usd(auxiliary_usd.get(key[0], Decimal(0)), record.get("cost_usd"))
        elif asked is None or key[0] in asked:
            turn = turn_of(record)
            found = verdicts.get((key, turn), record.get("resolved"))
            verdict = found if isinstance(found, bool) else None
            result = _result(record, results.get(key), verdict, covered=coverage.has_turn(turn))
            if result is not None:
                results[key] = result
    damage.reconcile_cost(recorded.cost_usd, summary)
    flat = {key: _finite(value) for key, value in flatten(config)}
    stated = summary.get("samples", flat.get("decoding.n"))
    stated = stated if isinstance(stated, int) and stated <= MAX_SAMPLES else 0
    samples = max([stated, *(1 + sample for _, sample in results)])
    instances = summary.get("instances")
    summary["possibly_billed_usd"] = recorded.possibly_billed_usd + recorded.unrecorded_usd(summary)
    if summary.get("remaining") != 0 and isinstance(instances, int):
        # The last summary of a run that was killed, or is in progress, is older than its records.
        summary = {**summary, "remaining": recorded.summary(instances=instances, samples=samples)["remaining"]}
    return LoadedRun(
        directory,
        name or directory.name,
        config=flat,
        nested_config=config,
        summary=summary,
        results=results,
        samples=samples,
        evaluated=any(result.resolved is not None for result in results.values()),
        feedback=recorded.summary().get("feedback"),
        selected=run.selected(),
        auxiliary_usage=auxiliary_usage,
        auxiliary_usd=auxiliary_usd,
        unreadable=damage.unreadable,
        unreadable_usage=damage.usage,
        unreadable_usd=damage.cost_usd,
    )


def _finite(value: Any) -> Any:
    """A configuration's value as JSON can represent it: an untrusted file may contain infinities."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def total_cost(costs: Iterable[Decimal | None]) -> Decimal | None:
    """The sum; None if one is unknown."""
    known = list(costs)
    return None if None in known else sum((cost for cost in known if cost is not None), Decimal(0))


def read_texts(
    run: LoadedRun, only: str | None = None, *, answers: Callable[[str], bool] | None = None
) -> dict[Key, Texts]:
    """Reads the answers and patches of a run, which :func:`load_run` does not keep in memory.

    Args:
        only: the instance to read; None: all.
        answers: for which instances to keep answers and reasoning; None: for all.
    """
    texts: dict[Key, Texts] = {}
    last: dict[Key, tuple[str, int]] = {}
    directory = RunDirectory(run.directory)
    coverage = directory.coverage() or Coverage(None, turns=None)
    containing = only.encode() if only is not None and _PLAIN_ID.fullmatch(only) else b""
    for record in directory.records(containing=containing):
        key, turn = key_of(record), turn_of(record)
        if only is not None and key[0] != only:
            continue
        status_before, turn_before = last.get(key, (None, 0))
        if not coverage.has_turn(turn) or not supersedes(record["status"], status_before, turn, turn_before):
            continue
        last[key] = (record["status"], turn)
        error: Mapping[str, Any] = record.get("error") or {}
        notes = [
            *([f"answer to further turn {turn}: {record.get('feedback') or ''}"] if turn else []),
            *(f"repair: {repair}" for repair in record.get("patch_repairs") or ()),
            *([str(record["patch_reason"])] if record.get("patch_reason") else []),
            *([f"{error.get('type')}: {error.get('message')}"] if error else []),
        ]
        kept = answers is None or answers(key[0])
        found = Turn(
            turn,
            str(record.get("feedback") or ""),
            str(record.get("full_output") or "") if kept else "",
            _reasoning(record) if kept else "",
            str(record.get("model_patch") or ""),
        )
        before = texts[key].turns if key in texts else ()
        turns = (*(one for one in before if one.number < turn), found)
        texts[key] = Texts(found.answer, found.patch, tuple(notes), turns)
    return texts


_PLAIN_ID = re.compile(r"[\w.-]+", re.ASCII)
"""Ids whose JSON has no escapes, so that the bytes of their records contain them."""


def _reasoning(record: Record) -> str:
    details: Mapping[str, Any] = record.get("details") or {}
    found = record.get("reasoning") or details.get("reasoning")
    if found is None:
        return ""
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)


def _result(record: Record, before: Result | None, verdict: bool | None, *, covered: bool) -> Result | None:
    """The result of a sample with one more record; None if it has no result yet.

    Args:
        covered: whether the last command covers the turn of the record. If not, only its cost counts.
    """
    usage, cost = usage_of(record), record.get("cost_usd")
    paid = None if cost is None else Decimal(cost)
    if before is not None:
        usage += before.usage
        paid = None if paid is None or before.cost_usd is None else paid + before.cost_usd
        if not covered or not supersedes(record["status"], before.status, turn_of(record), before.turn):
            return replace(before, usage=usage, cost_usd=paid)
    elif not covered:
        return None
    error: Mapping[str, Any] = record.get("error") or {}
    return Result(
        instance_id=record["instance_id"],
        sample=record["sample"],
        status=str(record["status"]),
        finish_reason=record.get("finish_reason"),
        patch_status=record.get("patch_status"),
        resolved=verdict,
        usage=usage,
        cost_usd=paid,
        latency_s=float(record.get("latency_s") or 0),
        attempts=int(record.get("attempts") or 0),
        error=None if error.get("type") is None else str(error["type"]),
        extractor=int(record.get("extractor") or 1),
        turn=turn_of(record),
        prompt_tokens=(before.prompt_tokens if before is not None else 0) or usage_of(record).input_tokens,
        shared=not {"shared_from", "response_cache"}.isdisjoint(record.get("details") or {}),
    )


def distinct_names(directories: list[Path]) -> list[str]:
    """The shortest path suffixes of equal length that are all different."""
    for length in range(1, max((len(d.parts) for d in directories), default=1) + 1):
        names = ["/".join(directory.parts[-length:]) for directory in directories]
        if len(set(names)) == len(names):
            return names
    return [str(directory) for directory in directories]
