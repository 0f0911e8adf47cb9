"""``model.effort``, ``model.thinking``, ``model.verbosity``: the fields that carry them, and what each model accepts.

A dialect says which fields of a vendor's API carry the values. The table says which values each family of models
accepts, with its source. The table is by vendor, which is ``provider.name``, and by the model's name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from swe_infer.errors import ConfigError
from swe_infer.providers.faults import one_line
from swe_infer.text import flatten, log_once
from swe_infer.types import ApiModel, Decoding

logger = logging.getLogger(__name__)

Mode = Literal["off", "adaptive", "budget"]

_SMALLEST_BUDGET = 1024
"""Of Anthropic (anthropic.types.ThinkingConfigEnabledParam)."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The fields of a request body, as dotted paths; None: the API has no field for it.

    Args:
        modes: the fields of each mode of ``model.thinking``, for ``budget`` those beside the number.
        budget: the field with the number of tokens.
        with_effort: modes that can be combined with ``model.effort``.
    """

    effort: str | None = None
    verbosity: str | None = None
    modes: Mapping[Mode, Mapping[str, Any]] | None = None
    budget: str | None = None
    with_effort: tuple[Mode, ...] = ("adaptive",)


CHAT = Dialect("reasoning_effort", "verbosity", {"off": {"reasoning_effort": "none"}})
"""openai.types.chat.CompletionCreateParams"""
RESPONSES = Dialect("reasoning.effort", "text.verbosity", {"off": {"reasoning.effort": "none"}})
"""openai.types.responses.ResponseCreateParams"""
MESSAGES = Dialect(
    "output_config.effort",
    modes={
        "off": {"thinking.type": "disabled"},
        "adaptive": {"thinking.type": "adaptive"},
        "budget": {"thinking.type": "enabled"},
    },
    budget="thinking.budget_tokens",
    with_effort=("off", "adaptive", "budget"),
)
"""anthropic.types.ThinkingConfigParam and OutputConfigParam"""

_GEMINI_BUDGET = "extra_body.google.thinking_config.thinking_budget"
_TOGGLE: Mapping[Mode, Mapping[str, Any]] = {
    "off": {"thinking.type": "disabled"},
    "adaptive": {"thinking.type": "enabled"},
}
_TEMPLATE: Mapping[Mode, Mapping[str, Any]] = {
    # Templates name the variable differently (Qwen: enable_thinking; DeepSeek: thinking) and ignore the other one.
    "off": {"chat_template_kwargs.enable_thinking": False, "chat_template_kwargs.thinking": False},
    "adaptive": {"chat_template_kwargs.enable_thinking": True, "chat_template_kwargs.thinking": True},
}
_CHAT_DIALECTS = {
    # https://ai.google.dev/gemini-api/docs/openai#thinking; a budget and an effort exclude each other.
    "gemini": Dialect(
        "reasoning_effort",
        modes={"off": {"reasoning_effort": "none"}, "adaptive": {_GEMINI_BUDGET: -1}, "budget": {}},
        budget=_GEMINI_BUDGET,
        with_effort=(),
    ),
    # https://api-docs.deepseek.com/guides/thinking_mode
    "deepseek": Dialect("reasoning_effort", modes=_TOGGLE),
    # https://platform.kimi.ai/docs/guide/use-thinking-effort
    "moonshot": Dialect("reasoning_effort", modes=_TOGGLE),
    # https://www.alibabacloud.com/help/en/model-studio/deep-thinking
    "dashscope": Dialect(
        modes={
            "off": {"enable_thinking": False},
            "adaptive": {"enable_thinking": True},
            "budget": {"enable_thinking": True},
        },
        budget="thinking_budget",
    ),
    # https://openrouter.ai/docs/use-cases/reasoning-tokens
    "openrouter": Dialect(
        "reasoning.effort",
        "verbosity",
        {"off": {"reasoning.enabled": False}, "adaptive": {"reasoning.enabled": True}, "budget": {}},
        budget="reasoning.max_tokens",
    ),
    # https://docs.vllm.ai/en/stable/features/reasoning_outputs
    "vllm": Dialect("reasoning_effort", modes=_TEMPLATE),
    "vllm_server": Dialect("reasoning_effort", modes=_TEMPLATE),
    # https://docs.sglang.io/advanced_features/separate_reasoning.html
    "sglang": Dialect("reasoning_effort", modes=_TEMPLATE),
    # https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
    "llama_cpp": Dialect("chat_template_kwargs.reasoning_effort", modes=_TEMPLATE),
}


def chat_dialect(vendor: str) -> Dialect:
    """The dialect of a server with OpenAI's chat format."""
    return _CHAT_DIALECTS.get(vendor, CHAT)


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one family accept.

    Args:
        models: a pattern for the beginning of their names, without the prefixes of gateways and clouds.
        efforts: values of ``model.effort``, separated by blanks.
        modes: of ``model.thinking``: off, adaptive, budget.
        verbosity: values of ``model.verbosity``.
        source: where it is documented; ``pydantic-ai``: its profiles of August 2026; ``litellm``: its table in 1.108.
        unsure: values of ``model.effort`` that the source does not mention, and that the API's types have.
        off_efforts: values of ``model.effort`` that can be combined with ``model.thinking=off``; empty: all.
        samples_when_off: without thinking they accept a temperature and ``top_p``.
    """

    models: str
    efforts: str = ""
    modes: str = ""
    verbosity: str = ""
    source: str = ""
    unsure: str = ""
    off_efforts: str = ""
    samples_when_off: bool = False


_ALL = "none minimal low medium high xhigh max"
_LEVELS = "low medium high"
_ANY_VERBOSITY = "low medium high"
_GPT5 = "https://developers.openai.com/api/docs/guides/reasoning"
_AZURE = "https://learn.microsoft.com/en-us/javascript/api/@azure/ai-projects/reasoningeffort"
_CLAUDE = "https://platform.claude.com/docs/en/build-with-claude/thinking"
_OPENAI = (
    Family(r"o1-(?:mini|preview)", source=_GPT5),
    Family(r"o\d", _LEVELS, source=_GPT5),
    Family(r"gpt-5-chat", source="pydantic-ai, profiles/openai.py"),
    Family(r"gpt-5\.\d-chat|chat-latest", "medium", verbosity="medium", source="pydantic-ai, profiles/openai.py"),
    Family(r"gpt-5-pro", "high", verbosity=_ANY_VERBOSITY, source=_AZURE),
    Family(r"gpt-5\.\d-pro", "medium high xhigh", verbosity=_ANY_VERBOSITY, source=_GPT5),
    Family(r"gpt-5\.3-codex", "none low medium high xhigh", verbosity="medium", source="litellm"),
    Family(r"gpt-5\.1-codex-max|gpt-5\.2-codex", "low medium high xhigh", verbosity="medium", source=_GPT5),
    Family(r"gpt-5(?:\.1)?-codex|codex-mini", _LEVELS, verbosity="medium", source=_GPT5),
    Family(r"gpt-5(?![.\d])", "minimal low medium high", verbosity=_ANY_VERBOSITY, source=_GPT5),
    Family(r"gpt-5\.1", "none low medium high", verbosity=_ANY_VERBOSITY, source=_GPT5, samples_when_off=True),
    Family(
        r"gpt-5\.[2-4]",
        "none low medium high xhigh",
        verbosity=_ANY_VERBOSITY,
        source="litellm; sampling: pydantic-ai, profiles/openai.py",
        samples_when_off=True,
    ),
    Family(r"gpt-5\.5", "none low medium high xhigh", verbosity=_ANY_VERBOSITY, source="litellm"),
    Family(r"gpt-5\.6", "none low medium high xhigh", verbosity=_ANY_VERBOSITY, source="litellm", unsure="max"),
    Family(r"gpt-6-astra|gpt-6\.1-sol", "low medium high xhigh max", verbosity=_ANY_VERBOSITY, source="litellm"),
    Family(r"gpt-6-(?:sol|luna)", "none low medium high xhigh max", verbosity=_ANY_VERBOSITY, source="litellm"),
    Family(r"(?:chat)?gpt-(?:3\.5|4)", source=_GPT5),
)
_ANTHROPIC = (
    Family(r"claude-(?:instant|v?[12]|3-(?!7))", source=_CLAUDE),
    Family(r"claude-opus-4-5", _LEVELS, "off budget", source=_CLAUDE),
    Family(r"claude-(?:opus|sonnet)-4-6", "low medium high max", "off adaptive budget", source=_CLAUDE),
    Family(r"claude-opus-4-[78]", "low medium high xhigh max", "off adaptive", source=_CLAUDE),
    Family(r"claude-(?:3-7-sonnet|(?:opus|sonnet|haiku)-4(?!-[6-9]))", "", "off budget", source=_CLAUDE),
    Family(r"claude-(?:opus|sonnet)-5-5", "low medium high xhigh max", "adaptive", source=_CLAUDE),
    Family(r"claude-(?:fable-5|mythos)", "low medium high xhigh max", "adaptive", source=_CLAUDE),
    Family(
        r"claude-(?:haiku-5-5|opus-5(?!-[6-9]))",
        "low medium high xhigh max",
        "off adaptive",
        source=_CLAUDE,
        off_efforts=_LEVELS,
    ),
    Family(r"claude-sonnet-5(?!-[6-9])", "low medium high xhigh max", "off adaptive", source=_CLAUDE),
)
_GEMINI = (
    Family(
        r"gemini-2\.5-flash",
        "none minimal low medium high",
        "off adaptive budget",
        source="https://ai.google.dev/gemini-api/docs/openai",
    ),
    Family(
        r"gemini-2\.5-pro",
        "minimal low medium high",
        "adaptive budget",
        source="https://ai.google.dev/gemini-api/docs/openai",
    ),
    Family(r"gemini-3-pro", "low high", source="https://discuss.ai.google.dev/t/112648"),
    Family(r"gemini-3\.1-pro|gemini-3\.[78]-flash|gemini-4-argon", _LEVELS, source="litellm; pydantic-ai"),
    Family(r"gemini-3(?:\.\d)?-flash", "minimal low medium high", source="pydantic-ai, models/google.py"),
    Family(r"gemini-[12]\.[0-4]", source="https://ai.google.dev/gemini-api/docs/thinking"),
)
_DEEPSEEK = (
    Family(
        r"deepseek-(?:flash|v4|v3\.2|chat|reasoner)",
        "low high max",
        "off adaptive",
        source="https://api-docs.deepseek.com/guides/thinking_mode",
        samples_when_off=True,
    ),
)
_GROK = "https://docs.x.ai/developers/model-capabilities/text/reasoning"
_XAI = (
    Family(r"grok-4\.3", "none low medium high", source=_GROK, unsure="xhigh"),
    Family(r"grok-4\.[56]", _LEVELS, source=_GROK),
    Family(r"grok-4\.7", "low medium high xhigh", source=_GROK),
    Family(r"grok-4\.20-multi-agent", "low medium high xhigh", source=_GROK),
    Family(r"grok-3-mini", "low high", source=_GROK),
    Family(r"grok-(?:build|code|2|3|4(?![.\d]))", source=_GROK),
)
_MISTRAL = (
    Family(
        r"mistral-(?:large-4|medium-(?:3[-.]5|2604|latest)|small-(?:2603|latest))",
        "none high",
        source="https://docs.mistral.ai/capabilities/reasoning/adjustable",
    ),
    Family(r"zai-glm-5(?!-2)", "low high max", source="litellm"),
    Family(r"magistral|codestral|devstral|ministral", source="https://docs.mistral.ai/capabilities/reasoning"),
)
_KIMI = "https://platform.kimi.ai/docs/guide/use-thinking-effort"
_MOONSHOT = (
    Family(r"kimi-k3", "low high max", source=_KIMI),
    Family(r"kimi-k2\.7", modes="adaptive", source=_KIMI),
    Family(r"kimi-k2[.-][56]", modes="off adaptive", source=_KIMI),
    Family(r"moonshot-v1", source=_KIMI),
)
_QWEN = "https://www.alibabacloud.com/help/en/model-studio/deep-thinking"
_DASHSCOPE = (
    Family(r"qwq|qwen3.*-thinking", modes="adaptive budget", source=_QWEN),
    Family(
        r"qwen(?:3(?:\.\d+)?)?-(?:max|plus|flash|turbo|\d+b)",
        modes="off adaptive budget",
        source=_QWEN,
    ),
)
_GROQ = (
    Family(r"gpt-oss", _LEVELS, source="https://console.groq.com/docs/reasoning"),
    Family(r"qwen3", "none", source="https://console.groq.com/docs/reasoning"),
)
_OPEN_WEIGHTS = (
    Family(r"gpt-oss", _LEVELS, source="https://huggingface.co/openai/gpt-oss-120b"),
    Family(r"(?:meta-)?llama-v?[23]", source="https://huggingface.co/meta-llama"),
)
_OPENROUTER = (
    Family(
        r"",
        _ALL,
        "off adaptive budget",
        _ANY_VERBOSITY,
        source="https://openrouter.ai/docs/use-cases/reasoning-tokens",
    ),
)
_FAMILIES: Mapping[str, tuple[Family, ...]] = {
    **dict.fromkeys(("openai", "openai_responses", "azure_openai", "azure_v1"), _OPENAI),
    **dict.fromkeys(("anthropic", "bedrock", "vertex"), _ANTHROPIC),
    "gemini": _GEMINI,
    "deepseek": _DEEPSEEK,
    "xai": _XAI,
    "mistral": _MISTRAL,
    "moonshot": _MOONSHOT,
    "dashscope": _DASHSCOPE,
    "groq": (*_GROQ, *_OPEN_WEIGHTS),
    "openrouter": _OPENROUTER,
}

_ONLY_RESPONSES = re.compile(
    r"(?:o\d-pro|gpt-(?!4)\d(?:\.\d)?-pro|gpt-5(?:\.\d)?-codex(?:-max|-mini)?|codex-mini|o\d(?:-mini)?-deep-research"
    r"|computer-use-preview)(?:-latest|-\d{4}-\d{2}-\d{2})?"
)
"""OpenAI's models that chat completions answer with 404 (litellm, ``mode: responses``). Newer pro models are assumed
to be alike; the Responses API serves every model."""


def needs_responses(model: ApiModel) -> bool:
    """Whether OpenAI serves the model through the Responses API alone."""
    return _ONLY_RESPONSES.fullmatch(_bare(model)) is not None


def _bare(model: ApiModel) -> str:
    """The model's name in lower case, without the prefixes of gateways and clouds."""
    name = model.name.lower().rpartition("/")[2]
    return name[max(0, name.find("claude-")) :]


def _family(vendor: str, model: ApiModel) -> Family | None:
    families = _FAMILIES.get(vendor, _OPEN_WEIGHTS)
    names = [_bare(model)]
    if model.price_as is not None:  # an Azure deployment may have any name
        names.append(model.price_as.lower())
    return next((family for name in names for family in families if re.match(family.models, name)), None)


def _mode(model: ApiModel) -> Mode | None:
    """The mode of ``model.thinking``; None: not set."""
    match model.thinking:
        case None:
            return None
        case False | "off":
            return "off"
        case True | "adaptive":
            return "adaptive"
        case _:
            return "budget"


def with_sampling(vendor: str, model: ApiModel) -> ApiModel:
    """``model`` with the sampling parameters that it accepts because it does not think."""
    family = _family(vendor, model)
    is_off = _mode(model) == "off" or model.effort == "none"
    if family is None or not family.samples_when_off or not is_off:
        return model
    return replace(model, parameters=tuple(dict.fromkeys((*model.parameters, "temperature", "top_p"))))


def is_set(model: ApiModel) -> bool:
    """Whether any of the three keys is set."""
    return not (model.effort is None and model.thinking is None and model.verbosity is None)


def fields_of(dialect: Dialect, model: ApiModel) -> dict[str, Any]:
    """The body fields of the keys that are set. :func:`check_knobs` accepts them before."""
    flat: dict[str, Any] = {}
    if (mode := _mode(model)) is not None:
        flat |= (dialect.modes or {}).get(mode, {})
        if mode == "budget" and dialect.budget is not None:
            flat[dialect.budget] = model.thinking
    if model.effort is not None and dialect.effort is not None:
        flat[dialect.effort] = model.effort
    if model.verbosity is not None and dialect.verbosity is not None:
        flat[dialect.verbosity] = model.verbosity
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = nested
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return nested


def merged(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with those of ``more``; mappings in both are merged."""
    whole = dict(fields)
    for key, value in more.items():
        there = whole.get(key)
        whole[key] = merged(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return whole


def check_knobs(vendor: str, dialect: Dialect | None, model: ApiModel, decoding: Decoding) -> None:
    """Checks the three keys. Logs a warning for a value that is sent without being checked.

    Args:
        dialect: None: the API has no field for any of them.

    Raises:
        ConfigError: the model does not accept a value, two keys exclude each other, or ``model.extra_body`` has the
            same field.
    """
    if not is_set(model):
        return
    known = _family(vendor, model)
    for key, value, accepted in _settings(dialect, model, known):
        setting = f"model.{key}={_shown(value)}"
        if accepted is None:
            way = f"set model.{key}=null, or the server's own field in model.extra_body"
            if key == "thinking" and dialect is not None and dialect.effort is not None:
                way = "use model.effort instead"
            raise ConfigError(f"{setting}: provider={one_line(vendor)} has no known field for it; {way}")
        if known is None:
            warning = f"{setting}: not known whether {one_line(model.name)} accepts it; it is sent as it is"
            log_once(logger, logging.WARNING, warning)
        elif value not in accepted and key == "effort" and value in known.unsure.split():
            warning = f"{setting}: not documented for {one_line(model.name)}; it is sent as it is"
            log_once(logger, logging.WARNING, warning)
        elif (_mode(model) if key == "thinking" else value) not in accepted:
            raise ConfigError(_refusal(setting, key, model, known, accepted))
    _check_combination(dialect, model, known)
    _check_budget(dialect, model, decoding)
    if _FAMILIES.get(vendor) is _OPENAI and model.effort not in (None, "none"):
        for key, value in (("temperature", decoding.temperature), ("top_p", decoding.top_p)):
            if value is not None:
                raise ConfigError(
                    f"decoding.{key}={value}: {model.name} does not support {key} with model.effort={model.effort}; "
                    f"set decoding.{key}=null"
                )
    if dialect is not None:
        _check_extra_body(fields_of(dialect, model), model)


def _settings(
    dialect: Dialect | None, model: ApiModel, known: Family | None
) -> Iterator[tuple[str, Any, list[str] | None]]:
    """(key, value, the values that the model accepts) of the keys that are set; None: there is no field."""
    dialect = dialect or Dialect()
    if (mode := _mode(model)) is not None:
        modes = known.modes.split() if known is not None else []
        if known is not None and "none" in known.efforts.split() and _is_effort_none(dialect):
            modes.append("off")
        yield "thinking", model.thinking, modes if mode in (dialect.modes or {}) else None
    for key, field in (("effort", dialect.effort), ("verbosity", dialect.verbosity)):
        if (value := getattr(model, key)) is not None:
            accepted = "" if known is None else known.efforts if key == "effort" else known.verbosity
            yield key, value, None if field is None else accepted.split()


def _is_effort_none(dialect: Dialect) -> bool:
    """Whether thinking is switched off by the effort none."""
    return "none" in (dialect.modes or {}).get("off", {}).values()


def _refusal(setting: str, key: str, model: ApiModel, known: Family, accepted: list[str]) -> str:
    what = f"accepts {_listed(accepted)}" if accepted else f"does not accept model.{key}"
    if key == "thinking" and known.efforts:
        what += f", and for model.effort {_listed(known.efforts.split())}"
    elif key == "effort" and known.modes:
        what += f", and for model.thinking {_listed(known.modes.split())}"
    return f"{setting}: {one_line(model.name)} {what}; set model.{key}=null for its default ({known.source})"


def _listed(values: Iterable[str]) -> str:
    return ", ".join("a budget in tokens" if value == "budget" else value for value in values)


def _check_combination(dialect: Dialect | None, model: ApiModel, known: Family | None) -> None:
    mode = _mode(model)
    if dialect is None or mode is None or model.effort is None:
        return
    pair = f"model.thinking={_shown(model.thinking)} model.effort={model.effort}"
    if mode not in dialect.with_effort and not (mode == "off" and model.effort == "none"):
        raise ConfigError(f"{pair}: exclude each other; set one of them to null")
    if mode == "off" and known is not None and known.off_efforts and model.effort not in known.off_efforts.split():
        raise ConfigError(
            f"{pair}: without thinking {model.name} accepts the efforts {_listed(known.off_efforts.split())}"
        )


def _check_budget(dialect: Dialect | None, model: ApiModel, decoding: Decoding) -> None:
    if _mode(model) != "budget":
        return
    budget, setting = int(model.thinking or 0), f"model.thinking={model.thinking}"
    smallest = _SMALLEST_BUDGET if dialect is MESSAGES else 1
    if budget < smallest:
        raise ConfigError(f"{setting}: a budget must be at least {smallest} tokens; model.thinking=off for none")
    if budget >= decoding.max_new_tokens:
        raise ConfigError(
            f"{setting}: must be below decoding.max_new_tokens={decoding.max_new_tokens}, which counts thinking too"
        )


def _check_extra_body(fields: Mapping[str, Any], model: ApiModel) -> None:
    """Raises ConfigError if ``model.extra_body`` sets a field that one of the keys sets."""
    for path, value in flatten(fields):
        node: Any = model.extra_body
        for key in path.split("."):
            node = node.get(key, _ABSENT) if isinstance(node, Mapping) else node
        if node is not _ABSENT:
            names = {
                "verbosity": model.verbosity is not None and value == model.verbosity and "verbosity" in path,
                "effort": model.effort is not None and value == model.effort and "effort" in path,
            }
            key = next((name for name, matches in names.items() if matches), "thinking")
            raise ConfigError(f"model.extra_body.{path}: model.{key} sets the same field; leave one of them out")


_ABSENT = object()


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else one_line(str(value))
