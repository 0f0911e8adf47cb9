"""Whether all first answers of a run are the same error, which the configuration causes and no request can avoid.

Servers have no common status for an unknown model, a rejected key or a parameter that they do not accept: many send
400, for every request.
"""

from __future__ import annotations

import re

from swe_infer.errors import InvalidRequest, ProviderFatal, RequestError, TransientError
from swe_infer.providers.base import Provider
from swe_infer.types import ApiModel

_MANY = 5
"""Instances with the same error, and no answer, after which the run stops."""
_OF_CONFIGURATION = (None, 200, 400, 403, 405, 415, 422, 500, 501)
"""HTTP statuses of such errors. With status 200 the answer is unreadable; None is that of an error in the body of an
answer. Firewalls and gateways send 403 without a vendor's error. LiteLLM's proxy without its database client answers
500 where the API key is missing."""
_TRIES_OF_500 = 3
"""Tries of a request after which a 500 counts: it may pass."""
_VARYING = re.compile(r"\w*\d\w*")

_KEYS = (
    (r"temperature", "decoding.temperature"),
    (r"top_p", "decoding.top_p"),
    (r"seed", "decoding.seed"),
    (r"stop(_sequences)?", "decoding.stop"),
    (r"max_(completion_|output_)?tokens(_to_sample)?", "model.max_tokens_key and decoding.max_new_tokens"),
    (r"reasoning(_effort)?|effort|output_config", "model.effort"),
    (r"verbosity", "model.verbosity"),
    (r"(enable_)?thinking(_config|_budget)?|budget_tokens", "model.thinking"),
    (r"store", "provider.store"),
    (r"stream(_options)?", "provider.stream"),
    (r"prompt_cache_(key|options)", "provider.send_cache_key"),
    (r"api[-_]version|anthropic-version", "model.api_version"),
    (r"prefill|continue_final_message|add_generation_prompt", "prompt.prefill"),
    (r"api[-_]?key|auth\w*|token|credentials?", ""),
    (r"models?", "model.name"),
)
"""Words of error messages, and the configuration keys that they are about; empty: the API key."""


class FirstAnswers:
    """The errors of one server before its first answer.

    Args:
        answered: it has answered requests of the run already.
    """

    def __init__(self, answered: bool = False) -> None:
        self.answered = answered
        self._instances: dict[str, set[str]] = {}

    def fatal_error(
        self, instance_id: str, error: RequestError, attempts: int, provider: Provider, model: ApiModel
    ) -> ProviderFatal | None:
        """Records an error that is not retried. Returns the error that ends the run, if it must end.

        Args:
            attempts: to send the request, all with errors.
        """
        if self.answered or error.status not in _OF_CONFIGURATION:
            return None
        if error.status == 500 and attempts < _TRIES_OF_500:
            return None
        if not isinstance(error, InvalidRequest) and not (isinstance(error, TransientError) and error.status):
            return None
        alike = self._instances.setdefault(_VARYING.sub("", str(error)), set())
        alike.add(instance_id)
        if len(alike) < _MANY:
            return None
        fatal = ProviderFatal(
            f"{str(error).rstrip('.')}; the first {_MANY} requests failed alike, so the run stops: check "
            f"{_key_of(error, provider, model)}",
            status=error.status,
            request_id=error.request_id,
        )
        if error.status != 500:
            fatal.exit_status = 2
        return fatal


def keys_of_the_api_key(provider: Provider) -> str:
    """Where the API key of ``provider`` is configured."""
    variable = provider.credential
    return "provider.api_key_env" if variable is None else f"the key in {variable} (provider.api_key_env)"


def _key_of(error: RequestError, provider: Provider, model: ApiModel) -> str:
    """The configuration keys that an error is about, by the words of its message."""
    words = set(re.findall(r"[\w-]+", str(error).partition(": ")[2].lower()))
    for name in model.extra_body:
        if name.lower() in words:
            return f"model.extra_body.{name}"
    for pattern, key in _KEYS:
        if any(re.fullmatch(pattern, word) for word in words):
            return key or keys_of_the_api_key(provider)
    if error.status in (403, 500):
        return f"{keys_of_the_api_key(provider)} and provider.base_url"
    return "model.name, model.extra_body and provider.base_url"
