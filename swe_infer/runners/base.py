"""What a runner is: the way completions are had. The loop around it is :mod:`swe_infer.runners.run`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from swe_infer.api.estimate import Estimate
from swe_infer.llama.pool import EnginePool
from swe_infer.types import Decoding, OnOutcome, Prompt, Request, TokenCounter

__all__ = ["Order", "RunContext", "Runner", "WantedSamples"]

Order = Literal["dataset", "longest_first"]


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a runner learns of the run that it serves.

    Args:
        directory: the run directory, held by this process.
        run_id: the run's name where runs share something.
        spent_usd: what earlier tries of this run paid, by its records.
        sweep_ledger: where all runs of a sweep keep what they spend.
        engines: local models that outlive a run of this process.
        shards: of how many shards of one run this is one; None: it is no shard.
        passed_over: where a runner notes instances of which no further sample is to be asked for, as no cap has room
            for one.
        is_recorded: whether an (instance, sample) is completed, asked for by this command or not; None: not known.
    """

    directory: Path
    run_id: str
    spent_usd: Decimal
    sweep_ledger: Path
    engines: EnginePool
    shards: int | None = None
    is_recorded: Callable[[tuple[str, int]], bool] | None = None
    passed_over: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class WantedSamples:
    """The samples of one prompt that are to be asked for; counted, not held: there may be a billion.

    Args:
        total: samples are numbered from 0 to ``total`` - 1.
        settled: the numbers below ``total`` that are not wanted.
    """

    instance_id: str
    prompt: Prompt
    decoding: Decoding
    total: int
    settled: Set[int] = frozenset()

    @property
    def count(self) -> int:
        return self.total - len(self.settled)

    def requests(self) -> Iterator[Request]:
        """One request for each sample, made when it is read."""
        numbers = (number for number in range(self.total) if number not in self.settled)
        return (Request(self.instance_id, number, self.prompt, self.decoding) for number in numbers)


class Runner(Protocol):
    """The ``runner`` group. Constructors are cheap: no weights, no client, no key, no network."""

    label: str
    """``model_name_or_path`` of the predictions; the same for every instance."""

    decoding: Decoding

    order: ClassVar[Order]
    """The order of instances that suits this runner."""

    context_window: int | None
    """Tokens, prompt and output together; None where it is not known. May be read after :meth:`check`."""

    def check(self, *, dry_run: bool = False) -> None:
        """Refuse, with a ConfigError, what can be refused before anything is loaded or paid for: a decoding that the
        model cannot honour, a missing key, an unknown price, a checkpoint that is not there.

        Args:
            dry_run: nothing will be sent, so no key is needed.
        """
        ...

    def begin(self, context: RunContext) -> None:
        """Called once, between :meth:`check` and :meth:`run`. Opens and loads nothing."""
        ...

    def token_counter(self) -> TokenCounter:
        """The model's tokenizer, or an estimate that says so. Loads a tokenizer at most, never weights."""
        ...

    def estimate(self, wanted: Iterable[WantedSamples]) -> Estimate:
        """What a run would cost. Nothing is asked, no weights are loaded; the time it takes does not depend on how
        many samples are wanted."""
        ...

    def run(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """Answer ``requests``, read lazily, and hand over each outcome the moment it exists.

        The samples of an instance come one after the other. Once ``stop`` is set nothing new is started, what is in
        flight is finished, and the call returns.

        Raises:
            BudgetExceeded: after everything in flight was handed over.
            ProviderFatal: no request of this run can succeed.
        """
        ...

    @property
    def in_flight(self) -> int:
        """Requests that are being answered now. Read by a signal handler: it only looks."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Live figures for progress, summary and tracker, such as ``concurrency`` or ``cache_hit_rate``."""
        ...
