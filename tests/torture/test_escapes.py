"""Untrusted names and texts in logs, errors and file names."""

from __future__ import annotations

import logging

import pytest

from swe_infer.config import run_name
from swe_infer.errors import DataError
from swe_infer.redaction import RedactingFormatter, without_credentials

PLAIN = {"shard": {"index": None, "count": None}}


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "/etc/passwd", "a\x00b", "..", "\x1b[2J", "x" * 5000, "C:\\x"]
)
def test_no_model_name_leaves_the_output_folder(name: str) -> None:
    made = run_name(PLAIN, name, name)
    assert "/" not in made
    assert made not in (".", "..")
    assert made.isprintable()
    assert len(made) < 200


def test_control_sequences_reach_neither_logs_nor_error_lines() -> None:
    formatter = RedactingFormatter("%(levelname)s %(message)s", {})
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s: \x1b]0;title\x07", ("id\x1b[2J\r",), None)
    assert formatter.format(record) == "INFO id?[2J?: ?]0;title?"
    assert str(DataError("a\nb\x1b[2J")) == "a b [2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:planted@host/v1", "https://***@host/v1"),
        ("https\\://user:planted@host", "https\\://***@host"),
        ("https://host/?api-key=planted&a=b", "https://host/?api-key=***&a=b"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_credentials_are_redacted_in_urls(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_secrets_of_the_environment_are_redacted_in_tracebacks() -> None:
    formatter = RedactingFormatter("%(message)s", {"MY_API_KEY": "planted-secret", "HOME": "/home/someone"})
    try:
        raise ValueError("planted-secret in /home/someone")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (type(error), error, None))
    assert "planted" not in formatter.format(record)
    assert "/home/someone" in formatter.format(record)
