"""The runner for local Llama models, on the engine in :mod:`swe_infer.llama`.

The engine is imported late, so a configuration is checked without torch. Several runs may share an engine: prompts
are then computed once, and sequences of all runs decode in one batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, ClassVar

from swe_infer.errors import ConfigError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.llama.cluster import RayCluster
from swe_infer.llama.pool import EnginePool
from swe_infer.options import Option
from swe_infer.resources import is_installed
from swe_infer.runners.base import EngineSharing, Order, PendingSamples, RequestStream, RunContext
from swe_infer.types import (
    Completion,
    Decoding,
    Estimate,
    Failure,
    LlamaModel,
    OnOutcome,
    Outcome,
    Prompt,
    Range,
    Request,
    Skip,
    TokenCounter,
    Usage,
)

if TYPE_CHECKING:
    from swe_infer.llama.data_parallel import DataParallelEngine
    from swe_infer.llama.engine import Engine
    from swe_infer.llama.sequence import GenerationRequest, RequestOutput
    from swe_infer.llama.tokenizer import LlamaTokenizer

log = logging.getLogger(__name__)

_FORMATS = {"raw": "plain text (raw)", "chat": "rendered by the checkpoint's chat template (chat)"}


@dataclass(kw_only=True, eq=False, repr=False)
class LlamaRunner:
    """Answers requests with a Llama model on this machine or on a Ray cluster."""

    order: ClassVar[Order] = "longest_first"
    connection: ClassVar[None] = None
    costs_money: ClassVar[bool] = False

    model: Annotated[LlamaModel, Option("The checkpoint.", "answer")]
    decoding: Annotated[Decoding, Option("Sampling parameters.", "answer")]
    max_batch_tokens: Annotated[
        int, Option("Maximum tokens of one forward pass; longer prompts are processed in chunks.", "speed")
    ] = 2048
    max_sequences: Annotated[int, Option("Maximum number of sequences decoded concurrently.", "speed")] = 64
    kv_cache_gb: Annotated[
        float | None,
        Option("Size of the key-value cache in gigabytes (10^9 bytes); null: from the free memory.", "speed"),
    ] = None
    workers: Annotated[
        int | None,
        Option("Number of engines, one process each; null: one per GPU, or one on a CPU.", "speed"),
    ] = None
    stall_timeout_s: Annotated[
        float, Option("Seconds without a forward pass after which one of several engines is restarted.", "speed")
    ] = 600.0
    ray: Annotated[RayCluster | None, Option("The Ray cluster for the engines; null: this machine.", "speed")] = None
    max_concurrent_jobs: Annotated[
        int, Option("Maximum number of jobs of a sweep that share one engine.", "speed")
    ] = 8

    def __post_init__(self) -> None:
        for key in ("max_batch_tokens", "max_sequences", "max_concurrent_jobs"):
            if getattr(self, key) < 1:
                raise ConfigError(f"runner.{key}={getattr(self, key)}: must be at least 1")
        if self.kv_cache_gb is not None and not self.kv_cache_gb > 0:
            raise ConfigError(
                f"runner.kv_cache_gb={self.kv_cache_gb}: must be above 0, or null to use the free memory"
            )
        parts = self.model.tensor_parallel
        if parts < 1:
            raise ConfigError(f"model.tensor_parallel={parts}: must be at least 1")
        if parts > 1 and (self.workers or 1) > 1 and self.ray is None:
            raise ConfigError(
                f"runner.workers={self.workers}: a model with model.tensor_parallel={parts} needs runner.workers=null"
            )
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"runner.workers={self.workers}: must be at least 1, or null for one on each GPU")
        if not self.stall_timeout_s > 0:
            raise ConfigError(f"runner.stall_timeout_s={self.stall_timeout_s}: must be above 0")
        self.label = self.model.label
        self.context_window: int | None = self.model.context_window
        self._engines = EnginePool()
        self._engine: Engine | DataParallelEngine | None = None
        self._tokenizer: LlamaTokenizer | None = None
        self._stream: RequestStream | None = None
        self._jobs = 0
        """Runs that share the engine; 0: not shared."""
        self._usage = Usage()
        self._drafted = self._accepted = 0
        self._load_s = 0.0

    def check_prefill(self, prefill: str) -> None:
        """Every model continues one."""

    def image_fault(self, images: Sequence[str]) -> str | None:
        return "a local model reads text alone; dataset.images=false leaves the images out"

    def check_conversation(self) -> None:
        known = self.model.prompt_format
        if (self._load_tokenizer().prompt_format if known == "auto" else known) != "chat":
            raise ConfigError(
                "a further turn needs a chat model; set model.prompt_format=chat if the checkpoint has a chat "
                "template, or feedback=none"
            )

    def check(self, *, dry_run: bool = False) -> None:
        """Read the checkpoint's configuration, not its weights. A dry run needs its context window, too.

        Raises:
            ConfigError: the extra ``llama`` is not installed.
            CheckpointError: the checkpoint does not exist, or the engine does not support it.
            ConfigError: a context window below 2 tokens, or an invalid environment variable for the compiled kernels.
        """
        from swe_infer.llama.adapter import check_adapter
        from swe_infer.llama.config import read_config
        from swe_infer.llama.hub import config_directory
        from swe_infer.llama.native.build import check_limit

        _check_extra()
        check_limit()
        if self.ray is not None and not dry_run:
            self.ray.check()
        config = read_config(config_directory(self.model.path, "config.json"))
        config.check_division(self.model.tensor_parallel)
        window = self.model.context_window
        if window is not None and window < 2:
            raise ConfigError(f"model.context_window={window}: must be at least 2 tokens")
        if window is not None and window > config.context_window:
            log.warning("model.context_window=%d: the checkpoint states %d", window, config.context_window)
        self.context_window = window or config.context_window
        if self.model.prompt_format == "chat" or self.model.thinking is not None:
            self._load_tokenizer()  # refuses a checkpoint without the template
        if self.model.peft_path is not None:
            check_adapter(config_directory(self.model.peft_path, "adapter_config.json", key="model.peft_path"))

    def bind(self, context: RunContext) -> None:
        """Use the engines that the runs of this process share."""
        self._engines = context.resources.get(EnginePool)

    def token_counter(self) -> TokenCounter:
        return _Counter(self._load_tokenizer(), self.label)

    def estimate(self, pending: Iterable[PendingSamples]) -> Estimate:
        """Counts tokens with the checkpoint's tokenizer. The cost is 0, the time unknown."""
        counter = self.token_counter()
        instances = requests = input_tokens = 0
        for samples in pending:
            instances += samples.count > 0
            requests += samples.count
            input_tokens += samples.count * (counter(samples.prompt) + samples.further_tokens)
        tokens = Decimal(input_tokens)
        free = Range(Decimal(0), Decimal(0))
        return Estimate(
            instances=instances,
            requests=requests,
            response_cache_hits=0,
            tokens=counter.name,
            exact=True,
            input_tokens=Range(tokens, tokens),
            output_tokens=Range(Decimal(requests), Decimal(requests * self.decoding.max_new_tokens)),
            live_usd=free,
            cached_usd=free,
            batch_usd=None,
            seconds=None,
            limited_by="this machine",
            expected_usd=free,
        )

    def generate(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """See :class:`swe_infer.runners.base.Runner`. All work happens in the calling thread.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            ConfigError: this machine lacks the device, dtype or attention backend.
        """
        stream = RequestStream(requests, on_outcome, stop)
        self.join(stream)
        self.serve([stream], stop)
        if stream.error is not None:
            raise stream.error

    def generate_rounds(
        self, rounds: Iterable[Iterable[Request]], on_outcome: OnOutcome, stop: threading.Event
    ) -> None:
        """See :class:`swe_infer.runners.base.Runner`. The engine stays loaded."""
        for requests in rounds:
            self.generate(requests, on_outcome, stop)

    @property
    def sharing(self) -> EngineSharing | None:
        return self if self.max_concurrent_jobs > 1 else None

    def join(self, stream: RequestStream, jobs: int = 0) -> None:
        """See :class:`swe_infer.runners.base.EngineSharing`."""
        self._load_engine()
        self._stream, self._jobs = stream, jobs
        stream.observe(self._count)

    def serve(self, streams: Sequence[RequestStream], stop: threading.Event) -> None:
        """See :class:`swe_infer.runners.base.EngineSharing`. Everything happens in the calling thread."""
        from swe_infer.runners.llama_requests import engine_requests, origin

        engine = self._load_engine()

        def rejected(request: GenerationRequest, why: Failure | Skip) -> None:
            index, key = origin(request)
            streams[index].deliver(key, why)

        try:
            for answer in engine.generate(engine_requests(engine, streams), rejected, stop):
                index, key = origin(answer.request)
                streams[index].deliver(key, self._completion(answer))
                if all(stream.broken for stream in streams):
                    break
        finally:
            engine.abandon()

    @property
    def engine_key(self) -> tuple[object, ...]:
        """Runners with equal keys can share an engine."""
        limits = (self.max_batch_tokens, self.max_sequences, self.kv_cache_gb, self.stall_timeout_s)
        return (self.model, limits, self.workers, self.ray)

    @property
    def in_flight(self) -> int:
        return 0 if self._stream is None else self._stream.in_flight

    @property
    def unrecorded_usd(self) -> Decimal:
        return Decimal(0)

    def stats(self) -> Mapping[str, float]:
        if self._engine is None:
            return {}
        figures = {"load_s": round(self._load_s, 3), **self._engine.figures()}
        if self._jobs:  # the engine's figures cover all runs that share it
            tokens = self._usage.input_tokens
            figures |= {
                "concurrent_jobs": self._jobs,
                "cache_hit_rate": round(self._usage.cached_input_tokens / tokens, 4) if tokens else 0.0,
                "drafted_tokens": self._drafted,
                "accepted_tokens": self._accepted,
            }
        return figures

    def _count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Completion):
            self._usage += outcome.usage
            self._drafted += outcome.details["drafted_tokens"]
            self._accepted += outcome.details["accepted_tokens"]

    def _completion(self, answer: RequestOutput) -> Completion:
        usage = Usage(
            input_tokens=answer.prompt_tokens,
            cached_input_tokens=answer.cached_tokens,
            output_tokens=len(answer.token_ids),
        )
        details = {
            "model": self.label,
            "first_token_s": round(answer.first_token_s, 4),
            "forward_passes": answer.steps,
            "preemptions": answer.preemptions,
            "drafted_tokens": answer.drafted_tokens,
            "accepted_tokens": answer.accepted_tokens,
        }
        return Completion(
            text=answer.text,
            finish_reason=answer.finish_reason,
            usage=usage,
            cost_usd=Decimal(0),
            latency_s=answer.latency_s,
            details=details,
            patch=answer.patch,
        )

    def _load_engine(self) -> Engine | DataParallelEngine:
        from swe_infer.llama.engine import EngineOptions

        if self._engine is None:
            started = time.perf_counter()
            options = EngineOptions(
                self.max_batch_tokens,
                self.max_sequences,
                self.kv_cache_gb,
                self.workers,
                self.ray,
                self.stall_timeout_s,
            )
            with INTERRUPTS.stoppable():  # loading takes minutes, and no request is in flight
                self._engine = self._engines.get(self.model, options)
            self._load_s = time.perf_counter() - started
            self._engine.reset_stats()
            if self.model.prompt_format == "auto":
                log.info("%s: prompts are %s", self.label, _FORMATS[self._engine.tokenizer.prompt_format])
            self.context_window = self._engine.context_window
        return self._engine

    def _load_tokenizer(self) -> LlamaTokenizer:
        _check_extra()
        from swe_infer.llama.hub import config_directory
        from swe_infer.llama.tokenizer import LlamaTokenizer

        if self._tokenizer is None:
            directory = config_directory(self.model.path, "config.json")
            self._tokenizer = LlamaTokenizer.of(self.model, directory)
        return self._tokenizer


class _Counter:
    """Counts with the checkpoint's tokenizer."""

    exact = True

    def __init__(self, tokenizer: LlamaTokenizer, label: str) -> None:
        self.name = f"tokenizer of {label}"
        self._tokenizer = tokenizer

    def __call__(self, prompt: Prompt) -> int:
        return len(self._tokenizer.encode(prompt))


def _check_extra() -> None:
    if not all(map(is_installed, ("torch", "transformers", "tokenizers"))):
        raise ConfigError(
            "runner=llama: local models need an extra that is not installed; pip install 'swe_infer[llama]', or "
            "choose a model behind an API, such as model=gpt-4o"
        )
