"""The runner for models behind an API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar

from swe_infer.api.background import BackgroundResponses
from swe_infer.api.batch import Batches, BatchSettings
from swe_infer.api.batch_journal import ItemKey, Journal, open_batches, unrecorded_usd
from swe_infer.api.budget import CostBudget
from swe_infer.api.budget_address import BudgetAddress, is_budget_address
from swe_infer.api.budget_client import check_budget_server
from swe_infer.api.cache import ResponseCache
from swe_infer.api.chain import Chain
from swe_infer.api.coordination import Interrupted
from swe_infer.api.dispatch import Dispatcher, PromptCaching, relaxed_gc, run_fairly
from swe_infer.api.endpoints import Endpoint, Endpoints
from swe_infer.api.estimate import Planned, estimate
from swe_infer.api.first_answers import FirstAnswers
from swe_infer.api.ledger import CapLedger, Ledger
from swe_infer.api.limits import Limiter, Limits
from swe_infer.api.pricing import PriceTable, field_with_fees, price_table_for
from swe_infer.api.prompt_cache import PromptCacheIndex
from swe_infer.api.remote_ledger import RemoteLedger
from swe_infer.api.retry import Retry
from swe_infer.api.sweep_ledgers import record_ledger, recorded_address, recorded_ledgers
from swe_infer.api.tokens import counter_of
from swe_infer.errors import CheckpointError, ConfigError, StoreError, SweInferError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.locks import Locks
from swe_infer.options import Option
from swe_infer.presets import warnings_of, with_known_rules
from swe_infer.providers.base import Provider
from swe_infer.resources import expanded
from swe_infer.runners.base import ConcurrentRun, ConnectionSharing, Order, PendingSamples, RunContext
from swe_infer.text import log_once
from swe_infer.types import (
    ApiModel,
    Budget,
    Decoding,
    Estimate,
    LlamaModel,
    OnOutcome,
    PathText,
    Range,
    Request,
    TokenCounter,
)

logger = logging.getLogger(__name__)

_LEDGER = "ledger.sqlite"
_STOP_POLL_S = 0.2
_MAX_MISSES = 1_000
"""Consecutive samples missing from the response cache before the search for a prompt's samples ends."""


@dataclass(kw_only=True, eq=False, repr=False)
class ApiRunner:
    """Answers requests through an API.

    With ``prompt_caching="always"``, prompts that only runs share (a sweep over one dataset) are cached too, and
    concurrent runs wait for each other's first request of a prompt.

    Raises:
        ConfigError: the provider does not serve ``model``.
    """

    order: ClassVar[Order] = "dataset"
    sharing: ClassVar[None] = None
    costs_money: ClassVar[bool] = True

    model: Annotated[ApiModel | LlamaModel, Option("The model.", "answer")]
    provider: Annotated[Provider, Option("The API that serves the model.", "answer")]
    decoding: Annotated[Decoding, Option("Sampling parameters.", "answer")]
    budget: Annotated[Budget, Option("Cost limits in dollars.", "scope")] = field(default_factory=Budget)
    retry: Annotated[Retry, Option("Retries of failed requests.", "speed")] = field(default_factory=Retry)
    limits: Annotated[Limits, Option("Concurrency and rate limits.", "speed")] = field(default_factory=Limits)
    batches: Annotated[BatchSettings, Option("Size and polling of batches and background responses.", "speed")] = (
        field(default_factory=BatchSettings)
    )
    prompt_caching: Annotated[
        PromptCaching,
        Option("auto: cache prompts that samples share; always: also those that runs share; never.", "speed"),
    ] = "auto"
    response_cache: Annotated[
        PathText | None, Option("A directory for answers that runs share; null: none.", "speed")
    ] = None
    locks: Annotated[Locks, Option("How ledgers and caches are locked between processes.", "speed")] = "os"
    max_concurrent_jobs: Annotated[
        int, Option("Maximum number of jobs of a sweep that share one connection and its rate limits.", "speed")
    ] = 8

    def __post_init__(self) -> None:
        if self.max_concurrent_jobs < 1:
            raise ConfigError(f"runner.max_concurrent_jobs={self.max_concurrent_jobs}: must be at least 1")
        self.label = self.model.label
        self._model = with_known_rules(self.provider.served(_with_prompt_format(self.model)), self.provider.name)
        self._cache_directory = (
            None if self.response_cache is None else expanded(self.response_cache, "runner.response_cache")
        )
        if self.budget.ledger is not None:
            BudgetAddress.parse(self.budget.ledger, "budget.ledger")
        if (
            self.locks == "single_writer"
            and self.limits.shared is not None
            and not is_budget_address(self.limits.shared)
        ):
            raise ConfigError(
                "runner.limits.shared coordinates processes through file locks; set it to null, or to the address of "
                "a swe-infer-budget server, with locks=single_writer"
            )
        self.context_window = self._model.context_window
        self._parts = 1
        self._context: RunContext | None = None
        self._chain: Chain | None = None
        self._batches: Batches | None = None
        self._endpoints: Endpoints | None = None
        self._budget: CostBudget | None = None
        self._max_pending = 0
        self._unrecorded_usd = Decimal(0)
        """What ledgers charged for requests of earlier commands beyond the records and the journal, as they were in
        flight when their process was killed."""
        self._journalled_usd = Decimal(0)
        """What may have been billed for requests of earlier commands, and is in the journal alone."""

    def check_prefill(self, prefill: str) -> None:
        self.provider.check_prefill(self._model, prefill)

    def check_conversation(self) -> None:
        self.provider.check_conversation(self._model)

    def image_fault(self, images: Sequence[str]) -> str | None:
        endpoints = self.provider.endpoints(self._model)
        return next(filter(None, (provider.image_fault(model, images) for provider, model in endpoints)), None)

    def check(self, *, dry_run: bool = False) -> None:
        if self._model.max_output_tokens is not None and self.decoding.max_new_tokens > self._model.max_output_tokens:
            raise ConfigError(
                f"decoding.max_new_tokens={self.decoding.max_new_tokens}: {self._model.name} outputs at most "
                f"{self._model.max_output_tokens} (model.max_output_tokens)"
            )
        self.provider.check(self._model, self.decoding)
        if self.provider.mode == "batch" and not self.provider.has_batches:
            raise ConfigError(f"provider.mode=batch: {self.provider.name} has no batches; use provider.mode=live")
        prices = self._price_table(self.provider)
        if prices is not None and (missing := prices.unlisted(cache_writes=self.prompt_caching != "never")):
            warning = f"{prices.source} has no price for {missing}: the cost may be unknown"
            log_once(logger, logging.WARNING, warning)
        if prices is not None and (field := field_with_fees(self._model, prices)):
            log_once(logger, logging.WARNING, f"the cost leaves out what {self.provider.name} charges for {field}")
        if not dry_run:
            self.provider.check_access()
            for key, address in (("budget.ledger", self.budget.ledger), ("runner.limits.shared", self.limits.shared)):
                if address is not None and is_budget_address(address):
                    check_budget_server(address, key)
        # Last: an error is the only line.
        if self._model.extra_body:
            fields = ", ".join(self._model.extra_body)
            log_once(logger, logging.INFO, f"model.extra_body: {fields}: sent as given, not checked")
        for warning in warnings_of(self._model, self.provider.name):
            log_once(logger, logging.WARNING, warning)

    def bind(self, context: RunContext) -> None:
        self._context = context
        if self.budget.across == "division":
            if context.shards is None:
                raise ConfigError(
                    "budget.across=division divides the budget among shards: set shard.count and shard.index"
                )
            cap = None if self.budget.max_usd is None else self.budget.max_usd / context.shards
            self.budget, self.limits = replace(self.budget, max_usd=cap), self.limits.divided(context.shards)
            self._parts = context.shards
        self.provider.keep_log(context.directory)
        billed: dict[ItemKey, Decimal] = {}
        unfinished = open_batches(context.directory, billed)
        for kind, key, nouns, now in (
            ("batch", "provider.mode=batch", "batches", self.provider.mode == "batch"),
            ("background", "provider.background=true", "background responses", bool(self.provider.background)),
        ):
            count = sum(batch.kind == kind for batch in unfinished)
            if count and not now:
                where = f"of this run are still at the provider ({count})"
                raise ConfigError(f"{nouns} {where}; collect them with {key} first")
        if self._has_journal:
            self._journalled_usd = unrecorded_usd(billed, context.is_recorded)
        self._read_ledgers(context)
        if self.budget.ledger is None and (address := recorded_address(context.directory)) is not None:
            if self.budget.sweep_max_usd is not None:
                raise ConfigError(
                    f"budget.sweep_max_usd: an earlier command of this run kept it at {address}, where other runs "
                    f"may count too: add budget.ledger={address}, or set budget.max_usd instead"
                )
            logger.warning(
                "an earlier command of this run kept its budget at %s: what was in flight when it was killed is only "
                "known to a command with budget.ledger=%s and budget.sweep_max_usd",
                address, address,
            )  # fmt: skip

    def token_counter(self) -> TokenCounter:
        return counter_of(self._model, self.provider.pricing_id)

    def generate(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """See :class:`swe_infer.runners.base.Runner`. Runs an event loop in the calling thread."""
        self.generate_rounds([requests], on_outcome, stop)

    def generate_rounds(
        self, rounds: Iterable[Iterable[Request]], on_outcome: OnOutcome, stop: threading.Event
    ) -> None:
        """See :class:`swe_infer.runners.base.Runner`. The provider stays open, with its server if it runs one."""
        run = ConcurrentRun(self, rounds, on_outcome, stop, on_done=lambda: None)
        (error,) = self.generate_concurrently([run], stop)
        if error is not None:
            raise error

    @property
    def connection(self) -> ConnectionSharing | None:
        live = self.provider.mode == "live" and not self.provider.background
        return self if self.max_concurrent_jobs > 1 and live and self.locks == "os" else None

    @property
    def engine_key(self) -> str:
        """Equal for runs with the same model, provider and limits. The provider names where its key comes from."""
        part: Any = self.provider
        provider = asdict(part) if is_dataclass(part) and not isinstance(part, type) else id(part)
        has_cap = self.budget.max_usd is not None or self.budget.sweep_max_usd is not None  # it decides the tier
        return repr((type(self.provider), provider, self._model, self.limits, self._parts, has_cap))

    def generate_concurrently(
        self, runs: Sequence[ConcurrentRun], stop: threading.Event
    ) -> list[BaseException | None]:
        """See :class:`swe_infer.runners.base.ConnectionSharing`. Each run has its own budget, retries and records."""
        try:
            return run_fairly(self._generate(runs, stop))
        except asyncio.CancelledError:  # the second Ctrl-C
            raise KeyboardInterrupt from None

    async def _generate(self, runs: Sequence[ConcurrentRun], stop: threading.Event) -> list[BaseException | None]:
        errors: list[BaseException | None] = [None] * len(runs)
        runners: dict[int, ApiRunner] = {}
        limiters: dict[int, Limiter] = {}
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        async with AsyncExitStack() as stack:
            # Cancel between two steps of the loop, so that no answer is lost between the socket and the disk.
            stack.enter_context(INTERRUPTS.second(lambda: loop.call_soon_threadsafe(task.cancel)))
            for number, run in enumerate(runs):
                assert isinstance(run.runner, ApiRunner)
                try:
                    run.runner._open_chain(self.provider, limiters, stack, len(runs))
                    runners[number] = run.runner
                except StoreError as error:
                    if not stop.is_set():  # otherwise it ended the wait for another process
                        errors[number] = error
                except Exception as error:  # noqa: BLE001 - ends this run alone, which reports it
                    errors[number] = error
            for limiter in limiters.values():
                stack.callback(limiter.close)
            stack.push_async_callback(self.provider.close)
            if not runners or not await self._open_provider(stop):
                return errors
            stack.enter_context(relaxed_gc())
            ends = await asyncio.gather(
                *(runner._answer(runs[number]) for number, runner in runners.items()), return_exceptions=True
            )
            for number, end in zip(runners, ends, strict=True):
                if isinstance(end, Interrupted):
                    logger.debug("%s", end)
                else:
                    errors[number] = end
        return errors

    def _open_chain(self, provider: Provider, limiters: dict[int, Limiter], stack: AsyncExitStack, runs: int) -> None:
        """Opens the caches and ledgers of this run, which ``stack`` closes.

        Args:
            provider: shared by all runs.
            limiters: of its endpoints, in their order; created by the first run.
            runs: number of runs that share them.
        """
        prices = self._price_table(provider)
        if prices is not None:
            batch = ", in batches" if provider.mode == "batch" else ""
            log_once(logger, logging.INFO, f"prices of {self._model.name}: {prices.source}{batch}")
        has_answers = self._context is not None and self._context.spent_usd > 0
        endpoints = []
        for number, (part, model) in enumerate(provider.endpoints(self._model)):
            if number not in limiters:
                limiters[number] = Limiter(self.limits, part.max_concurrency, self._parts, part.name)
            first_answers = FirstAnswers(has_answers)
            prices_there = self._price_table_at(part, model)
            endpoints.append(Endpoint(part, model, prices_there, limiters[number], first_answers=first_answers))
        self._endpoints = Endpoints(endpoints)
        cache = None if self._cache_directory is None else ResponseCache(self._cache_directory, self.locks)
        if cache is not None:
            stack.callback(cache.close)
        self._budget = self._cost_budget()
        stack.callback(self._budget.close)
        self._chain = Chain(
            self._endpoints, self._budget, self.retry, self.token_counter(), cache, self._unrecorded_usd
        )
        ahead = 2 if runs == 1 else 1  # the prompts of all runs are in memory
        self._max_pending = ahead * sum(part.max_concurrency for part, _ in provider.endpoints(self._model))

    async def _answer(self, run: ConcurrentRun) -> None:
        """Answers the requests of this run; its chain and the provider are open."""
        chain, endpoints, budget = self._chain, self._endpoints, self._budget
        assert chain is not None
        assert endpoints is not None
        assert budget is not None
        try:
            if self._has_journal:
                await self._run_batches(endpoints.all[0], budget, run.rounds, run.on_outcome, run.stop)
                return
            cached_prompts = self._prompt_cache_index()
            with contextlib.closing(cached_prompts) if cached_prompts is not None else contextlib.nullcontext():
                over_budget = None if self._context is None else self._context.over_budget
                for requests in run.rounds:
                    dispatcher = Dispatcher(
                        chain, self._max_pending, self.prompt_caching, cached_prompts, over_budget
                    )
                    await dispatcher.dispatch(requests, run.on_outcome, run.stop)
        finally:
            run.on_done()

    async def _open_provider(self, stop: threading.Event) -> bool:
        """Open the provider, which may load a model first; False if ``stop`` was set meanwhile."""
        opening = asyncio.ensure_future(self.provider.open())
        while not (await asyncio.wait([opening], timeout=_STOP_POLL_S))[0]:
            if stop.is_set():
                opening.cancel()
        if opening.cancelled():
            return False
        await opening
        return True

    async def _run_batches(
        self,
        endpoint: Endpoint,
        budget: CostBudget,
        rounds: Iterable[Iterable[Request]],
        on_outcome: OnOutcome,
        stop: threading.Event,
    ) -> None:
        chain = self._chain
        assert chain is not None
        if self._context is None:
            raise ConfigError("batches and background responses need a run directory")
        journal = Journal(self._context.directory)
        queue = BackgroundResponses if self.provider.background else Batches
        try:
            for requests in rounds:
                submitted = 0 if self._batches is None else self._batches.submitted
                self._batches = queue(
                    self.provider.deferred(),
                    self._model,
                    self.decoding,
                    endpoint,
                    budget,
                    chain.bounds,
                    self.retry,
                    self.batches,
                    journal,
                    cached=chain.cached_completion,
                    keep=lambda request, answer: chain.store(request, answer, endpoint),
                    over_budget=self._context.over_budget,
                    is_recorded=self._context.is_recorded,
                )
                self._batches.submitted = submitted
                await self._batches.process(
                    requests, lambda request, outcome: on_outcome(request, chain.with_earlier_bills(outcome)), stop
                )
        finally:
            journal.close()

    def estimate(self, pending: Iterable[PendingSamples]) -> Estimate:
        """See :class:`swe_infer.runners.base.Runner`. Answers in the response cache are not counted."""
        counter = self.token_counter()
        cache = None if self._cache_directory is None else ResponseCache(self._cache_directory, self.locks)
        hits = 0

        def planned() -> Iterator[Planned]:
            nonlocal hits
            for samples in pending:
                known = cache is not None and not samples.further_tokens
                cached = self._cached_samples(cache, samples) if cache is not None and known else 0
                hits += cached
                if samples.count > cached:
                    tokens = counter(samples.prompt) + samples.further_tokens
                    yield Planned(tokens, samples.count - cached, samples.separate)

        endpoints = self.provider.endpoints(self._model)
        first, name = endpoints[0]
        prices, batch_prices = self._listed_prices(first, name, batch=False), None
        if self.provider.has_batches:
            batch_prices = self._listed_prices(self.provider, self._model, batch=True)
        try:
            found = estimate(
                planned(),
                tokens=counter.name,
                exact=counter.exact,
                max_new_tokens=self.decoding.max_new_tokens,
                prices=_known(prices),
                batch_prices=_known(batch_prices),
                max_concurrency=self.provider.max_concurrency,
                limits=self.limits,
                prompt_caching=self.prompt_caching,
                max_samples=min(provider.max_samples(model, self.decoding) for provider, model in endpoints),
                in_batches=self.provider.mode == "batch",
            )
        finally:
            if cache is not None:
                cache.close()
        return replace(found, response_cache_hits=hits, expected_usd=self._expected_usd(found))

    def _expected_usd(self, found: Estimate) -> Range | None:
        """The cost in the configured mode."""
        live, cached = found.live_usd, found.cached_usd
        if self.provider.mode == "batch" or live is None or cached is None:
            return found.batch_usd if self.provider.mode == "batch" else None
        return Range(min(live.low, cached.low), max(live.high, cached.high))

    @property
    def in_flight(self) -> int:
        return 0 if self._chain is None else self._chain.in_flight

    def _cached_samples(self, cache: ResponseCache, samples: PendingSamples) -> int:
        """How many of the samples are in the response cache. Stops after :data:`_MAX_MISSES` misses in a row."""
        cached = misses = 0
        for request in samples.requests():
            endpoints = self.provider.endpoints(self._model)
            keys = (key for provider, model in endpoints for key in cache.keys(request, model, provider))
            if any(map(cache.holds, keys)):
                cached, misses = cached + 1, 0
            elif (misses := misses + 1) == _MAX_MISSES:
                break
        return cached

    @property
    def unrecorded_usd(self) -> Decimal:
        if self._chain is None:
            return self._unrecorded_usd + self._journalled_usd
        if not self._has_journal:
            return self._chain.unrecorded_usd
        journalled_usd = self._journalled_usd if self._batches is None else self._batches.possibly_billed_usd
        return self._chain.earlier_usd + journalled_usd

    def _read_ledgers(self, context: RunContext) -> None:
        """Finds out what was in flight when an earlier command was killed, under whatever cap that one had."""
        try:
            for path in (context.directory / _LEDGER, *recorded_ledgers(context.directory)):
                if path.exists():
                    with contextlib.closing(Ledger(path, Decimal(0), context.run_id, self.locks)) as ledger:
                        self._count_earlier_spending(ledger, context, at_least=Decimal(0))
        except SweInferError as error:
            if not INTERRUPTS.stopping:  # Ctrl-C does not wait for another process
                logger.warning("what was in flight when an earlier command was killed is not known: %s", error)

    @property
    def _has_journal(self) -> bool:
        """Whether a journal keeps what may have been billed and is in no record yet."""
        return self.provider.mode == "batch" or bool(self.provider.background)

    def stats(self) -> Mapping[str, float]:
        """Requests in flight and their limit, requests sent, retried and refused, cache hits, and dollars of attempts
        without an answer in this command."""
        chain, endpoints = self._chain, self._endpoints
        if chain is None or endpoints is None:
            return {}
        counts = chain.counts
        if self._batches is not None:
            return {
                "batches_submitted": float(self._batches.submitted),
                "batches_open": float(self._batches.open),
                "response_cache_hits": float(counts.cache_hits),
            }
        stats = {
            "concurrency": float(sum(e.limiter.in_flight_of(endpoints) for e in endpoints.all)),
            "concurrency_level": float(sum(e.limiter.concurrency for e in endpoints.all)),
            "requests_sent": float(counts.sent),
            "requests_retried": float(counts.retried),
            "requests_refused": float(counts.refused),
        }
        if self._cache_directory is not None:
            lookups = counts.cache_hits + counts.cache_misses
            stats["response_cache_hits"] = float(counts.cache_hits)
            stats["response_cache_hit_rate"] = counts.cache_hits / lookups if lookups else 0.0
        if counts.possibly_billed:
            stats["possibly_billed_usd"] = float(counts.possibly_billed)
        if counts.usage.input_tokens:
            stats["prompt_cache_hit_rate"] = counts.usage.cached_input_tokens / counts.usage.input_tokens
        return stats

    def _price_table(self, provider: Provider) -> PriceTable | None:
        """The prices of the first endpoint; None with ``model.pricing=unknown``.

        Raises:
            ConfigError: the price of an endpoint is not known, and not declared unknown, or a cap needs it.
        """
        first, *_ = [self._price_table_at(part, model) for part, model in provider.endpoints(self._model)]
        return first

    def _price_table_at(self, provider: Provider, model: ApiModel) -> PriceTable | None:
        caps = [f"budget.{key}" for key in ("max_usd", "sweep_max_usd") if getattr(self.budget, key) is not None]
        prices = self._listed_prices(provider, model, batch=provider.mode == "batch")
        if prices is None:
            if caps:
                raise ConfigError(f"{caps[0]} needs a price, but model.pricing=unknown: state the price there")
            return None
        if caps and prices.depends_on_tier and prices.terms.service_tier is None:
            provider.fix_service_tier()
            prices = self._listed_prices(provider, model, batch=provider.mode == "batch")
            assert prices is not None
        missing = prices.unlisted(cache_writes=provider.mode == "live" and self.prompt_caching != "never")
        if missing is not None and caps:
            is_tier = missing.startswith(("service_tier=", "speed="))
            where = " of provider.service_tier and model.extra_body" if is_tier else ""
            raise ConfigError(
                f"{caps[0]} needs a price, and {prices.source} has none for {missing}: leave that out{where}, or "
                "state prices in model.pricing"
            )
        if caps and (field := field_with_fees(model, prices)):
            raise ConfigError(
                f"{field}: what {provider.name} charges for it beside the tokens is not known before the answer; "
                f"leave it out, or {caps[0]}"
            )
        return prices

    def _listed_prices(self, provider: Provider, model: ApiModel, *, batch: bool) -> PriceTable | None:
        terms = provider.price_terms(model)
        return price_table_for(model, provider.pricing_id, batch=batch, terms=terms, address=provider.address)

    def _cost_budget(self) -> CostBudget:
        """The caps and their ledgers, which are on disk so that they count what was in flight when a process was
        killed. Without a run (no :meth:`bind`) the ledger is in memory."""
        context = self._context
        path = None if context is None else context.directory / _LEDGER
        ledgers: list[tuple[str, CapLedger]] = []
        if self.budget.max_usd is not None:
            ledgers.append(("budget.max_usd", self._ledger(path, self.budget.max_usd)))
        if self.budget.sweep_max_usd is not None:
            if context is None:
                raise ConfigError("budget.sweep_max_usd: this runner is part of no sweep; use budget.max_usd")
            ledgers.append(("budget.sweep_max_usd", self._sweep_ledger(context, self.budget.sweep_max_usd)))
        return CostBudget(ledgers)

    def _prompt_cache_index(self) -> PromptCacheIndex | None:
        """The index, shared by concurrent runs, of prompts in the provider's cache; None if not used."""
        if self.prompt_caching != "always" or self._context is None or self.locks == "single_writer":
            return None
        provider, model = self.provider.endpoints(self._model)[0]
        cached_s = 3600.0 if provider.price_terms(model).cache_ttl == "1h" else 300.0
        return PromptCacheIndex(self._context.sweep_ledger.with_name("prompt_cache.sqlite"), cached_s=cached_s)

    def _ledger(self, path: Path | None, cap_usd: Decimal) -> Ledger:
        context = self._context
        ledger = Ledger(path, cap_usd, "run" if context is None else context.run_id, self.locks)
        if context is not None:
            self._count_earlier_spending(ledger, context, at_least=context.spent_usd + self._unrecorded_usd)
        return ledger

    def _sweep_ledger(self, context: RunContext, cap_usd: Decimal) -> CapLedger:
        if self.budget.ledger is None:
            record_ledger(context.directory, context.sweep_ledger)
            return self._ledger(context.sweep_ledger, cap_usd)
        record_ledger(context.directory, self.budget.ledger)
        ledger = RemoteLedger(self.budget.ledger, cap_usd, context.run_id, "budget.ledger")
        self._count_earlier_spending(ledger, context, at_least=context.spent_usd + self._unrecorded_usd)
        return ledger

    def _count_earlier_spending(self, ledger: CapLedger, context: RunContext, *, at_least: Decimal) -> None:
        spent_usd = ledger.record_earlier_spending(at_least)
        self._unrecorded_usd = max(self._unrecorded_usd, spent_usd - context.spent_usd - self._journalled_usd)


def _known(prices: PriceTable | None) -> PriceTable | None:
    """``prices``, or None if they lack the price of what requests ask for."""
    return None if prices is None or prices.unlisted(cache_writes=True) is not None else prices


def _with_prompt_format(model: ApiModel | LlamaModel) -> ApiModel | LlamaModel:
    """``model`` with the prompt format that ``auto`` stands for."""
    if isinstance(model, ApiModel) or model.prompt_format != "auto":
        return model
    from swe_infer.llama.tokenizer import prompt_format_of

    try:
        return replace(model, prompt_format=prompt_format_of(model))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; model.prompt_format=chat or raw does not need it") from error
