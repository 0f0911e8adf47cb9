"""Why an answer ended, in the words of all vendors and servers.

Sources: the types of openai (``chat.chat_completion.Choice``), anthropic (``StopReason``) and mistralai
(``ChatCompletionChoiceFinishReason``) and cohere (``ChatFinishReason``); ``FinishReason`` of Google and of
text-generation-inference; the API references of DeepSeek, Z.ai and OpenRouter; ``vllm/v1/engine/__init__.py``.
Gemini's OpenAI format adds its own word, as in ``content_filter: PROHIBITED_CONTENT``.
"""

from __future__ import annotations

from collections.abc import Mapping

from swe_infer.types import FinishReason

_REASONS: Mapping[FinishReason, str] = {
    "stop": "stop stop_sequence stop_token stopped eos eos_token end_turn complete completed",
    "length": "length max_tokens max_output_tokens max_length model_length model_context_window_exceeded error_limit",
    "content_filter": "content_filter content_filtered guardrail_intervened sensitive safety recitation blocklist "
    "prohibited_content spii error_toxic language",
    "refusal": "refusal",
    "repetition": "repetition",
}
_BY_WORD = {word: reason for reason, words in _REASONS.items() for word in words.split()}

_FAILURES = frozenset(["error", "error_finish", "network_error", "timeout", "insufficient_system_resource", "abort"])
"""The server failed while it answered. The answer is incomplete."""


def finish_reason_of(raw: str | None) -> FinishReason:
    """The finish reason of a complete answer; ``other`` for a word that no vendor documents."""
    return _BY_WORD.get((raw or "").partition(":")[0].lower(), "other")


def is_failure(raw: str | None) -> bool:
    """Whether the server failed before the end of the answer."""
    return (raw or "").lower() in _FAILURES
