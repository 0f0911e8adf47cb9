"""The nouns of the project: frozen values that every room shares. No behaviour beyond validation lives here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Protocol

from swe_infer.errors import ConfigError
from swe_infer.options import Option

FinishReason = Literal["stop", "length", "repetition", "refusal", "content_filter", "other"]
"""``stop``: end token, stop string or a closed patch. ``length``: ``max_new_tokens`` or the context window was
reached. ``repetition``: the local engine's loop detector. ``refusal`` and ``content_filter``: the provider's word."""

PatchStatus = Literal["applies", "repaired", "does_not_apply", "unchecked", "none"]

SamplingParameter = Literal["temperature", "top_p", "seed", "stop", "n"]

PathText = Annotated[str, "path"]
"""A string that names a file or a folder."""

MOST_SAMPLES = 10**12
"""Samples of one instance at most."""
MOST_NEW_TOKENS = 10**9
"""Tokens of one answer at most."""

DrafterKind = Literal["diff", "suffix", "none"]
"""Who guesses a local model's next tokens. The guesses are verified: they change the speed, never the output."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as providers want it. ``system`` is None where the dataset's text has no system part."""

    system: str | None
    user: str

    @property
    def text(self) -> str:
        """The dataset's text, whole, as a base model reads it."""
        return self.user if self.system is None else f"{self.system}\n{self.user}"


@dataclass(frozen=True, slots=True)
class Instance:
    """One task. ``metadata`` holds the dataset's other columns, untouched."""

    instance_id: str
    prompt: Prompt
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens are chosen. None means that the parameter is not sent and the model's own default holds."""

    temperature: Annotated[float | None, Option("Sampling temperature, 0 is greedy.", "answer")] = 0.0
    top_p: Annotated[float | None, Option("Nucleus mass, above 0 and at most 1.", "answer")] = None
    max_new_tokens: Annotated[
        int, Option("Upper bound on generated tokens, reasoning tokens included.", "answer")
    ] = 2048
    n: Annotated[int, Option("Samples for each instance.", "answer")] = 1
    seed: Annotated[int | None, Option("Seed of the run; each sample derives its own from it.", "answer")] = None
    stop: Annotated[
        tuple[str, ...],
        Option(r"Strings that end the output; on the command line \n, \t and \\ stand for the characters.", "answer"),
    ] = ()
    drafter: Annotated[
        DrafterKind, Option("Speculative decoding of a local model; the output is the same.", "speed")
    ] = "diff"

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0.0 <= self.temperature <= 2.0:
            raise ConfigError(f"decoding.temperature={self.temperature}: must be between 0 and 2")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"decoding.top_p={self.top_p}: must be above 0 and at most 1")
        for key, most in (("max_new_tokens", MOST_NEW_TOKENS), ("n", MOST_SAMPLES)):
            value = getattr(self, key)
            if value < 1:
                raise ConfigError(f"decoding.{key}={value}: must be at least 1")
            if value > most:
                raise ConfigError(f"decoding.{key}={value}: must be at most {most:,}")
        if any(not stop for stop in self.stop):
            raise ConfigError("decoding.stop holds an empty string, which would end every output at once")


def seed_of(decoding: Decoding, instance_id: str, sample: int) -> int:
    """The 63-bit seed of one (instance, sample).

    It depends on nothing else, so a result depends neither on its neighbours nor on the order of work. A run
    without ``decoding.seed`` uses 0: results are reproducible unless a different seed is asked for.
    """
    name = f"{decoding.seed or 0}\x1f{instance_id}\x1f{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted: an instance's prompt, which sample of it, and how to decode it.

    Args:
        files: the instance's files, path to content, which patches are checked against and drafts copy from. The
            samples of an instance share one mapping, which may be read only when it is first used.
    """

    instance_id: str
    sample: int
    prompt: Prompt
    decoding: Decoding
    files: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> tuple[str, int]:
        return (self.instance_id, self.sample)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as billed. Cached and cache-written tokens are part of ``input_tokens``; reasoning tokens are
    part of ``output_tokens``."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Args:
        text: what the model wrote, without special tokens and stop strings.
        cost_usd: dollars for all attempts together; 0 for a local model, None where the price is unknown.
        latency_s: from the first attempt's start to the answer's end, in seconds.
        attempts: requests sent, 1 where the first one succeeded.
        details: further facts for the record (JSON values), such as ``model``, ``request_id`` or engine counts.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    cost_usd: Decimal | None
    latency_s: float
    attempts: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer after all tries. ``error_type`` is the class name, ``message`` one line without secrets.

    ``usage`` and ``cost_usd`` are what was paid all the same (an answer that could not be read, say).
    """

    error_type: str
    message: str
    attempts: int = 1
    latency_s: float = 0.0
    usage: Usage = Usage()
    cost_usd: Decimal | None = Decimal(0)


@dataclass(frozen=True, slots=True)
class Skip:
    """Not asked, and asking again would not help. ``reason`` is a class name such as ``ContextOverflow``."""

    reason: str
    message: str


Outcome = Completion | Failure | Skip


@dataclass(frozen=True, slots=True)
class PatchResult:
    """What became of an answer.

    Args:
        patch: a unified diff that ``git apply`` reads, with its final newline; empty where ``status`` is ``none``.
        reason: why there is no patch, or why (and in which hunk) it does not apply; None where it applies.
        repairs: what was done to make it apply, in order, in the words of the ``patches`` room.
        format: how the patch was found in the answer (``fence``, ``tag``, ``raw``, ``search_replace``, …).
    """

    patch: str
    status: PatchStatus
    reason: str | None = None
    repairs: tuple[str, ...] = ()
    format: str | None = None


class TokenCounter(Protocol):
    """Counts a prompt's tokens. ``exact`` is False for an estimate, and then ``name`` says which."""

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def __call__(self, prompt: Prompt) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """Which attention backends may be used. Each name is a module of ``swe_infer.llama.attention``."""

    backends: Annotated[
        tuple[str, ...], Option("Backends in order of preference; the first that works here is used.", "speed")
    ] = ("flash_attn", "varlen", "native", "sdpa")

    def __post_init__(self) -> None:
        if not self.backends:
            raise ConfigError("model.attention.backends is empty: name at least one, such as [sdpa]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaModel:
    """A Llama checkpoint in the Hugging Face format."""

    path: Annotated[PathText, Option("A directory, or a name on the Hugging Face hub.", "answer")]
    peft_path: Annotated[
        PathText | None, Option("A directory or hub name of a LoRA adapter, merged at load.", "answer")
    ] = None
    name: Annotated[str | None, Option("model_name_or_path of the predictions; null: from the path.", "answer")] = (
        None
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option("Type of the arithmetic; auto: bfloat16 where the device has products of it, else float32.", "answer"),
    ] = "auto"
    device: Annotated[str, Option("auto, cpu, cuda, cuda:1, …; auto: CUDA where there is one.", "speed")] = "auto"
    attention: Annotated[AttentionChoice, Option("Which attention backends may be used.", "speed")] = (
        AttentionChoice()
    )
    prompt_format: Annotated[
        Literal["raw", "chat"],
        Option("raw: the prompt's text as it is; chat: through the tokenizer's chat template.", "answer"),
    ] = "raw"
    context_window: Annotated[
        int | None, Option("Tokens, prompt and output together; null: what the checkpoint is made for.", "answer")
    ] = None
    allow_pickle: Annotated[
        bool, Option("Load pytorch_model.bin where there is no safetensors file; it can run code.", "speed")
    ] = False
    tensor_parallel: Annotated[
        int, Option("Processes, each with a GPU of its own, that hold a part of every layer.", "speed")
    ] = 1

    @property
    def label(self) -> str:
        """The name that predictions carry; the same for every instance of a run."""
        if self.name is not None:
            return self.name
        parts = [p.rstrip("/").rsplit("/", 1)[-1] for p in (self.path, self.peft_path) if p]
        return "+".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Prices stated by the user, in dollars for a million tokens."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    input_per_mtok: Annotated[Decimal, Option("Input tokens.", "reporting")]
    output_per_mtok: Annotated[Decimal, Option("Output tokens.", "reporting")]
    cached_input_per_mtok: Annotated[
        Decimal | None, Option("Input tokens read from the cache; null: as input.", "reporting")
    ] = None
    cache_write_per_mtok: Annotated[
        Decimal | None, Option("Input tokens written to the cache; null: as input.", "reporting")
    ] = None

    def __post_init__(self) -> None:
        for key in ("input_per_mtok", "output_per_mtok", "cached_input_per_mtok", "cache_write_per_mtok"):
            value = getattr(self, key)
            if value is not None and (not value.is_finite() or value < 0):
                raise ConfigError(f"model.pricing.{key}={value}: must be a finite number of dollars, at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiModel:
    """A model behind an API, with the facts that decide what may be asked of it."""

    name: Annotated[str, Option("The model as the provider spells it (Azure: the deployment).", "answer")]
    context_window: Annotated[
        int | None, Option("Tokens, prompt and output together; null: the provider will say.", "answer")
    ] = None
    max_output_tokens: Annotated[
        int | None, Option("The most tokens that one answer may hold; null: not known.", "answer")
    ] = None
    parameters: Annotated[
        tuple[SamplingParameter, ...],
        Option("What the model takes, of temperature, top_p, seed, stop, n.", "answer"),
    ] = ("temperature", "top_p", "stop")
    max_tokens_key: Annotated[
        Literal["max_tokens", "max_completion_tokens"],
        Option("OpenAI chat's name for the output bound; older servers want max_tokens.", "answer"),
    ] = "max_completion_tokens"
    api_version: Annotated[
        str | None, Option("anthropic-version, or Azure's api-version; null: the provider's.", "answer")
    ] = None
    price_as: Annotated[
        str | None, Option("The name under which genai-prices knows it, where that differs.", "reporting")
    ] = None
    pricing: Annotated[
        Pricing | Literal["unknown"] | None,
        Option("Dollars for a million tokens, or unknown; null: from genai-prices.", "reporting"),
    ] = None
    extra_body: Annotated[
        Mapping[str, Any], Option("Further fields of the request body, sent as they are.", "answer")
    ] = field(default_factory=dict)
    one_sampler: Annotated[bool, Option("The model takes temperature or top_p, not both at once.", "answer")] = False
    billed_cache_writes: Annotated[
        bool, Option("OpenAI's prompt cache bills its writes (gpt-5.6 and later).", "reporting")
    ] = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("model.name is empty: name the model as its provider spells it")

    @property
    def label(self) -> str:
        """The name that predictions carry."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class DataShard:
    """One of ``count`` disjoint parts of the instances; both None: all of them."""

    index: Annotated[int | None, Option("Which shard, from 0.", "answer")] = None
    count: Annotated[int | None, Option("How many shards there are.", "answer")] = None

    def __post_init__(self) -> None:
        if (self.index is None) != (self.count is None):
            missing = "shard.index" if self.index is None else "shard.count"
            raise ConfigError(f"{missing} is missing: a shard needs both shard.index and shard.count")
        if self.index is not None and self.count is not None:
            if self.count < 1:
                raise ConfigError(f"shard.count={self.count}: must be at least 1")
            if not 0 <= self.index < self.count:
                raise ConfigError(f"shard.index={self.index}: must be between 0 and {self.count - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Hard caps in dollars.

    With ``across="division"`` ``max_usd`` and all quotas, stated or learnt, are those of the whole run, and each
    shard takes an equal part, for workers that share no file. With ``ledger`` ``max_usd`` is each shard's own, and
    what shards share they keep in files.
    """

    max_usd: Annotated[Decimal | None, Option("Cap of this run, over all its resumes; null: none.", "scope")] = None
    sweep_max_usd: Annotated[Decimal | None, Option("Cap of all runs of a sweep together; null: none.", "scope")] = (
        None
    )
    across: Annotated[
        Literal["ledger", "division"],
        Option("How shards share: ledger: through files; division: each takes an equal part.", "scope"),
    ] = "ledger"

    def __post_init__(self) -> None:
        if self.across == "division" and self.sweep_max_usd is not None:
            raise ConfigError(
                "budget.sweep_max_usd needs the ledger that runs share; with budget.across=division set "
                "budget.max_usd, which is divided among the shards of one run"
            )
        for key in ("max_usd", "sweep_max_usd"):
            value = getattr(self, key)
            if value is not None and (not value.is_finite() or value < 0):
                raise ConfigError(f"budget.{key}={value}: must be a finite number of dollars, at least 0")


OnOutcome = Callable[[Request, Outcome], None]
"""Called once for each request, from the runner's thread, the moment its outcome exists."""


Bottleneck = Literal["nothing to do", "concurrency", "requests per minute", "tokens per minute", "this machine"]
"""What decides a run's time."""


@dataclass(frozen=True, slots=True)
class Range:
    """A lower and an upper bound."""

    low: Decimal
    high: Decimal

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would come to; estimates of several runs add up.

    Args:
        instances: with at least one request to send.
        requests: to send.
        response_cache_hits: answers that the response cache already holds; they cost nothing and are not asked for.
        tokens: how prompts were counted; ``exact`` says whether that is a count or an estimate.
        input_tokens: of all requests; the bounds are the estimate's error.
        output_tokens: from one for each request to ``decoding.max_new_tokens`` for each.
        live_usd: one live request after the other, no prompt cached; None: the price is not known.
        cached_usd: live, with prompts cached by the provider as ``runner.prompt_caching`` says, or paid for once
            where one request may ask for several samples.
        batch_usd: in the provider's batches; None where it has none.
        seconds: live; from fast answers to slow ones, and as the concurrency and the quotas allow; None: not known
            before the run, as with a local model.
        limited_by: what decides the time.
    """

    instances: int
    requests: int
    response_cache_hits: int
    tokens: str
    exact: bool
    input_tokens: Range
    output_tokens: Range
    live_usd: Range | None
    cached_usd: Range | None
    batch_usd: Range | None
    seconds: Range | None
    limited_by: Bottleneck

    def __add__(self, other: Estimate) -> Estimate:
        """Both runs, one after the other."""
        times = (self.seconds, other.seconds)
        longer = other if times[0] is not None and times[1] is not None and times[1].high > times[0].high else self
        sums: dict[str, Range | None] = {}
        for name in ("live_usd", "cached_usd", "batch_usd", "seconds"):
            mine, its = getattr(self, name), getattr(other, name)
            sums[name] = None if mine is None or its is None else mine + its
        return Estimate(
            instances=self.instances + other.instances,
            requests=self.requests + other.requests,
            response_cache_hits=self.response_cache_hits + other.response_cache_hits,
            tokens=self.tokens if self.tokens == other.tokens else f"{self.tokens}, {other.tokens}",
            exact=self.exact and other.exact,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            live_usd=sums["live_usd"],
            cached_usd=sums["cached_usd"],
            batch_usd=sums["batch_usd"],
            seconds=sums["seconds"],
            limited_by=longer.limited_by,
        )
