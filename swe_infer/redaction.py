"""Removes secrets from text before it is shown or written: passwords in URLs, API keys."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence

from swe_infer.errors import printable

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables with secret values."""

_HIDDEN_NAME = re.compile(rf"{SECRET_NAME.pattern}|ORG_ID|PROJECT_ID|PROXY", re.IGNORECASE)
_MIN_LENGTH = 8
"""Shorter values are more likely words than secrets."""

_USER = re.compile(r"(\\?:(?:\\?/){2})[^/@\s'\"]+@")
_PARAMETER = re.compile(
    r"([?&](?:(?:api|subscription|access)[-_]?)?(?:key|token|sig|signature|secret|password|code)=)[^&\s'\"]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """Removes ``user:password@`` and keys in the queries of URLs from ``text``.

    Colons may be escaped with a backslash, as in Hydra overrides.
    """
    if "@" in text:
        text = _USER.sub(r"\1***@", text)
    return _PARAMETER.sub(r"\1***", text) if "=" in text else text


_ASSIGNED = re.compile(
    r"((?:authorization|api[-_]?key|token|secret|password)['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic)\s+)?)"
    r"(?!\$\{|(?:bearer|basic)\s)[^\s,'\"{}]+",
    re.IGNORECASE,
)


def command_without_secrets(argument: str) -> str:
    """Removes secrets from an argument of a command line, also those that a user passed as ``password=…``."""
    return _ASSIGNED.sub(r"\1***", without_secrets(argument))


class RedactingFormatter(logging.Formatter):
    """Removes URL credentials, secrets of the environment and control characters from log lines and tracebacks.

    Libraries may log request headers, and exceptions may contain foreign text.
    """

    def __init__(self, form: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(form)
        self._secrets = _secrets_of(os.environ if environment is None else environment)

    def format(self, record: logging.LogRecord) -> str:
        return printable(_replaced(super().format(record), self._secrets), "?", keep="\n\t")


def without_secrets(text: str) -> str:
    """Removes URL credentials and secrets of the environment from ``text``."""
    return _replaced(text, _secrets_of(os.environ))


def _replaced(text: str, secrets: Sequence[str]) -> str:
    text = without_credentials(text)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _secrets_of(variables: Mapping[str, str]) -> list[str]:
    """The secret values of an environment, longest first."""
    values = {value for name, value in variables.items() if _HIDDEN_NAME.search(name)}
    for name in (name for name in variables if name.endswith("_CUSTOM_HEADERS")):
        values |= {line.partition(":")[2].strip() for line in variables[name].split("\n")}
    return sorted((value for value in values if len(value) >= _MIN_LENGTH), key=len, reverse=True)
