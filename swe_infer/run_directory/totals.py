"""Running sums over the records of a run: counts, usage, cost. They are computed only here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal

from swe_infer.errors import INFRASTRUCTURE_ERRORS
from swe_infer.run_directory.figures import (
    APPLYING,
    AuxiliaryFigures,
    Summary,
    TurnFigures,
    applying,
    patch_rates,
    sum_usd,
    without_infrastructure_failures,
)
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
from swe_infer.types import Usage

_LONGEST_REASON = 60


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
        self.known_usd = Decimal(0)
        """The part of ``cost_usd`` that is known if the rest is not."""
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
        self.known_usd += record.get("cost_usd") or 0
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
        self.known_usd += damage.cost_usd or 0

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
        wall_s = round(wall_s, 3)
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
            "wall_s": wall_s,
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
            applied, applies = self._first_patches[key] in APPLYING, patch_status in APPLYING
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


def _short(sha256: str) -> int:
    """A digest as an integer, which uses less memory."""
    return hash(sha256)
