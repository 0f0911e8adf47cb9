"""Checks before any request: a missing key, a malformed URL, decoding parameters that the model does not support.
Every message names the key to change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError
from swe_infer.providers.faults import one_line
from swe_infer.types import ApiModel, Decoding


def check_base_url(base_url: str, key: str = "provider.base_url") -> None:
    """Raises ConfigError unless ``base_url``, set by ``key``, is an absolute http(s) address with a valid port."""
    if not base_url:
        raise ConfigError("provider.base_url is not set: give the server's address, such as http://localhost:8000/v1")
    setting = f"{key}={one_line(base_url)}"
    try:
        parts = urlsplit(base_url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port_is_valid
        or base_url != base_url.strip()
    ):
        raise ConfigError(f"{setting}: must be an address such as https://host/path")
    if parts.query or parts.fragment:
        raise ConfigError(f"{setting}: must end with its path, without '?' or '#'")


def host_of(base_url: str) -> str:
    """Host and port, without a user or a password."""
    return urlsplit(base_url).netloc.rpartition("@")[2]


def check_key(variable: str | None) -> None:
    """Raises ConfigError if the key is not set, or cannot be sent as a header."""
    if variable is None:
        return
    if not variable:
        raise ConfigError("provider.api_key_env is empty: name an environment variable that contains the key")
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"{variable} is not set: put the API key into that environment variable")
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError(f"{variable} has blanks, line breaks or other characters that no API key has")


def check_service_tier(tier: str, known: Iterable[str]) -> None:
    """Raises ConfigError unless a vendor has a service tier."""
    if tier not in known:
        hint = "; the batch API is provider.mode=batch" if tier == "batch" else ""
        raise ConfigError(f"provider.service_tier={one_line(tier)}: must be one of {', '.join(known)}, or null{hint}")


def check_decoding(
    model: ApiModel,
    decoding: Decoding,
    *,
    provider: str,
    supported: Iterable[str],
    temperature_range: tuple[float, float],
) -> None:
    """Raises ConfigError for parameters in ``decoding`` that the model or the provider's API does not support.

    Args:
        provider: the vendor's name, for messages.
        supported: the parameters that the API has a field for.
        temperature_range: the lowest and the highest temperature of the API.
    """
    requested = {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "seed": decoding.seed,
        "stop": decoding.stop or None,
    }
    interface = set(supported)
    for key, value in requested.items():
        if value is None:
            continue
        nothing = "[]" if key == "stop" else "null"
        if key not in model.parameters or key not in interface:
            subject = f"the model {model.name}" if key not in model.parameters else f"provider={provider}"
            taken = [name for name in requested if name in model.parameters and name in interface]
            raise ConfigError(
                f"decoding.{key}={_shown(value)}: {subject} does not support {key} (it takes "
                f"{', '.join(taken) or 'no sampling parameters'}); set decoding.{key}={nothing}"
            )
    if model.one_sampler and decoding.temperature is not None and decoding.top_p is not None:
        raise ConfigError(
            f"decoding.temperature={decoding.temperature} decoding.top_p={decoding.top_p}: the model {model.name} "
            "supports one of them, not both; set decoding.top_p=null"
        )
    low, high = temperature_range
    if decoding.temperature is not None and not low <= decoding.temperature <= high:
        limit = f"only {low:g}" if low == high else f"at least {low:g} and at most {high:g}"
        raise ConfigError(
            f"decoding.temperature={decoding.temperature}: {limit} with provider={provider}; set "
            "decoding.temperature=null for the model's default"
        )
    _check_output_limit(model, decoding)


def _check_output_limit(model: ApiModel, decoding: Decoding) -> None:
    wanted = decoding.max_new_tokens
    if model.max_output_tokens is not None and wanted > model.max_output_tokens:
        raise ConfigError(
            f"decoding.max_new_tokens={wanted}: {model.name} writes at most {model.max_output_tokens} tokens"
        )
    if model.context_window is not None and wanted >= model.context_window:
        raise ConfigError(
            f"decoding.max_new_tokens={wanted}: leaves no tokens for a prompt in the context window of "
            f"{model.context_window} tokens of {model.name}"
        )


def check_refused_fields(model: ApiModel, refused: Iterable[str], provider: str) -> None:
    """Raises ConfigError if ``model.extra_body`` has a field that the vendor refuses or ignores."""
    for name in refused:
        if name in model.extra_body:
            raise ConfigError(f"model.extra_body.{name}: provider={provider} does not support {name}; leave it out")


def check_extra_body(model: ApiModel, reserved: Iterable[str]) -> None:
    """Raises ConfigError if ``model.extra_body`` would override a field that this program sets."""
    for key in reserved:
        if key in model.extra_body:
            raise ConfigError(
                f"model.extra_body.{key}: is set from other keys (model.name, decoding.*); leave it out"
            )


def _shown(value: object) -> str:
    return f"[{', '.join(map(repr, value))}]" if isinstance(value, tuple) else str(value)
