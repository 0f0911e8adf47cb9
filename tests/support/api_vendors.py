"""What vendors with OpenAI's chat API refuse or ignore, for the loopback API server.

The facts are from the vendors' documentation (the sources are in ``conf/provider``), not from the presets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["VENDORS", "Vendor"]

_PENALTIES = ("presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class Vendor:
    """One vendor's quirks.

    Args:
        refused: fields that are answered with ``status``.
        ignored: fields that have no effect.
        limit: the output limit that counts; None: both do.
        other_limit: what happens to the other one.
        temperatures: the lowest and the highest one that is accepted.
        needs_key: whether a request without a key is answered with 401.
    """

    refused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    limit: str | None = None
    other_limit: Literal["ignored", "refused"] = "ignored"
    temperatures: tuple[float, float] = (0.0, 2.0)
    status: int = 400
    needs_key: bool = True

    def complaint(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, bytes] | None:
        """(status, body) of the refusal of a request; None: it is accepted."""
        if self.needs_key and not headers.get("authorization", "").removeprefix("Bearer "):
            return 401, _error("No API key was sent.")
        limits = {"max_tokens", "max_completion_tokens"} - {self.limit}
        wrong = limits if self.limit and self.other_limit == "refused" else set()
        found = [key for key in body if key in {*self.refused, *wrong} and not (key == "n" and body[key] == 1)]
        if found:
            return self.status, _error(f"{found[0]}: Extra inputs are not permitted")
        temperature = body.get("temperature")
        if temperature is not None and not self.temperatures[0] <= temperature <= self.temperatures[1]:
            return self.status, _error(f"invalid temperature: {temperature}")
        return None

    def max_tokens(self, body: Mapping[str, Any]) -> int | None:
        """The output limit of a request, as this vendor reads it."""
        keys = (self.limit,) if self.limit else ("max_completion_tokens", "max_tokens")
        return next((body[key] for key in keys if body.get(key) is not None), None)


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()


VENDORS: Mapping[str, Vendor] = {
    "gemini": Vendor(refused=("logit_bias", "top_logprobs", "prompt_cache_key", "user")),
    "deepseek": Vendor(ignored=("seed", "top_k"), limit="max_tokens"),
    "xai": Vendor(refused=("stop", *_PENALTIES), limit="max_completion_tokens"),
    "mistral": Vendor(
        refused=("seed", "n", "stream_options", "logit_bias", "logprobs", "user", "prompt_cache_key"),
        limit="max_tokens",
        other_limit="refused",
        temperatures=(0.0, 1.5),
        status=422,
    ),
    "moonshot": Vendor(refused=("top_p", "n", *_PENALTIES), limit="max_tokens", temperatures=(1.0, 1.0)),
    "dashscope": Vendor(ignored=("logit_bias",), limit="max_tokens"),
    "openrouter": Vendor(ignored=("n",), limit="max_tokens"),
    "together": Vendor(limit="max_tokens"),
    "fireworks": Vendor(limit="max_tokens"),
    "groq": Vendor(refused=("n", "logprobs", "top_logprobs", "logit_bias")),
    "cerebras": Vendor(
        refused=("logit_bias", "parallel_tool_calls", "service_tier", *_PENALTIES),
        limit="max_completion_tokens",
        temperatures=(0.0, 1.5),
        status=422,
    ),
    "huggingface": Vendor(),
    "azure_v1": Vendor(),
    "ollama": Vendor(ignored=("n", "logit_bias", "num_ctx"), limit="max_tokens"),
    "llama_cpp": Vendor(),
    "lm_studio": Vendor(),
    "sglang": Vendor(),
    "vllm_server": Vendor(),
}
"""By the names of the presets. Servers on the user's own machine accept any key, and a placeholder."""
