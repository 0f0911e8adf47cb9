"""The interface of runners, which turn requests into completions. Their caller is :mod:`swe_infer.runners.run`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from swe_infer.interrupts import Stopped
from swe_infer.types import Decoding, Estimate, OnOutcome, Outcome, Prompt, Request, TokenCounter

Order = Literal["dataset", "longest_first"]


class SharedResource(Protocol):
    """An object that runs share."""

    def close(self) -> None:
        """Release memory and processes."""
        ...


T = TypeVar("T", bound=SharedResource)


class ProcessResources:
    """Objects that all runs of this process share, such as loaded models: one instance of each class."""

    def __init__(self) -> None:
        self._instances: dict[type[Any], Any] = {}

    def get(self, kind: type[T]) -> T:
        """The instance of ``kind``; the first call creates it without arguments."""
        if kind not in self._instances:
            self._instances[kind] = kind()
        instance: T = self._instances[kind]
        return instance

    def find(self, kind: type[T]) -> T | None:
        """The instance of ``kind``; None if there is none yet."""
        return self._instances.get(kind)

    def close(self) -> None:
        """Close the instances. Commands leave that to the end of their process."""
        while self._instances:
            self._instances.popitem()[1].close()


@dataclass(frozen=True, slots=True)
class RunContext:
    """The run that a runner serves.

    Args:
        directory: the run directory, locked by this process.
        run_id: identifies the run in ledgers and caches that runs share.
        spent_usd: cost of this run's records so far, with what attempts without an answer may have cost.
        sweep_ledger: the ledger file of all runs of a sweep.
        resources: shared with the other runs of this process.
        shards: number of shards that the whole run is divided into; None: this run is not a shard.
        is_recorded: whether a turn of an (instance, sample), or an auxiliary request of it
            (:attr:`swe_infer.types.Request.auxiliary`), is completed, even if this command does not cover it.
        over_budget: the runner adds instances of which no further sample fits under a cap.
    """

    directory: Path
    run_id: str
    spent_usd: Decimal
    sweep_ledger: Path
    resources: ProcessResources
    shards: int | None = None
    is_recorded: Callable[[tuple[str, int], int, str], bool] = lambda key, turn, auxiliary: False
    over_budget: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class PendingSamples:
    """The samples of one prompt to request, as a range: there may be a billion.

    Args:
        total: samples are numbered from 0 to ``total`` - 1.
        excluded: numbers below ``total`` that are not requested.
        further_tokens: of the input in addition to ``prompt``, such as of answers that are not known yet.
        separate: the further tokens of each sample are its own, so that one request cannot ask for several samples.
    """

    instance_id: str
    prompt: Prompt
    decoding: Decoding
    total: int
    excluded: Set[int] = frozenset()
    further_tokens: int = 0
    separate: bool = False

    @property
    def count(self) -> int:
        return self.total - len(self.excluded)

    def requests(self) -> Iterator[Request]:
        """One request for each sample, created lazily."""
        numbers = (number for number in range(self.total) if number not in self.excluded)
        return (Request(self.instance_id, number, self.prompt, self.decoding) for number in numbers)


class RequestStream:
    """Feeds the requests of one run to an engine, and delivers their outcomes.

    Args:
        requests: read lazily.
        on_outcome: called with each outcome as soon as it exists.
        stop: once set, no further request is read.
        on_done: called after the last outcome.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        on_outcome: OnOutcome,
        stop: threading.Event,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.stop = stop
        self.error: BaseException | None = None
        """What ended this run early. Other runs go on."""
        self.broken = False
        """Whether ``on_outcome`` raised; no further outcome is delivered."""
        self.done = False
        self._source = iter(requests)
        self._on_outcome = on_outcome
        self._on_done = on_done
        self._observe: Callable[[Outcome], None] = lambda outcome: None
        self._exhausted = False
        self._unstarted = 0
        """Requests that were read, and neither started nor dropped."""
        self._pending: dict[tuple[str, int], Request] = {}

    @property
    def in_flight(self) -> int:
        """Started requests without an outcome."""
        return len(self._pending)

    def observe(self, observer: Callable[[Outcome], None]) -> None:
        """Call ``observer`` with each outcome before it is delivered."""
        self._observe = observer

    def next_request(self) -> Request | None:
        """The next request, or None at the end. The stream is not done until the caller starts or drops it."""
        if not self._exhausted and not self.broken and not self.stop.is_set():
            try:
                request = next(self._source, None)
            except (Exception, Stopped) as error:  # noqa: BLE001 - ends this run alone, which reports it
                self.error, request = error, None
            if request is not None:
                self._unstarted += 1
                return request
        self._exhausted = True
        self._check_done()
        return None

    def start(self, request: Request) -> None:
        self._unstarted -= 1
        self._pending[request.key] = request

    def drop(self) -> None:
        """Leave a request that was read without an outcome."""
        self._unstarted -= 1
        self._check_done()

    def deliver(self, key: tuple[str, int], outcome: Outcome) -> None:
        """Pass the outcome of a started request to ``on_outcome``."""
        request = self._pending.pop(key)
        self._observe(outcome)
        if not self.broken:
            try:
                self._on_outcome(request, outcome)
            except Exception as error:  # noqa: BLE001 - ends this run alone, which reports it
                self.error, self.broken = error, True
        self._check_done()

    def fail(self, error: BaseException) -> None:
        """Set the error of a run that is not done."""
        if not self.done and self.error is None:
            self.error = error

    def _check_done(self) -> None:
        if self._exhausted and not self._unstarted and not self._pending and not self.done:
            self.done = True
            self._on_done()


class EngineSharing(Protocol):
    """Serves several runs with one engine. Each run gets the same answers as without sharing."""

    max_concurrent_jobs: int
    """Runs that one engine serves concurrently, at most."""

    @property
    def engine_key(self) -> Hashable:
        """Runners with equal keys can share an engine."""
        ...

    def join(self, stream: RequestStream, jobs: int) -> None:
        """Load the engine for the requests of this runner's run, one of ``jobs`` concurrent runs.

        Raises what :meth:`Runner.generate` raises before the first outcome.
        """
        ...

    def serve(self, streams: Sequence[RequestStream], stop: threading.Event) -> None:
        """Answer the requests of several runs, whose runners have all joined. ``stop`` ends all of them.

        An error of one run is stored in its stream's ``error``. An exception raised here ends every run that is not
        done.
        """
        ...


@dataclass(frozen=True, slots=True)
class ConcurrentRun:
    """The requests of one run among several, see :meth:`Runner.generate_rounds`.

    Args:
        on_done: called after the last outcome.
    """

    runner: Runner
    rounds: Iterable[Iterable[Request]]
    on_outcome: OnOutcome
    stop: threading.Event
    on_done: Callable[[], None]


class ConnectionSharing(Protocol):
    """Serves several runs through one connection to a provider, under its rate limits."""

    max_concurrent_jobs: int
    """Runs that are served concurrently, at most."""

    @property
    def engine_key(self) -> Hashable:
        """Runners with equal keys can share a connection."""
        ...

    def generate_concurrently(
        self, runs: Sequence[ConcurrentRun], stop: threading.Event
    ) -> list[BaseException | None]:
        """Answer the requests of several runs as :meth:`Runner.generate_rounds` does. ``stop`` ends all of them.

        Returns:
            For each run what ended it early, or None. An error of one run does not stop another.
        """
        ...


class Runner(Protocol):
    """The ``runner`` group. Constructors are cheap: no weights, no client, no key, no network."""

    label: str
    """``model_name_or_path`` of the predictions; the same for every instance."""

    decoding: Decoding

    order: ClassVar[Order]
    """The order in which this runner receives instances."""

    costs_money: ClassVar[bool]
    """Whether requests may be billed."""

    context_window: int | None
    """Tokens of prompt and output together; None if unknown. Set by :meth:`check`."""

    @property
    def sharing(self) -> EngineSharing | None:
        """How several runs share one engine; None if they cannot."""
        ...

    @property
    def connection(self) -> ConnectionSharing | None:
        """How several runs share one connection to a provider; None if they cannot."""
        ...

    def check(self, *, dry_run: bool = False) -> None:
        """Validate the configuration before anything is loaded or paid for.

        Args:
            dry_run: no request will be sent, so no API key is needed.

        Raises:
            ConfigError: an unsupported decoding option, a missing key, an unknown price, a missing checkpoint.
        """
        ...

    def check_prefill(self, prefill: str) -> None:
        """Raise ConfigError if the model cannot continue this beginning of an answer
        (:attr:`swe_infer.types.Prompt.prefill`)."""
        ...

    def check_conversation(self) -> None:
        """Raise ConfigError if the model cannot continue a conversation (:attr:`swe_infer.types.Prompt.turns`)."""
        ...

    def image_fault(self, images: Sequence[str]) -> str | None:
        """Why the model cannot be sent these images (URLs); None if it can."""
        ...

    def bind(self, context: RunContext) -> None:
        """Set the run. Called once, between :meth:`check` and :meth:`generate`; opens and loads nothing."""
        ...

    def token_counter(self) -> TokenCounter:
        """Counts with the model's tokenizer, or estimates. May load a tokenizer, never weights."""
        ...

    def estimate(self, pending: Iterable[PendingSamples]) -> Estimate:
        """Estimates tokens, cost and time of a run. Sends no request and loads no weights. Takes time in proportion
        to the prompts, not to the samples."""
        ...

    def generate(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """Answer ``requests``, which are read lazily, and call ``on_outcome`` as soon as an outcome exists.

        The samples of an instance are adjacent. Once ``stop`` is set, requests in flight are finished, no other is
        started, and the call returns.

        Raises:
            BudgetExceeded: a cap is reached; the outcomes of requests in flight were delivered.
            ProviderFatal: no request of this run can succeed.
        """
        ...

    def generate_rounds(
        self, rounds: Iterable[Iterable[Request]], on_outcome: OnOutcome, stop: threading.Event
    ) -> None:
        """As :meth:`generate`, for several rounds of requests. The next round is read after every outcome of the one
        before was delivered. What :meth:`generate` opens or loads stays open in between."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests in flight. A signal handler reads it, so it has no side effects."""
        ...

    @property
    def unrecorded_usd(self) -> Decimal:
        """Dollars that the caps count for requests of this run, and that no outcome has stated yet."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Current figures for progress, summary and tracker, such as ``concurrency`` or ``cache_hit_rate``."""
        ...
