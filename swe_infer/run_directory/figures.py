"""The figures of a run: their names and meaning, rates, and costs. Counts and sums are in :mod:`.totals`.

The denominator of rates is every sample of the last command's coverage; failed, skipped and remaining samples count
as not solved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NotRequired, TypedDict, cast, get_args

from swe_infer.run_directory.predictions import Selected
from swe_infer.run_directory.records import (
    Key,
)
from swe_infer.types import PatchStatus, Purpose, Usage

Direction = Literal["minimize", "maximize"]


class TurnFigures(TypedDict, total=False):
    """The figures of further turns, see :mod:`swe_infer.feedback`.

    Args:
        turns: answered turns of the covered samples.
        failed, skipped: covered samples whose last turn has no answer.
        fixed: covered samples whose first patch does not apply, and whose last one does.
        broken: the reverse.
        input_tokens, output_tokens, cost_usd: of every turn in the records, included in the totals of the run.
    """

    turns: int
    failed: int
    skipped: int
    fixed: int
    broken: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | float | None


class AuxiliaryFigures(TypedDict, total=False):
    """The figures of the auxiliary requests of one purpose, see :data:`swe_infer.types.Purpose`.

    Args:
        requests: answered ones, of every instance in the records.
        failed: covered instances whose last request failed.
        input_tokens, output_tokens, cost_usd: of every request in the records, included in the totals of the run.
    """

    requests: int
    failed: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | float | None


class Summary(TypedDict, total=False):
    """``summary.json``. Computed dollars are Decimal; None if a price is not known.

    Args:
        samples: per instance.
        infrastructure_failures: samples without an answer of which infrastructure is the cause, see
            :data:`swe_infer.errors.INFRASTRUCTURE_ERRORS`. Remaining samples count if such an error stopped the run.
        stopped_by: the class of the error of infrastructure that stopped the last command; None if none did.
        patches: completed samples by the status of their patch.
        possibly_billed_usd: what may have been billed in addition to ``cost_usd``; caps count it.
        unreadable_records, unreadable_cost_usd: unreadable records in ``records.jsonl``, and their part of
            ``cost_usd``.
        wall_s: seconds, over all commands.
        apply_rate, apply_rate_checked, unchecked_share: see :func:`patch_rates`.
        apply_rate_without_infrastructure_failures: ``apply_rate`` without the samples that infrastructure failed.
        resolved, evaluated, resolved_rate, resolved_rate_without_infrastructure_failures, resolved_by_any, pass_at_k,
            cost_per_resolved_usd: see :func:`resolved_figures`.
        evaluated_by: the option of the group ``evaluation``, with a digest of a command, or ``report`` for a finished
            report.
        feedback: of a run with further turns.
        selection, selected, selected_apply_rate, selected_resolved, selected_resolved_rate: of a run with several
            samples for each instance, see :func:`selection_figures`.
        auxiliary: by purpose, of a run with auxiliary requests.
        tested_in: ``sandbox``, or ``process`` for tests without a sandbox.
        not_tested: why the tests did not run.
        shards: number of shards of a merged run.
    """

    instances: int
    samples: int
    completed: int
    failed: int
    skipped: int
    remaining: int
    infrastructure_failures: int
    stopped_by: NotRequired[str | None]
    patches: dict[str, int]
    usage: dict[str, int]
    cost_usd: Decimal | float | None
    possibly_billed_usd: NotRequired[Decimal | float]
    unreadable_records: int
    unreadable_cost_usd: Decimal | float | None
    wall_s: float
    output_tokens_per_s: float
    stats: dict[str, float]
    apply_rate: float | None
    apply_rate_without_infrastructure_failures: float | None
    apply_rate_checked: float | None
    unchecked_share: float | None
    resolved: NotRequired[int]
    evaluated: NotRequired[int]
    resolved_rate: NotRequired[float | None]
    resolved_rate_without_infrastructure_failures: NotRequired[float | None]
    resolved_by_any: NotRequired[int]
    pass_at_k: NotRequired[float | None]
    cost_per_resolved_usd: NotRequired[Decimal | float | None]
    feedback: NotRequired[TurnFigures]
    selection: NotRequired[str]
    selected: NotRequired[int]
    selected_apply_rate: NotRequired[float | None]
    selected_resolved: NotRequired[int]
    selected_resolved_rate: NotRequired[float | None]
    auxiliary: NotRequired[dict[str, AuxiliaryFigures]]
    evaluated_by: NotRequired[str]
    tested_in: NotRequired[str]
    not_tested: NotRequired[str | None]
    shards: NotRequired[int]


APPLYING = ("applies", "repaired")
_MAX_FIGURE = 10**18
_COUNTS = frozenset(
    [
        "instances",
        "samples",
        "completed",
        "failed",
        "skipped",
        "remaining",
        "infrastructure_failures",
        "unreadable_records",
        "resolved",
        "evaluated",
        "resolved_by_any",
        "selected",
        "selected_resolved",
        "shards",
    ]
)
_AMOUNTS = frozenset(
    [
        "cost_usd",
        "possibly_billed_usd",
        "unreadable_cost_usd",
        "wall_s",
        "output_tokens_per_s",
        "apply_rate",
        "apply_rate_without_infrastructure_failures",
        "apply_rate_checked",
        "unchecked_share",
        "resolved_rate",
        "resolved_rate_without_infrastructure_failures",
        "pass_at_k",
        "selected_apply_rate",
        "selected_resolved_rate",
        "cost_per_resolved_usd",
    ]
)
_COUNT_MAPPINGS = frozenset({"patches", "usage"})

_MAXIMIZED = frozenset(
    [
        "completed",
        "resolved",
        "resolved_rate",
        "resolved_rate_without_infrastructure_failures",
        "resolved_by_any",
        "pass_at_k",
        "selected",
        "selected_apply_rate",
        "selected_resolved",
        "selected_resolved_rate",
        "apply_rate",
        "apply_rate_without_infrastructure_failures",
        "apply_rate_checked",
        "output_tokens_per_s",
        "patches.applies",
        "usage.cached_input_tokens",
        "feedback.fixed",
    ]
)
_UNDIRECTED = frozenset(
    [
        "instances",
        "samples",
        "evaluated",
        "shards",
        "patches.repaired",
        "feedback.turns",
        *(f"auxiliary.{purpose}.requests" for purpose in get_args(Purpose)),
    ]
)

EVALUATED_FIGURES = frozenset(
    [
        "resolved",
        "evaluated",
        "resolved_rate",
        "resolved_rate_without_infrastructure_failures",
        "resolved_by_any",
        "pass_at_k",
        "selected_resolved",
        "selected_resolved_rate",
        "cost_per_resolved_usd",
    ]
)
"""The figures that only an evaluated run has."""


def _direction(name: str) -> Direction | None:
    if name in _UNDIRECTED:
        return None
    return "maximize" if name in _MAXIMIZED else "minimize"


FIGURES: Mapping[str, Direction | None] = {
    name: _direction(name)
    for name in sorted(
        [
            *_COUNTS,
            *_AMOUNTS,
            *(f"patches.{status}" for status in get_args(PatchStatus)),
            *(f"usage.{field}" for field in Usage.__dataclass_fields__),
            *(f"feedback.{field}" for field in TurnFigures.__annotations__),
            *(
                f"auxiliary.{purpose}.{field}"
                for purpose in get_args(Purpose)
                for field in AuxiliaryFigures.__annotations__
            ),
        ]
    )
}
"""The numbers in a summary by dotted name, and whether more of it is better. Figures of the runner (``stats.NAME``)
are not listed."""


def is_figure(name: str) -> bool:
    """Whether a summary may have the figure of this dotted name."""
    return name in FIGURES or (name.startswith("stats.") and len(name) > len("stats."))


def figure(summary: Mapping[str, Any], name: str) -> float | None:
    """The figure of a dotted name, such as ``usage.output_tokens``; None if it is absent or unknown."""
    group, *keys = name.split(".") if name.startswith("auxiliary.") else name.split(".", 1)
    value = summary.get(group)
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key, 0 if group == "patches" else None)  # only statuses that occur are counted
    return float(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None


def why_absent(summary: Mapping[str, Any], name: str) -> str:
    """Why a finished run does not have a figure, in a few words."""
    if name.startswith("feedback.") and "feedback" not in summary:
        return "the run has no further turns"
    if name.startswith("selected") and "selection" not in summary:
        return "the run has one sample for each instance, so none is selected"
    if name.startswith("auxiliary.") and name.split(".")[1] not in (summary.get("auxiliary") or {}):
        return "the run has no such requests"
    if name in EVALUATED_FIGURES and "resolved" not in summary:
        return str(summary.get("not_tested") or "the patches were not evaluated")
    if name == "cost_per_resolved_usd" and not summary.get("resolved"):
        return "no sample is resolved"
    if name.endswith("_usd"):
        return "the price is unknown"
    return "the run did not measure it"


def plausible(summary: Mapping[str, Any]) -> Summary:
    """Drops figures of an invalid type or above 10^18 from a summary, which may be untrusted."""

    def is_count(value: object) -> bool:
        return type(value) is int and abs(value) <= _MAX_FIGURE

    def is_amount(value: object) -> bool:
        return value is None or is_count(value) or (isinstance(value, float | Decimal) and 0 <= value <= _MAX_FIGURE)

    def are_figures(value: object) -> bool:
        return isinstance(value, dict) and all(
            (is_amount if name == "cost_usd" else is_count)(figure) for name, figure in value.items()
        )

    def is_plausible(key: str, value: object) -> bool:
        if key in _COUNTS:
            return is_count(value)
        if key in _AMOUNTS:
            return is_amount(value)
        if key in _COUNT_MAPPINGS:
            return isinstance(value, dict) and all(map(is_count, value.values()))
        if key == "feedback":
            return are_figures(value)
        if key == "auxiliary":
            return isinstance(value, dict) and all(map(are_figures, value.values()))
        if key == "stats":
            return isinstance(value, dict) and all(isinstance(one, int | float | Decimal) for one in value.values())
        is_text = key in ("evaluated_by", "tested_in", "not_tested", "stopped_by", "selection")
        return not is_text or value is None or isinstance(value, str)

    return cast(Summary, {key: value for key, value in summary.items() if is_plausible(key, value)})


def covered_samples(summary: Mapping[str, Any]) -> int:
    """The number of (instance, sample) pairs of the last command: the denominator of rates."""
    return int(summary.get("instances") or 0) * int(summary.get("samples") or 1)


def share(count: float, summary: Mapping[str, Any]) -> float | None:
    """``count`` divided by :func:`covered_samples`; None for zero samples."""
    total = covered_samples(summary)
    return round(count / total, 6) if total else None


def infrastructure_share(summary: Mapping[str, Any]) -> float:
    """The share of covered samples with a failure of infrastructure; 0 for zero samples."""
    return (summary.get("infrastructure_failures") or 0) / max(1, covered_samples(summary))


def without_infrastructure_failures(count: float, summary: Mapping[str, Any]) -> float | None:
    """``count`` divided by the covered samples that infrastructure did not fail; None if there are none."""
    total = covered_samples(summary) - (summary.get("infrastructure_failures") or 0)
    return round(count / total, 6) if total > 0 else None


def applying(summary: Mapping[str, Any]) -> int:
    """How many samples have a patch that applies, repaired or not."""
    patches = summary.get("patches") or {}
    return sum(patches.get(status, 0) for status in APPLYING)


def patch_rates(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The rates of patches that apply.

    Returns:
        ``apply_rate``: the share of covered samples whose patch applies, repaired or not.
        ``unchecked_share``: the share whose patch could not be checked; they count as not applying.
        ``apply_rate_checked``: the share of checked patches that apply; None if none was checked.
    """
    patches, applied = summary.get("patches") or {}, applying(summary)
    checked = applied + patches.get("does_not_apply", 0)
    return {
        "apply_rate": share(applied, summary),
        "unchecked_share": share(patches.get("unchecked", 0), summary),
        "apply_rate_checked": round(applied / checked, 6) if checked else None,
    }


def resolved_figures(verdicts: Iterable[tuple[str, bool]], summary: Mapping[str, Any]) -> Summary:
    """The figures of an evaluation. ``resolved`` and ``evaluated`` count samples, ``resolved_by_any`` instances with
    at least one resolved sample. ``resolved_rate`` is over every covered sample,
    ``resolved_rate_without_infrastructure_failures`` over those that infrastructure did not fail. ``pass_at_k`` is
    ``resolved_by_any`` over every covered instance, where k is the number of samples. See :func:`cost_per_resolved`.

    Args:
        verdicts: the instance of each evaluated sample, and whether it is resolved.
    """
    evaluated = list(verdicts)
    resolved = [instance_id for instance_id, is_resolved in evaluated if is_resolved]
    by_any, instances = len(set(resolved)), int(summary.get("instances") or 0)
    return {
        "resolved": len(resolved),
        "evaluated": len(evaluated),
        "resolved_rate": share(len(resolved), summary),
        "resolved_rate_without_infrastructure_failures": without_infrastructure_failures(len(resolved), summary),
        "resolved_by_any": by_any,
        "pass_at_k": round(by_any / instances, 6) if instances else None,
        "cost_per_resolved_usd": cost_per_resolved(len(resolved), summary.get("cost_usd")),
    }


def selection_figures(
    selected: Mapping[str, Selected], summary: Mapping[str, Any], resolved: Mapping[Key, bool] | None = None
) -> Summary:
    """The figures of the selected answers; empty without any. Rates are over every covered instance.

    Args:
        selected: by instance.
        resolved: the verdicts; None: not evaluated.

    Returns:
        ``selection``: the rule.
        ``selected``: instances with a selected answer.
        ``selected_apply_rate``, ``selected_resolved_rate``: the share of instances whose selected patch applies, and
            whose selected answer is resolved.
    """
    if not selected:
        return {}
    instances = int(summary.get("instances") or 0)

    def rate(count: int) -> float | None:
        return round(count / instances, 6) if instances else None

    figures: Summary = {
        "selection": ", ".join(sorted({one.rule for one in selected.values()})),
        "selected": len(selected),
        "selected_apply_rate": rate(sum(one.patch_status in APPLYING for one in selected.values())),
    }
    if resolved is not None:
        count = sum(resolved.get((name, one.sample), False) for name, one in selected.items())
        figures |= {"selected_resolved": count, "selected_resolved_rate": rate(count)}
    return figures


@dataclass(frozen=True, slots=True)
class SelectionGap:
    """How much of what several samples can bring a selection brings. Rates are over all instances.

    Args:
        pass_1: the mean over the samples.
        selected: the rate of the selected answers.
        pass_n: the rate of instances with at least one success.
    """

    pass_1: float
    selected: float
    pass_n: float

    @property
    def closed(self) -> float | None:
        """The share of the gap between ``pass_1`` and ``pass_n`` that the selection closes, negative for one that is
        worse than ``pass_1``; None without a gap."""
        gap = self.pass_n - self.pass_1
        return (self.selected - self.pass_1) / gap if gap > 1e-9 else None


def selection_gap(
    successes: Mapping[str, tuple[int, int]], selected: Collection[str], instances: int
) -> SelectionGap | None:
    """The rates of a selection; None without an instance.

    Args:
        successes: for each instance the samples that are successes, and all samples.
        selected: the instances whose selected answer is a success.
        instances: all instances, those without a record included.
    """
    if not instances:
        return None
    pass_1 = sum(good / count for good, count in successes.values() if count)
    pass_n = sum(good > 0 for good, _ in successes.values())
    return SelectionGap(pass_1 / instances, len(selected) / instances, pass_n / instances)


def cost_per_resolved(resolved: int, cost_usd: Decimal | float | None) -> Decimal | None:
    """Dollars per resolved sample; None if no sample is resolved or a price is unknown."""
    if not resolved or cost_usd is None:
        return None
    cost = cost_usd if isinstance(cost_usd, Decimal) else Decimal(repr(cost_usd))
    return round(cost / resolved, 9)


def cost_per_fixed(turns: TurnFigures) -> Decimal | None:
    """Dollars of further turns per patch that applies because of them; None without one, or if a price is unknown."""
    return cost_per_resolved(turns["fixed"], turns["cost_usd"])


def sum_usd(total: Decimal | None, cost: Decimal | None) -> Decimal | None:
    """The sum of two costs; None if one is unknown."""
    return None if total is None or cost is None else total + cost
