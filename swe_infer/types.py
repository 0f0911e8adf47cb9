"""Value types that all packages share. They validate their fields and have no other behaviour."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Protocol

from swe_infer.errors import ConfigError
from swe_infer.options import Option

FinishReason = Literal["stop", "length", "repetition", "refusal", "content_filter", "other"]
"""``stop``: end token, stop string or a closed patch. ``length``: ``max_new_tokens`` or the context window was
reached. ``repetition``: the loop detector of the local engine or vLLM. ``refusal``, ``content_filter``: from the
provider."""

PatchStatus = Literal["applies", "repaired", "does_not_apply", "unchecked", "none"]

EditFormat = Literal["unified_diff", "search_replace", "whole_file", "json_edits"]
"""The form of answer that a prompt requests."""

Purpose = Literal["context", "judge"]
"""What a request is for that is not one for an answer. ``context``: it chooses the files that a prompt shows.
``judge``: it chooses one of the samples."""

SamplingParameter = Literal["temperature", "top_p", "seed", "stop", "n"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

PathText = Annotated[str, "path"]
"""The path of a file or a folder."""

MAX_SAMPLES = 10**12
"""Upper bound of ``decoding.n``."""
MAX_NEW_TOKENS = 10**9
"""Upper bound of ``decoding.max_new_tokens``."""

DrafterKind = Literal["diff", "suffix", "none"]
"""What drafts tokens for speculative decoding of a local model. Drafts are verified: they never change the output."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier turn of a conversation.

    Args:
        answer: what the model said.
        reply: the next user message.
    """

    answer: str
    reply: str


@dataclass(frozen=True)  # without slots, so that digests of long texts are computed once
class Prompt:
    """A prompt, split for chat APIs.

    Args:
        system: None if there is no system part.
        prefill: the beginning of the answer, which the model continues. The model's output does not include it.
        turns: the conversation after ``user``, oldest turn first. Only chat models continue one.
        images: URLs (``http``, ``https`` or ``data``) of images that belong to ``user``; not in :attr:`text`.
    """

    system: str | None
    user: str
    prefill: str | None = None
    turns: tuple[Turn, ...] = ()
    images: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """Both parts, without the beginning of the answer."""
        return self.user if self.system is None else f"{self.system}\n{self.user}"

    @property
    def text(self) -> str:
        """The full text, the prompt of a base model."""
        return self.question + "".join(turn.answer + turn.reply for turn in self.turns) + (self.prefill or "")

    @property
    def characters(self) -> int:
        """The length of :attr:`text`, without a copy of it."""
        system = 0 if self.system is None else len(self.system) + 1
        turns = sum(len(turn.answer) + len(turn.reply) for turn in self.turns)
        return system + len(self.user) + turns + len(self.prefill or "")

    @property
    def parts(self) -> list[str]:
        """The texts of all messages, ``system`` first."""
        system = [] if self.system is None else [self.system]
        return [*system, *(message["content"] for message in self.messages)]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages for a chat API, without ``system``. ``prefill`` is the last one, an unfinished answer."""
        found = [{"role": "user", "content": self.user}]
        for turn in self.turns:
            found += [{"role": "assistant", "content": turn.answer}, {"role": "user", "content": turn.reply}]
        return found if self.prefill is None else [*found, {"role": "assistant", "content": self.prefill}]

    def with_prefill(self, answer: str) -> str:
        """A whole answer, from what the model returned. Some servers repeat ``prefill``; an empty answer stays so."""
        if self.prefill is None or not answer.strip() or answer.startswith(self.prefill):
            return answer
        return self.prefill + answer

    @cached_property
    def sha256(self) -> str:
        """The digest of :attr:`text` in UTF-8, followed by the URLs of images, if there are any."""
        whole = "\0".join((self.text, *self.images))
        return hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()

    @cached_property
    def user_sha256(self) -> str:
        """The digest of ``user`` in UTF-8."""
        return hashlib.sha256(self.user.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Instance:
    """One task.

    Args:
        metadata: the dataset's other columns, untouched.
        files: path to content, which patches are checked against. Bytes that are not UTF-8 are lone surrogates
            (``surrogateescape``).
        edit_format: the form of answer that a frozen prompt requests; None: as in the run's configuration.
    """

    instance_id: str
    prompt: Prompt
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    edit_format: EditFormat | None = None


class DrafterFactory(Protocol):
    """Creates drafters of the user's own, for ``decoding.drafter._target_``. It must be picklable and hashable."""

    def create(self, prompt_ids: Sequence[int], files: Mapping[str, str], codec: Any) -> Any:
        """The drafter of one output: a :class:`swe_infer.llama.drafting.base.Drafter`.

        Args:
            prompt_ids: the tokens of the prompt.
            files: path to content of the instance's files, read lazily.
            codec: the tokenizer, a :class:`swe_infer.llama.drafting.base.Codec`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Sampling parameters. None: the parameter is not sent, and the model's default applies."""

    temperature: Annotated[float | None, Option("Sampling temperature; 0: greedy.", "answer")] = 0.0
    top_p: Annotated[float | None, Option("Nucleus sampling, above 0 and at most 1.", "answer")] = None
    max_new_tokens: Annotated[
        int, Option("Maximum number of generated tokens, including reasoning tokens.", "answer")
    ] = 2048
    n: Annotated[int, Option("Samples per instance.", "answer")] = 1
    seed: Annotated[int | None, Option("Seed of the run; each sample's seed is derived from it.", "answer")] = None
    stop: Annotated[
        tuple[str, ...],
        Option(r"Strings that end the output; on the command line \\n, \\t and \\\\ are escapes.", "answer"),
    ] = ()
    drafter: Annotated[
        DrafterKind | DrafterFactory,
        Option("Speculative decoding of a local model; does not change the output.", "speed"),
    ] = "diff"

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0.0 <= self.temperature <= 2.0:
            raise ConfigError(f"decoding.temperature={self.temperature}: must be between 0 and 2")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"decoding.top_p={self.top_p}: must be above 0 and at most 1")
        for key, maximum in (("max_new_tokens", MAX_NEW_TOKENS), ("n", MAX_SAMPLES)):
            value = getattr(self, key)
            if value < 1:
                raise ConfigError(f"decoding.{key}={value}: must be at least 1")
            if value > maximum:
                raise ConfigError(f"decoding.{key}={value}: must be at most {maximum:,}")
        if any(not stop for stop in self.stop):
            raise ConfigError("decoding.stop: contains an empty string, which would end every output at once")


def sample_seed(decoding: Decoding, instance_id: str, sample: int) -> int:
    """The 63-bit seed of one (instance, sample).

    It depends on nothing else, so a sample is independent of the batch and of the order. A run without
    ``decoding.seed`` uses 0.
    """
    name = f"{decoding.seed or 0}\x1f{instance_id}\x1f{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one sample of an instance, or an auxiliary one.

    Args:
        sample: number of the sample, from 0; 0 for an auxiliary request.
        files: path to content of the instance's files, for patch checks and drafts. The samples of an instance share
            one mapping, which may load lazily. None: they, and ``edit_format``, are looked up in the dataset.
        edit_format: the form of answer that the prompt requests; None: not known.
        purpose: of an auxiliary request, whose completion is not an answer; None: an answer is requested.
    """

    instance_id: str
    sample: int
    prompt: Prompt
    decoding: Decoding
    files: Mapping[str, str] | None = field(default=None, compare=False, repr=False)
    edit_format: EditFormat | None = None
    purpose: Purpose | None = None

    @property
    def key(self) -> tuple[str, int]:
        return (self.instance_id, self.sample)

    @property
    def turn(self) -> int:
        """The number of the further turn that is requested; 0: the first answer."""
        return len(self.prompt.turns)

    @property
    def auxiliary(self) -> str:
        """``PURPOSE:SHA256`` of an auxiliary request and its prompt; empty if an answer is requested."""
        return "" if self.purpose is None else f"{self.purpose}:{self.prompt.sha256}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as billed. ``input_tokens`` includes cached and cache-written tokens, ``cache_write_tokens`` those
    that are written for an hour; ``output_tokens`` includes reasoning tokens."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cache_write_1h_tokens + other.cache_write_1h_tokens,
        )

    def as_dict(self) -> dict[str, int]:
        """The counts by name. Much faster than :func:`dataclasses.asdict`."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request.

    Args:
        text: the model's output, without special tokens and stop strings.
        cost_usd: dollars for all attempts; 0 for a local model, None if the price is unknown.
        latency_s: seconds from the start of the first attempt to the end of the answer.
        attempts: requests sent, 1 if the first one succeeded.
        details: further JSON values for the record, such as ``model``, ``request_id`` or engine counts.
        patch: made where the answer was computed; None: it is yet to be made.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    cost_usd: Decimal | None
    latency_s: float
    attempts: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)
    patch: PatchResult | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer after all attempts.

    Args:
        error_type: class name of the exception.
        message: one line without secrets.
        usage, cost_usd: what was billed although no answer arrived, such as for an unreadable one.
        details: further JSON values for the record, such as what may have been billed.
    """

    error_type: str
    message: str
    attempts: int = 1
    latency_s: float = 0.0
    usage: Usage = Usage()
    cost_usd: Decimal | None = Decimal(0)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skip:
    """Not requested, and a retry would not help. ``reason`` is a class name such as ``ContextOverflow``."""

    reason: str
    message: str


Outcome = Completion | Failure | Skip


@dataclass(frozen=True, slots=True)
class PatchResult:
    """The patch extracted from an answer.

    Args:
        patch: a unified diff for ``git apply``, with its final newline; empty if ``status`` is ``none``.
        reason: why there is no patch, or why and in which hunk it does not apply; None if it applies.
        repairs: names of the repairs of ``swe_infer.patches``, in order.
        format: how the patch was found in the answer (``fence``, ``tag``, ``raw``, ``search_replace``, …).
    """

    patch: str
    status: PatchStatus
    reason: str | None = None
    repairs: tuple[str, ...] = ()
    format: str | None = None


class TokenCounter(Protocol):
    """Counts a prompt's tokens. ``exact`` is False for an estimate; ``name`` names the method."""

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def __call__(self, prompt: Prompt) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """The attention backends to choose from. Each name is a module of ``swe_infer.llama.attention``."""

    backends: Annotated[
        tuple[str, ...],
        Option("Backends in order of preference; the first supported one is used.", "speed"),
    ] = ("flash_attn", "native", "sdpa")

    def __post_init__(self) -> None:
        if not self.backends:
            raise ConfigError("model.attention.backends is empty: name at least one, such as [sdpa]")


PromptFormat = Literal["auto", "raw", "chat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaModel:
    """A Llama checkpoint in Hugging Face format."""

    path: Annotated[PathText, Option("A directory or a Hugging Face hub name.", "answer")]
    peft_path: Annotated[
        PathText | None, Option("A directory or hub name of a LoRA adapter, merged at load.", "answer")
    ] = None
    name: Annotated[str | None, Option("model_name_or_path of the predictions; null: from the path.", "answer")] = (
        None
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option("Data type; auto: bfloat16 if the device multiplies it natively, else float32.", "answer"),
    ] = "auto"
    device: Annotated[str, Option("auto, cpu, cuda, cuda:1, …; auto: CUDA if available.", "speed")] = "auto"
    attention: Annotated[AttentionChoice, Option("The attention backends to choose from.", "speed")] = (
        AttentionChoice()
    )
    prompt_format: Annotated[
        PromptFormat,
        Option(
            "raw: the prompt's text unchanged; chat: the checkpoint's chat template; auto: by the checkpoint.",
            "answer",
        ),
    ] = "auto"
    thinking: Annotated[
        Literal["off", "adaptive"] | bool | None,
        Option(
            "Thinking, for chat templates with such a switch: off or adaptive; null: the template's default.",
            "answer",
        ),
    ] = None
    template_date: Annotated[
        str | None, Option("Today's date for chat templates, such as 2026-01-31; null: 2024-07-26.", "answer")
    ] = None
    context_window: Annotated[
        int | None, Option("Tokens of prompt and output together; null: the checkpoint's maximum.", "answer")
    ] = None
    allow_pickle: Annotated[
        bool, Option("Load pytorch_model.bin if there is no safetensors file; it can execute code.", "speed")
    ] = False
    tensor_parallel: Annotated[
        int, Option("Number of GPUs that every layer is split across, one process each.", "speed")
    ] = 1

    def __post_init__(self) -> None:
        if self.template_date is not None and not _is_date(self.template_date):
            raise ConfigError(f"model.template_date={self.template_date}: must be a date such as 2026-01-31, or null")

    @property
    def thinks(self) -> bool | None:
        """:attr:`thinking` as the value of a template's switch."""
        return None if self.thinking is None else self.thinking in ("adaptive", True)

    @property
    def label(self) -> str:
        """``model_name_or_path`` of the predictions, the same for every instance of a run."""
        if self.name is not None:
            return self.name
        parts = [p.rstrip("/").rsplit("/", 1)[-1] for p in (self.path, self.peft_path) if p]
        return "+".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """User-defined prices, in dollars per million tokens."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    input_per_mtok: Annotated[Decimal, Option("Input tokens.", "reporting")]
    output_per_mtok: Annotated[Decimal, Option("Output tokens.", "reporting")]
    cached_input_per_mtok: Annotated[
        Decimal | None, Option("Input tokens read from the cache; null: the input price.", "reporting")
    ] = None
    cache_write_per_mtok: Annotated[
        Decimal | None, Option("Input tokens written to the cache; null: the input price.", "reporting")
    ] = None
    cache_write_1h_per_mtok: Annotated[
        Decimal | None, Option("Input tokens written to the cache for an hour; null: as other writes.", "reporting")
    ] = None

    def __post_init__(self) -> None:
        for key in (one.name for one in fields(self)):
            value = getattr(self, key)
            if value is not None and (not value.is_finite() or value < 0):
                raise ConfigError(f"model.pricing.{key}={value}: must be a finite number of dollars, at least 0")


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiModel:
    """A model behind an API, and the request parameters that it supports."""

    name: Annotated[str, Option("The provider's name for the model (Azure: the deployment).", "answer")]
    context_window: Annotated[
        int | None, Option("Tokens of prompt and output together; null: the provider checks it.", "answer")
    ] = None
    max_output_tokens: Annotated[
        int | None, Option("Maximum output tokens of one answer; null: unknown.", "answer")
    ] = None
    parameters: Annotated[
        tuple[SamplingParameter, ...],
        Option("The parameters that the model accepts: temperature, top_p, seed, stop, n.", "answer"),
    ] = ("temperature", "top_p", "stop")
    max_tokens_key: Annotated[
        Literal["max_tokens", "max_completion_tokens"],
        Option("The name of the output limit in OpenAI's chat format; older servers require max_tokens.", "answer"),
    ] = "max_completion_tokens"
    api_version: Annotated[
        str | None, Option("anthropic-version or Azure's api-version; null: the provider's default.", "answer")
    ] = None
    retires: Annotated[
        str | None, Option("The date from which the vendor no longer serves the model; null: unknown.", "reporting")
    ] = None
    price_as: Annotated[str | None, Option("The model's name in genai-prices, if different.", "reporting")] = None
    pricing: Annotated[
        Pricing | Literal["unknown"] | None,
        Option("Dollars per million tokens, or unknown; null: from genai-prices.", "reporting"),
    ] = None
    extra_body: Annotated[Mapping[str, Any], Option("Additional fields of the request body.", "answer")] = field(
        default_factory=dict
    )
    effort: Annotated[
        Effort | None,
        Option("Reasoning effort, from none and minimal to xhigh and max; null: the model's default.", "answer"),
    ] = None
    thinking: Annotated[
        Literal["off", "adaptive"] | bool | int | None,
        Option("Thinking: off, adaptive, or a budget in tokens; null: the model's default.", "answer"),
    ] = None
    verbosity: Annotated[
        Literal["low", "medium", "high"] | None,
        Option("Length of answers: low, medium or high; null: the model's default.", "answer"),
    ] = None
    vision: Annotated[
        bool | None, Option("The model accepts images; null: as the preset with its name, else false.", "scope")
    ] = None
    image_tokens: Annotated[
        int, Option("Upper bound on the tokens that one image is billed as, reserved under a budget.", "reporting")
    ] = 50_000
    one_sampler: Annotated[bool, Option("The model accepts temperature or top_p, not both.", "answer")] = False
    billed_cache_writes: Annotated[
        bool, Option("OpenAI bills writes to the prompt cache (gpt-5.6 and later).", "reporting")
    ] = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("model.name is empty: set it to the provider's name of the model")
        if self.image_tokens < 1:
            raise ConfigError(f"model.image_tokens={self.image_tokens}: must be at least 1")
        if self.retires is not None and not _is_date(self.retires):
            raise ConfigError(f"model.retires={self.retires}: must be a date such as 2026-11-30, or null")

    @property
    def label(self) -> str:
        """``model_name_or_path`` of the predictions."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class DataShard:
    """One of ``count`` disjoint parts of the instances; all instances if both are None."""

    index: Annotated[int | None, Option("Index of this shard, from 0.", "answer")] = None
    count: Annotated[int | None, Option("Number of shards.", "answer")] = None

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
class SweepOptions:
    """The names of a sweep and of a point in it. They are labels and do not affect answers."""

    name: Annotated[
        str | None,
        Option("The sweep's name: its folder is outputs/sweeps/NAME; sweep=NAME is short for it.", "reporting"),
    ] = None
    points: Annotated[
        PathText | None,
        Option("A YAML or JSON file with named sets of overrides, each a point of the sweep.", "reporting"),
    ] = None
    point: Annotated[str | None, Option("The name of this run's point; the sweep sets it.", "reporting")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Hard caps in dollars.

    With ``across="ledger"``, ``max_usd`` applies to each shard, and shards share ledgers and limits through files, or
    through a server (``ledger``). With ``division``, for workers without shared files, ``max_usd`` and all rate
    limits apply to the whole run, and each shard gets an equal part.
    """

    max_usd: Annotated[
        Decimal | None, Option("Maximum cost of this run, including resumes; null: unlimited.", "scope")
    ] = None
    sweep_max_usd: Annotated[
        Decimal | None, Option("Maximum cost of all runs of a sweep together; null: unlimited.", "scope")
    ] = None
    across: Annotated[
        Literal["ledger", "division"],
        Option("How shards share a cap: ledger: sweep_max_usd; division: max_usd, in equal parts.", "scope"),
    ] = "ledger"
    ledger: Annotated[
        str | None,
        Option(
            "Where sweep_max_usd is kept: http://HOST:PORT/NAME of swe-infer-budget, ray://NAME; null: a file.",
            "address",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.across == "division" and self.sweep_max_usd is not None:
            raise ConfigError(
                "budget.sweep_max_usd needs a ledger that runs share; with budget.across=division set "
                "budget.max_usd, which is divided among the shards of one run"
            )
        if self.ledger is not None and self.sweep_max_usd is None:
            raise ConfigError(f"budget.ledger={self.ledger}: keeps budget.sweep_max_usd, which is not set")
        for key in ("max_usd", "sweep_max_usd"):
            value = getattr(self, key)
            if value is not None and (not value.is_finite() or value < 0):
                raise ConfigError(f"budget.{key}={value}: must be a finite number of dollars, at least 0")


OnOutcome = Callable[[Request, Outcome], None]
"""Called once for each request, in the runner's thread, as soon as its outcome exists."""


Bottleneck = Literal["nothing to do", "concurrency", "requests per minute", "tokens per minute", "this machine"]
"""What limits a run's speed."""


@dataclass(frozen=True, slots=True)
class Range:
    """A lower and an upper bound."""

    low: Decimal
    high: Decimal

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated tokens, cost and time of a run. Estimates of several runs can be added.

    Args:
        instances: instances with at least one request.
        requests: requests to send.
        response_cache_hits: answers in the response cache, which cost nothing.
        tokens: how prompts were counted.
        exact: whether ``tokens`` is exact, not estimated.
        input_tokens: of all requests; the bounds are the estimate's error.
        output_tokens: from one token per request to ``decoding.max_new_tokens`` per request.
        live_usd: cost of live requests without prompt caching; None if the price is not known.
        cached_usd: cost of live requests with ``runner.prompt_caching``, or with several samples per request.
        batch_usd: cost in the provider's batches; None if it has none.
        seconds: of live requests, with fast and with slow answers, within concurrency and rate limits; None if not
            known, as for a local model.
        limited_by: what limits the speed.
        expected_usd: cost in the run's mode, live or batch, whether or not the provider caches prompts; None if the
            price is not known.
        further_turns: requests that may follow, depending on the answers. Only the upper bounds of the other figures
            include them.
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
    expected_usd: Range | None = None
    further_turns: int = 0

    def with_further(self, turns: Estimate) -> Estimate:
        """This estimate with an estimate of requests that may follow in its upper bounds."""

        def upper(mine: Range | None, further: Range | None) -> Range | None:
            return None if mine is None or further is None else Range(mine.low, mine.high + further.high)

        return replace(
            self,
            input_tokens=Range(self.input_tokens.low, self.input_tokens.high + turns.input_tokens.high),
            output_tokens=Range(self.output_tokens.low, self.output_tokens.high + turns.output_tokens.high),
            live_usd=upper(self.live_usd, turns.live_usd),
            cached_usd=upper(self.cached_usd, turns.cached_usd),
            batch_usd=upper(self.batch_usd, turns.batch_usd),
            seconds=upper(self.seconds, turns.seconds),
            expected_usd=upper(self.expected_usd, turns.expected_usd),
            limited_by=self.limited_by if self.requests else turns.limited_by,
            further_turns=self.further_turns + turns.requests,
        )

    def up_to(self, most: Estimate) -> Estimate:
        """This estimate with the upper bounds of another one, of requests that may be longer."""

        def upper(mine: Range | None, other: Range | None) -> Range | None:
            return None if mine is None or other is None else Range(mine.low, other.high)

        return replace(
            self,
            input_tokens=Range(self.input_tokens.low, most.input_tokens.high),
            live_usd=upper(self.live_usd, most.live_usd),
            cached_usd=upper(self.cached_usd, most.cached_usd),
            batch_usd=upper(self.batch_usd, most.batch_usd),
            seconds=upper(self.seconds, most.seconds),
            expected_usd=upper(self.expected_usd, most.expected_usd),
            limited_by=most.limited_by,
        )

    def __add__(self, other: Estimate) -> Estimate:
        """The sum of two runs, executed one after the other."""
        times = (self.seconds, other.seconds)
        slower = other if times[0] is not None and times[1] is not None and times[1].high > times[0].high else self
        sums: dict[str, Range | None] = {}
        for name in ("live_usd", "cached_usd", "batch_usd", "seconds", "expected_usd"):
            first, second = getattr(self, name), getattr(other, name)
            sums[name] = None if first is None or second is None else first + second
        return Estimate(
            instances=self.instances + other.instances,
            requests=self.requests + other.requests,
            response_cache_hits=self.response_cache_hits + other.response_cache_hits,
            tokens=", ".join(dict.fromkeys([*self.tokens.split(", "), *other.tokens.split(", ")])),
            exact=self.exact and other.exact,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            live_usd=sums["live_usd"],
            cached_usd=sums["cached_usd"],
            batch_usd=sums["batch_usd"],
            seconds=sums["seconds"],
            limited_by=slower.limited_by,
            expected_usd=sums["expected_usd"],
            further_turns=self.further_turns + other.further_turns,
        )
