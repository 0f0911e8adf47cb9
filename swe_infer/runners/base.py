"""What a runner is: the way completions are had. The loop around it is :mod:`swe_infer.runners.run`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from swe_infer.types import Decoding, Estimate, OnOutcome, Outcome, Prompt, Request, TokenCounter

Order = Literal["dataset", "longest_first"]

T = TypeVar("T")


class SharedResources:
    """What outlives a run of this process, such as a loaded model: one object of each class."""

    def __init__(self) -> None:
        self._made: dict[type[Any], Any] = {}

    def get(self, kind: type[T]) -> T:
        """The object of class ``kind``, made without arguments when it is first asked for."""
        if kind not in self._made:
            self._made[kind] = kind()
        found: T = self._made[kind]
        return found


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a runner learns of the run that it serves.

    Args:
        directory: the run directory, held by this process.
        run_id: the run's name where runs share something.
        spent_usd: what earlier tries of this run paid, by its records.
        sweep_ledger: where all runs of a sweep keep what they spend.
        resources: shared with the other runs of this process.
        shards: of how many shards of one run this is one; None: it is no shard.
        passed_over: where a runner notes instances of which no further sample is to be asked for, as no cap has room
            for one.
        is_recorded: whether an (instance, sample) is completed, asked for by this command or not; None: not known.
    """

    directory: Path
    run_id: str
    spent_usd: Decimal
    sweep_ledger: Path
    resources: SharedResources
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


class RequestStream:
    """The requests of one run on their way to an engine, and their outcomes on the way back.

    Args:
        requests: read when their turn comes.
        on_outcome: takes each outcome the moment it exists.
        stop: once set, no further request is read.
        on_done: called when all requests are read and answered.
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
        """What ended this run before its time. It ends no other run."""
        self.broken = False
        """Whether outcomes can no longer be delivered."""
        self.done = False
        self._source = iter(requests)
        self._on_outcome = on_outcome
        self._on_done = on_done
        self._observe: Callable[[Outcome], None] = lambda outcome: None
        self._exhausted = False
        self._held = False
        self._pending: dict[tuple[str, int], Request] = {}

    @property
    def in_flight(self) -> int:
        """Requests that were started and have no outcome yet."""
        return len(self._pending)

    def observe(self, observer: Callable[[Outcome], None]) -> None:
        """Let ``observer`` see each outcome before it is delivered."""
        self._observe = observer

    def next_request(self) -> Request | None:
        """The next request, which the caller holds until it is started or the next one is read; None at the end."""
        self._held = False
        if not self._exhausted and not self.broken and not self.stop.is_set():
            try:
                request = next(self._source, None)
            except Exception as error:  # noqa: BLE001 - it ends this run alone, which reports it
                self.error, request = error, None
            if request is not None:
                self._held = True
                return request
        self._exhausted = True
        self._check_done()
        return None

    def start(self, request: Request) -> None:
        self._pending[request.key] = request

    def deliver(self, key: tuple[str, int], outcome: Outcome) -> None:
        """Hand over the outcome of a request that was started."""
        request = self._pending.pop(key)
        self._observe(outcome)
        if not self.broken:
            try:
                self._on_outcome(request, outcome)
            except Exception as error:  # noqa: BLE001 - it ends this run alone, which reports it
                self.error, self.broken = error, True
        self._check_done()

    def fail(self, error: BaseException) -> None:
        """The engine ended before this run did."""
        if not self.done and self.error is None:
            self.error = error

    def _check_done(self) -> None:
        if self._exhausted and not self._held and not self._pending and not self.done:
            self.done = True
            self._on_done()


class EngineSharing(Protocol):
    """What a runner offers whose engine can answer several runs at once. Each run gets the answers that it would get
    by itself."""

    max_concurrent_jobs: int
    """Runs that one engine answers at once, at most."""

    @property
    def engine_key(self) -> Hashable:
        """Runners with the same one can share an engine."""
        ...

    def join(self, stream: RequestStream, points: int) -> None:
        """Prepare for the requests of this runner's run, one of ``points`` runs; loads the engine.

        Raises what :meth:`Runner.run` raises before the first outcome.
        """
        ...

    def serve(self, streams: Sequence[RequestStream], stop: threading.Event) -> None:
        """Answer the requests of several runs, each of whose runners has joined; ``stop`` ends them all. What goes
        wrong with one run is in its stream's ``error``; what is raised here ends all that are not done."""
        ...


class Runner(Protocol):
    """The ``runner`` group. Constructors are cheap: no weights, no client, no key, no network."""

    label: str
    """``model_name_or_path`` of the predictions; the same for every instance."""

    decoding: Decoding

    order: ClassVar[Order]
    """The order of instances that suits this runner."""

    context_window: int | None
    """Tokens, prompt and output together; None where it is not known. May be read after :meth:`check`."""

    @property
    def sharing(self) -> EngineSharing | None:
        """How several runs are answered at once; None where each is answered by itself."""
        ...

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
