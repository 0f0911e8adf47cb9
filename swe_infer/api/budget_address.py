"""Addresses of ledgers and rate limiters that a server keeps."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError
from swe_infer.redaction import without_credentials
from swe_infer.text import clean

TOKEN_VARIABLE = "SWE_INFER_BUDGET_TOKEN"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""The name of a ledger or rate limiter, which is a file name of the server."""
CHECKED = "swe-infer-budget"
"""The server's reply to :func:`~swe_infer.api.budget_client.check_budget_server`."""
RAY = "ray:/"
"""The server in an actor of the Ray cluster (:mod:`swe_infer.api.budget_actor`)."""


@dataclass(frozen=True, slots=True)
class BudgetAddress:
    """Where a ledger or a rate limiter is kept: the server's address, and a name there.

    Args:
        server: such as ``http://HOST:8787``, or :data:`RAY`.
    """

    server: str
    name: str

    @classmethod
    def parse(cls, text: str, key: str) -> Self:
        """Raises ConfigError with ``key`` if ``text`` is not such an address."""
        with suppress(ValueError):  # an invalid port or IPv6 address
            parts = urlsplit(text)
            name = parts.path.strip("/")
            if parts.scheme == "ray" and re.fullmatch(NAME, text.partition("://")[2].removesuffix("/")):
                return cls(RAY, parts.netloc)
            if (
                parts.scheme in ("http", "https")
                and parts.hostname
                and parts.port != 0
                and not (parts.username or parts.password or parts.query or parts.fragment)
                and re.fullmatch(NAME, name)
            ):
                return cls(f"{parts.scheme}://{parts.netloc}", name)
        raise ConfigError(
            f"{key}={clean(without_credentials(text))}: must be the address of a swe-infer-budget server and a name "
            f"for what is shared, such as http://HOST:8787/NAME, or ray://NAME for the Ray cluster of this process; "
            f"a token belongs in {TOKEN_VARIABLE}"
        )


def is_budget_address(text: str) -> bool:
    """Whether ``text`` is a URL, which :meth:`BudgetAddress.parse` checks, and not the path of a file."""
    return re.match(r"(?i)[a-z][a-z0-9+.-]+:/", text) is not None
