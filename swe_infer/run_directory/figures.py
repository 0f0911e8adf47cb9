"""The figures of a run: counts, rates, usage, cost. They are computed only here.

The denominator of rates is every sample of the last command's coverage; failed, skipped and remaining samples count
as not solved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NotRequired, TypedDict, cast, get_args

from swe_infer.errors import INFRASTRUCTURE_ERRORS
from swe_infer.run_directory.predictions import Selected
from swe_infer.run_directory.records import (
    Damage,
    Key,
    Record,
    Status,
    key_of,
    possibly_billed_usd,
    purpose_of,
    supersedes,
    turn_of,
    usage_of,
)
from swe_infer.text import clean
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


_APPLYING = ("applies", "repaired")
_MAX_FIGURE = 10**18
_LONGEST_REASON = 60
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
    return sum(patches.get(status, 0) for status in _APPLYING)


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
        "selected_apply_rate": rate(sum(one.patch_status in _APPLYING for one in selected.values())),
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


class _Auxiliary:
    """Sums over the records of auxiliary requests of one purpose."""

    def __init__(self) -> None:
        self.answered = 0
        self.usage = Usage()
        self.cost_usd: Decimal | None = Decimal(0)
        self.statuses: dict[str, dict[int, Status]] = {}
        """By instance and prompt."""
        self.failed: set[str] = set()
        """Instances whose last request failed."""

    def add_record(self, record: Record) -> None:
        instance_id, status = record["instance_id"], record["status"]
        self.usage += usage_of(record)
        self.cost_usd = sum_usd(self.cost_usd, record.get("cost_usd"))
        self.answered += status == "completed"
        statuses = self.statuses.setdefault(instance_id, {})
        prompt = _short(str(record.get("prompt_sha256")))
        if supersedes(status, statuses.get(prompt)):
            statuses[prompt] = status
        (self.failed.add if status == "failed" else self.failed.discard)(instance_id)

    def figures(self, counts: Callable[[str], bool]) -> AuxiliaryFigures:
        return {
            "requests": self.answered,
            "failed": sum(map(counts, self.failed)),
            "input_tokens": self.usage.input_tokens,
            "output_tokens": self.usage.output_tokens,
            "cost_usd": self.cost_usd,
        }


class Totals:
    """Running sums over the records of a run.

    Counts are of (instance, sample) pairs of the covered instances; one record of each pair counts, see
    :mod:`swe_infer.run_directory.records`. Usage and cost are sums over every record, as failed attempts, and
    instances and turns outside the coverage were paid for, too. ``cost_usd`` is None once a price is unknown.

    Args:
        covered_ids: the counted instances; None: all.
        covered_turns: the counted further turns; None: all.
    """

    def __init__(self, covered_ids: Collection[str] | None = None, covered_turns: int | None = None) -> None:
        self.covered_ids = covered_ids
        self.covered_turns = covered_turns
        self._latest: dict[Key, tuple[Status, str | None, str | None, int]] = {}
        self._first_patches: dict[Key, str | None] = {}
        """Of samples with an answered turn: the status of the patch of their first answer."""
        self._answered_turns: dict[Key, int] = {}
        """Of samples with an answered turn, covered or not: the number of the last one."""
        self._unanswered_turns: dict[Key, Status] = {}
        """Of samples whose counted answer is followed by a turn without an answer: the status of that turn."""
        self._turn_counts: Counter[str] = Counter()
        self._auxiliary: dict[str, _Auxiliary] = {}
        """By purpose."""
        self._turn_usage = Usage()
        self._turn_usd: Decimal | None = Decimal(0)
        self._samples: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._patches: Counter[str] = Counter()
        self._infrastructure_failures = 0
        self._prompts: dict[str, int] = {}
        self.replaced: set[Key] = set()
        """Completed, then skipped by a later command."""
        self.answered_again: set[Key] = set()
        """Completed more than once."""
        self.records = 0
        self.usage = Usage()
        self.cost_usd: Decimal | None = Decimal(0)
        self.possibly_billed_usd = Decimal(0)
        self.unreadable = 0
        """Unreadable records."""
        self.unreadable_usd: Decimal | None = Decimal(0)
        """Their part of ``cost_usd``."""

    def add_record(self, record: Record) -> None:
        """Count one more record."""
        self.records += 1
        self.usage += usage_of(record)
        self.cost_usd = sum_usd(self.cost_usd, record.get("cost_usd"))
        self.possibly_billed_usd += possibly_billed_usd(record)
        if (purpose := purpose_of(record)) is not None:
            self._auxiliary.setdefault(purpose, _Auxiliary()).add_record(record)
            return
        key, status, patch_status = key_of(record), record["status"], record.get("patch_status")
        turn = turn_of(record)
        if turn:
            self._turn_usage += usage_of(record)
            self._turn_usd = sum_usd(self._turn_usd, record.get("cost_usd"))
            if status == "completed":
                self._answered_turns[key] = max(turn, self._answered_turns.get(key, 0))
            if not self.counts_turn(turn):
                return
        if isinstance(digest := record.get("prompt_sha256"), str):
            self._prompts[key[0]] = _short(digest)
        previous = self._latest.get(key)
        before = self._turn_counts_of(key)
        if previous is not None and not supersedes(status, previous[0], turn, previous[3]):
            if turn > previous[3]:
                self._unanswered_turns[key] = status
                self._count_turns(key, before)
            return
        self._unanswered_turns.pop(key, None)
        if not turn:
            self._first_patches.pop(key, None)
        elif previous is not None and not previous[3]:
            self._first_patches[key] = previous[1]
        if status == "skipped":
            self._answered_turns.pop(key, None)
        counted = self.counts(key[0])
        if previous is not None and counted:
            self._counts[previous[0]] -= 1
            self._infrastructure_failures -= previous[2] in INFRASTRUCTURE_ERRORS
            if previous[1] is not None:
                self._patches[previous[1]] -= 1
        if previous is not None and previous[0] == "completed":
            (self.answered_again if status == "completed" else self.replaced).add(key)
        error = record.get("error")
        error_type = str(error.get("type")) if error and status != "completed" else None
        self._samples[key[0]] += previous is None
        self._latest[key] = (status, patch_status, error_type, turn)
        self._count_turns(key, before)
        if counted:
            self._counts[status] += 1
            self._infrastructure_failures += error_type in INFRASTRUCTURE_ERRORS
            if patch_status is not None:
                self._patches[patch_status] += 1

    def add_damage(self, damage: Damage) -> None:
        """Add the usage and cost of unreadable records."""
        self.unreadable += damage.unreadable
        self.unreadable_usd = sum_usd(self.unreadable_usd, damage.cost_usd)
        self.usage += damage.usage
        self.cost_usd = sum_usd(self.cost_usd, damage.cost_usd)

    def unrecorded_usd(self, summary: Summary) -> Decimal:
        """What may have been billed according to the run's summary, beyond what these records state. The ledgers of a
        run may know more than its records."""
        stated, recorded = summary.get("possibly_billed_usd") or 0, self.possibly_billed_usd
        return Decimal(str(stated)) - recorded if float(stated) > float(recorded) else Decimal(0)

    def counts(self, instance_id: str) -> bool:
        """Whether an instance is covered."""
        return self.covered_ids is None or instance_id in self.covered_ids

    def counts_turn(self, turn: int) -> bool:
        """Whether a turn is covered."""
        return self.covered_turns is None or turn <= self.covered_turns

    def samples(self, instance_id: str) -> int:
        """The number of samples of an instance that have a record."""
        return self._samples[instance_id]

    def turn(self, key: Key) -> int:
        """The turn of the latest record that counts."""
        latest = self._latest.get(key)
        return 0 if latest is None else latest[3]

    def patch_status(self, key: Key) -> str | None:
        """The status of the patch of the latest record that counts."""
        latest = self._latest.get(key)
        return None if latest is None else latest[1]

    def is_answered(self, key: Key, turn: int, auxiliary: str = "") -> bool:
        """Whether a turn of an (instance, sample) is completed, even if it is not covered.

        Args:
            auxiliary: :attr:`swe_infer.types.Request.auxiliary`.
        """
        if auxiliary:
            purpose, _, digest = auxiliary.partition(":")
            return self.auxiliary_status(purpose, key[0], None if purpose == "context" else digest) == "completed"
        return self._answered_turns.get(key, 0) >= turn if turn else self.status(key) == "completed"

    def unanswered_turn(self, key: Key) -> Status | None:
        """The status of the turn without an answer that follows the latest record that counts; None without one."""
        return self._unanswered_turns.get(key)

    def auxiliary_status(self, purpose: str, instance_id: str, prompt_sha256: str | None = None) -> Status | None:
        """The status of an auxiliary request; None without a record.

        Args:
            prompt_sha256: digest of its prompt; None: any, and a completed request comes first.
        """
        auxiliary = self._auxiliary.get(purpose)
        statuses = {} if auxiliary is None else auxiliary.statuses.get(instance_id, {})
        if prompt_sha256 is not None:
            return statuses.get(_short(prompt_sha256))
        return "completed" if "completed" in statuses.values() else next(reversed(statuses.values()), None)

    def has_failed_requests(self, purpose: str) -> bool:
        """Whether the last auxiliary request of a covered instance failed."""
        auxiliary = self._auxiliary.get(purpose)
        return auxiliary is not None and any(map(self.counts, auxiliary.failed))

    @property
    def has_failed_turns(self) -> bool:
        """Whether the last turn of a covered sample failed."""
        return self._turn_counts["failed"] > 0

    @property
    def instance_ids(self) -> set[str]:
        """The instances with a record, covered or not."""
        return {instance_id for instance_id, _ in self._latest}

    def status(self, key: Key) -> Status | None:
        """The latest status of an (instance, sample); None without a record."""
        latest = self._latest.get(key)
        return None if latest is None else latest[0]

    def statuses(self) -> Iterator[tuple[Key, Status]]:
        """The latest status of every (instance, sample) with a record."""
        return ((key, latest[0]) for key, latest in self._latest.items())

    def skip_reason(self, key: Key) -> str | None:
        """The reason (class name) if the latest record of an (instance, sample) is a skip, else None."""
        latest = self._latest.get(key)
        return latest[2] if latest is not None and latest[0] == "skipped" else None

    def skip_reasons(self) -> Counter[str]:
        """How many of the counted (instance, sample) are skipped for each reason."""
        skips = (reason for key in self._latest if (reason := self.skip_reason(key)) and self.counts(key[0]))
        return Counter(" ".join(clean(str(reason)).split())[:_LONGEST_REASON] for reason in skips)

    def failure_reasons(self) -> Counter[str]:
        """How many of the counted (instance, sample) failed with each class of error."""
        failed = (latest for key, latest in self._latest.items() if latest[0] == "failed" and self.counts(key[0]))
        return Counter(" ".join(clean(str(error)).split())[:_LONGEST_REASON] for _, _, error, _ in failed)

    def has_skip(self, reason: str) -> bool:
        """Whether some (instance, sample) is skipped for ``reason``."""
        return any(latest[0] == "skipped" and latest[2] == reason for latest in self._latest.values())

    def has_prompt(self, instance_id: str) -> bool:
        """Whether a record states the prompt of an instance."""
        return instance_id in self._prompts

    def has_other_prompt(self, instance_id: str, sha256: str) -> bool:
        """Whether the last record of an instance states another prompt than the one with this digest."""
        return self._prompts.get(instance_id, _short(sha256)) != _short(sha256)

    def count(self, status: Status) -> int:
        return self._counts[status]

    def summary(
        self,
        *,
        instances: int | None = None,
        samples: int | None = None,
        wall_s: float = 0.0,
        stats: Mapping[str, float] | None = None,
        stopped_by: str | None = None,
        unrecorded_usd: Decimal = Decimal(0),
    ) -> Summary:
        """The summary of a run with these records.

        Args:
            instances, samples: covered instances, and samples per instance; None: counted from the records.
            stats: figures of the runner.
            stopped_by: the class of the error that stopped the run.
            unrecorded_usd: what may have been billed in addition to what the records state.
        """
        done = self._counts["completed"] + self._counts["failed"] + self._counts["skipped"]
        if instances is None:
            instances = sum(map(self.counts, self.instance_ids))
        if samples is None:
            samples = 1 + max((sample for _, sample in self._latest), default=0)
        remaining = max(0, instances * samples - done)
        stopped_by = stopped_by if stopped_by in INFRASTRUCTURE_ERRORS else None
        summary: Summary = {
            "instances": instances,
            "samples": samples,
            "completed": self._counts["completed"],
            "failed": self._counts["failed"],
            "skipped": self._counts["skipped"],
            "remaining": remaining,
            "infrastructure_failures": self._infrastructure_failures + (remaining if stopped_by else 0),
            "stopped_by": stopped_by,
            "patches": {status: n for status, n in sorted(self._patches.items()) if n},
            "usage": self.usage.as_dict(),
            "cost_usd": self.cost_usd,
            "possibly_billed_usd": self.possibly_billed_usd + unrecorded_usd,
            "unreadable_records": self.unreadable,
            "unreadable_cost_usd": self.unreadable_usd,
            "wall_s": round(wall_s, 3),
            "output_tokens_per_s": round(self.usage.output_tokens / wall_s, 3) if wall_s > 0 else 0.0,
            "stats": dict(stats or {}),
        }
        if self.covered_turns or self._turn_usage != Usage() or self._answered_turns:
            summary["feedback"] = self._turn_figures()
        if self._auxiliary:
            summary["auxiliary"] = {name: one.figures(self.counts) for name, one in sorted(self._auxiliary.items())}
        summary.update(patch_rates(summary))  # type: ignore[typeddict-item] # these keys are the summary's
        summary["apply_rate_without_infrastructure_failures"] = without_infrastructure_failures(
            applying(summary), summary
        )
        return summary

    def _turn_counts_of(self, key: Key) -> Counter[str]:
        """What a sample adds to the counts of further turns."""
        counts: Counter[str] = Counter()
        if (unanswered := self._unanswered_turns.get(key)) is not None:
            counts[unanswered] = 1
        if key in self._first_patches:
            _, patch_status, _, counts["turns"] = self._latest[key]
            applied, applies = self._first_patches[key] in _APPLYING, patch_status in _APPLYING
            if applied != applies:
                counts["fixed" if applies else "broken"] = 1
        return counts

    def _count_turns(self, key: Key, before: Counter[str]) -> None:
        now = self._turn_counts_of(key)
        if (before or now) and self.counts(key[0]):
            self._turn_counts.subtract(before)
            self._turn_counts.update(now)

    def _turn_figures(self) -> TurnFigures:
        counts = self._turn_counts
        return {
            "turns": counts["turns"],
            "failed": counts["failed"],
            "skipped": counts["skipped"],
            "fixed": counts["fixed"],
            "broken": counts["broken"],
            "input_tokens": self._turn_usage.input_tokens,
            "output_tokens": self._turn_usage.output_tokens,
            "cost_usd": self._turn_usd,
        }


def sum_usd(total: Decimal | None, cost: Decimal | None) -> Decimal | None:
    """The sum of two costs; None if one is unknown."""
    return None if total is None or cost is None else total + cost


def _short(sha256: str) -> int:
    """A digest as an integer, which uses less memory."""
    return hash(sha256)
