"""``docs/faults.md`` says what becomes of each fault; here every row of it is put through a run."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest

from swe_infer.api.ledger import Ledger
from swe_infer.api.retry import Retry
from swe_infer.errors import INFRASTRUCTURE_ERRORS, InvalidRequest, ProviderFatal, RateLimited, TransientError
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.faults import classify
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Failure, Outcome, Request, Skip
from tests.api.scripted import context, request
from tests.api.test_runner import Outcomes
from tests.support.api_server import ApiServer, Fault, FaultKind

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
CONNECTIONS = ("refused", "unknown_host", "tls")
TWICE = Retry(tries=2, backoff_s=0.01, max_backoff_s=0.02)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    kind: str
    taken_for: str
    again: bool
    end: str
    billed: bool
    infrastructure: bool


def rows() -> Iterator[Row]:
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and (kind := re.fullmatch(r"`(\w+)`", cells[1])):
            assert {cells[3], cells[5], cells[6]} <= {"yes", "no"}, line
            yield Row(kind[1], cells[2], cells[3] == "yes", cells[4], cells[5] == "yes", cells[6] == "yes")


TABLE = {row.kind: row for row in rows()}
EMPTY_AT_ANTHROPIC = "no_choices"
"""A message without content: the model had nothing to say, which is an answer."""
LIVE = [row for row in TABLE.values() if row.kind not in (*CONNECTIONS, "hang") and not row.end.startswith("stops")]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-loopback-0123456789")


def runner(vendor: str, address: str, timeout_s: float = 120.0, budget: Budget | None = None) -> ApiRunner:
    decoding = Decoding(max_new_tokens=64)
    if vendor == "openai":
        chat = OpenAIChat(base_url=f"{address}/v1", timeout_s=timeout_s)
        return ApiRunner(
            model=ApiModel(name="gpt-4o"), provider=chat, decoding=decoding, budget=budget or Budget(), retry=TWICE
        )
    messages = AnthropicMessages(base_url=address, timeout_s=timeout_s)
    return ApiRunner(
        model=ApiModel(name="claude-sonnet-4-5"),
        provider=messages,
        decoding=decoding,
        budget=budget or Budget(),
        retry=TWICE,
    )


def marked(kind: str) -> Request:
    return request(kind, text=f"Fix <{kind}> now.")


def at(vendor: str) -> list[Row]:
    """The rows as they hold there."""
    empty = replace(TABLE["empty"], kind=EMPTY_AT_ANTHROPIC)
    return [empty if vendor == "anthropic" and row.kind == EMPTY_AT_ANTHROPIC else row for row in LIVE]


def ask(api: ApiRunner, kinds: list[str]) -> dict[str, Outcome]:
    outcomes = Outcomes()
    api.generate([marked(kind) for kind in kinds], outcomes, threading.Event())
    return {name: outcome for (name, _), outcome in outcomes.by_key.items()}


def fault(kind: str, *, once: bool) -> Fault:
    assert kind in get_args(FaultKind)
    times = 1 if once else None
    return Fault(kind, contains=f"<{kind}>", times=times, retry_after_s=0.01)  # type: ignore[arg-type]


def test_the_table_names_every_fault() -> None:
    in_batches = {kind for kind in get_args(FaultKind) if kind.startswith("batch_")}
    assert TABLE.keys() | in_batches == {*get_args(FaultKind), *CONNECTIONS}
    assert all(f"`{kind}`" in DOCUMENT.read_text() for kind in in_batches)


def test_the_table_decides_which_errors_are_failures_of_infrastructure() -> None:
    for row in TABLE.values():
        assert row.infrastructure == (row.taken_for in INFRASTRUCTURE_ERRORS), row
    assert {row.taken_for for row in TABLE.values() if row.infrastructure} | {
        "ProviderFatal", "Unreachable", "RepositoryNotAvailable",
    } == INFRASTRUCTURE_ERRORS, "these three have no row"  # fmt: skip


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_a_fault_that_passes_costs_a_try_or_the_request_as_the_table_says(vendor: str) -> None:
    with ApiServer(faults=[fault(row.kind, once=True) for row in LIVE]) as server:
        found = ask(runner(vendor, server.url), [row.kind for row in LIVE])
    for row in at(vendor):
        outcome = found[row.kind]
        if row.again or row.end == "completed":
            assert isinstance(outcome, Completion), row
            assert outcome.attempts == 1 + row.again, row
            assert ("possibly_billed_usd" in outcome.details) == row.billed, row
        else:
            assert type(outcome) is (Skip if row.end == "skipped" else Failure), row


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_a_fault_without_end_ends_as_the_table_says(vendor: str) -> None:
    with ApiServer(faults=[fault(row.kind, once=False) for row in LIVE]) as server:
        found = ask(runner(vendor, server.url), [row.kind for row in LIVE])
        asked = [exchange.prompt or "" for exchange in server.log.asked()]
    for row in at(vendor):
        check_end(row, found[row.kind])
        assert sum(f"<{row.kind}>" in prompt for prompt in asked) == 1 + row.again, row


def check_end(row: Row, outcome: Outcome) -> None:
    match outcome:
        case Completion():
            assert (row.end, row.taken_for) == ("completed", "an answer"), row
        case Skip():
            assert (row.end, row.taken_for) == ("skipped", outcome.reason), row
        case Failure():
            assert (row.end, row.taken_for) == ("failed", outcome.error_type), row
            assert outcome.attempts == 1 + row.again, row


@pytest.mark.parametrize("kind", [row.kind for row in TABLE.values() if row.end.startswith("stops")])
def test_what_stops_the_run_stops_it_with_the_status_of_the_table(kind: str) -> None:
    row = TABLE[kind]
    with ApiServer(faults=[fault(kind, once=False)]) as server:
        with pytest.raises(ProviderFatal) as caught:
            ask(runner("openai", server.url), [kind])
        assert len(server.log.asked()) == 1
    assert type(caught.value).__name__ == row.taken_for
    assert f"stops the run, {caught.value.exit_status}" == row.end


def test_silence_is_given_up_at_the_time_limit() -> None:
    with ApiServer(faults=[fault("hang", once=False)]) as server:
        check_end(TABLE["hang"], ask(runner("openai", server.url, timeout_s=1.0), ["hang"])["hang"])
        assert len(server.log.asked()) == 2


def refuse_all(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed at the end of the test
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_failed_connections_are_retried_and_cost_nothing(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as speaks_no_tls, socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        threading.Thread(target=refuse_all, args=[speaks_no_tls], daemon=True).start()
        addresses = {
            "refused": f"http://127.0.0.1:{nobody_listens.getsockname()[1]}",
            "unknown_host": "http://no-such-host.invalid",
            "tls": f"https://127.0.0.1:{speaks_no_tls.getsockname()[1]}",
        }
        api = runner("openai", addresses[kind], budget=Budget(max_usd=Decimal(1)))
        api.bind(context(tmp_path))
        outcome = ask(api, [kind])[kind]
    row = TABLE[kind]
    check_end(row, outcome)
    ledger = Ledger(tmp_path / "ledger.sqlite", Decimal(1), "another")
    assert (ledger.spent_usd > 0) == row.billed
    ledger.close()


@pytest.mark.parametrize("body", [{}, "", "<html>", {"error": {"message": "no"}}])
def test_every_other_status_is_an_error_that_is_tried_again_or_fails_one_request(body: object) -> None:
    known = {401, 402, 403, 404, 408, 409, 410, 424, 425, 429, 460, 498, 499, 501, 505}
    for status in set(range(201, 600)) - known:
        error = classify(status, body, {}, where="host, model")
        if 300 <= status < 400:  # a redirect, which is not followed, ends the run
            assert type(error) is ProviderFatal, status
            continue
        again = isinstance(error, RateLimited | TransientError)
        assert again == (not 400 <= status < 500), status
        assert again or type(error) is InvalidRequest, status
