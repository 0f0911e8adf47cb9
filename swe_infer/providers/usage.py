"""Token counts and costs that a server states: read, checked, and estimated where they cannot be true."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

from swe_infer.providers.untrusted_json import LONGEST_NUMBER
from swe_infer.types import Request, Usage

_BYTES_A_TOKEN = 3
_LONGEST_TOKENS = 40
"""Characters a token of a long answer, on average at most. No vocabulary reaches it with text."""
_LONG_ANSWER = 400
"""Characters."""
_LONG_PROMPT = 2_000
"""Characters."""
_LEAST_WINDOW = 64
"""Tokens. No server truncates prompts to fewer."""
_DIGITS = re.compile(r"\d{1,9}", re.ASCII)
_MAX_TOKENS = 100_000_000
"""Largest plausible token count, ten times the largest context window."""
_HIDDEN_TOKENS = 100_000
"""Tokens that a server may add to a prompt, or write in addition to the maximum (reasoning)."""
MAX_USD = 10_000
"""Largest plausible cost of one request."""


class Implausible(ValueError):
    """A token count is invalid: not an integer, negative, or larger than any context window."""


def whole_number(value: Any) -> int:
    """``value`` if it is a non-negative integer, else 0. For counts that are only shown."""
    return value if type(value) is int and value >= 0 else 0


def estimated_tokens(text: str) -> int:
    """Tokens in ``text``, estimated at three bytes each.

    Anthropic's glossary states 3.5 characters for English. Code with line numbers has fewer, and an estimated cost
    should be too high rather than too low.
    """
    return -(-len(text.encode(errors="replace")) // _BYTES_A_TOKEN)


def token_count(counts: Any, *names: str) -> int:
    """The first of ``names`` that ``counts`` has; 0 if it has none.

    Raises:
        Implausible: ``counts`` is not a JSON object, or the count is invalid.
    """
    if not isinstance(counts, dict):
        raise Implausible("no JSON object")
    value = next((counts[name] for name in names if counts.get(name) is not None), 0)
    if (isinstance(value, str) and _DIGITS.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
        value = int(value)  # as Protocol Buffers write long integers, and languages without integers
    if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
        raise Implausible(names[0])
    return value


def optional_count(counts: Any, *names: str) -> int:
    """The largest count among ``names``, as servers name a part of a count differently; 0 if there is none.

    Raises:
        Implausible: ``counts`` is neither a JSON object nor null, or a count is invalid.
    """
    if counts is None:
        return 0
    if not isinstance(counts, dict):
        raise Implausible("no JSON object")
    return max((token_count(counts, name) for name in names if name in counts), default=0)


def states_lifetimes(counts: Any) -> bool:
    """Whether any cache writes are counted by their lifetime."""
    return isinstance(counts, dict) and any(type(count) is int and count > 0 for count in counts.values())


def later_usage(usage: Any, stated: Any) -> Any:
    """The usage of a stream after an event with usage. Counts are cumulative, so a missing or zero one was stated
    before: some servers count the prompt at the beginning alone, and others at the end alone."""
    if not stated:
        return usage
    if not isinstance(stated, dict) or not isinstance(usage, dict | None):
        return stated
    usage = usage or {}
    return usage | {key: value for key, value in stated.items() if value or not usage.get(key)}


def stated_dollars(value: Any) -> Decimal | None:
    """A cost that a server states, a number or a text; None if it states none. Gateways send 0 for models whose price
    they do not know, so 0 is no statement."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        usd = Decimal(str(value)[:LONGEST_NUMBER])
    except ArithmeticError:
        return None
    return usd if usd.is_finite() and 0 < usd <= MAX_USD else None


def _is_plausible(usage: Usage, request: Request | None, choices: int) -> bool:
    """Whether ``choices`` answers to a request can have these counts; a token has at least one byte."""
    if request is None:
        return True
    inputs = max(usage.input_tokens, usage.cached_input_tokens + usage.cache_write_tokens)
    outputs = 2 * choices * request.decoding.max_new_tokens
    shown = inputs - _HIDDEN_TOKENS * (1 + len(request.prompt.images))
    # Usually there are fewer tokens than characters, and the bytes need not be counted.
    fits = shown <= 2 * request.prompt.characters or shown <= 2 * len(request.prompt.text.encode(errors="replace"))
    return fits and usage.output_tokens <= outputs + _HIDDEN_TOKENS


def _lacks_cached_tokens(usage: Usage, request: Request) -> bool:
    """Whether the input is so little that only what was not in a cache can be counted, as by gateways to Anthropic
    (github.com/decolua/9router/pull/2658) and Ollama 0.30 (github.com/ollama/ollama/pull/16428)."""
    least = max(_LONG_PROMPT, _LONGEST_TOKENS * usage.input_tokens)
    return usage.input_tokens < _LEAST_WINDOW and request.prompt.characters >= least


def checked_usage(stated: Usage | None, request: Request | None, text: str, choices: int = 1) -> tuple[Usage, bool]:
    """(token counts, whether they are estimated). Missing and implausible counts are estimated, so that no text is
    counted as free of charge.

    Args:
        stated: the server's counts; None: missing or invalid.
        request: None if the prompt is unknown.
        text: the answer.
        choices: how many answers the counts are of.
    """
    usage = stated if stated is not None and _is_plausible(stated, request, choices) else Usage()
    if len(text) >= max(_LONG_ANSWER, _LONGEST_TOKENS * usage.output_tokens):
        usage = replace(usage, output_tokens=0)  # one token was counted for the whole answer
    if request is not None and _lacks_cached_tokens(usage, request):
        usage = replace(usage, input_tokens=0)
    if usage.input_tokens and (usage.output_tokens or not text):
        return usage, False
    prompt = "" if request is None else request.prompt.text
    return replace(
        usage,
        input_tokens=max(usage.input_tokens, estimated_tokens(prompt)),
        output_tokens=max(usage.output_tokens, estimated_tokens(text)),
    ), True
