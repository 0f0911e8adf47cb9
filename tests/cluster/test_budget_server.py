"""``swe-infer-budget``: one cap and one rate for processes that share no file system."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import pytest

from swe_infer.api.budget_address import BudgetAddress
from swe_infer.api.budget_client import BudgetClient, Unreachable, check_budget_server
from swe_infer.api.ledger import Ledger, LedgerEntry, Remaining
from swe_infer.api.limits import Limits
from swe_infer.api.remote_ledger import RemoteLedger, RemoteRateLimiter
from swe_infer.errors import BudgetExceeded, ConfigError, StoreError
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Decoding
from tests.api.scripted import context, requests
from tests.api.test_runner import Outcomes
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.sweeps.command import ROOT

SPENDER = """
import sys, time
from decimal import Decimal
from swe_infer.api.budget_client import Unreachable
from swe_infer.api.remote_ledger import RemoteLedger
ledger = RemoteLedger(sys.argv[1], Decimal(3), sys.argv[2], "budget.ledger")
paid = 0
while True:
    try:
        hold = ledger.reserve(Decimal("0.04"))
    except Unreachable:
        time.sleep(0.02)
        continue
    if hold == "cannot_fit":
        break
    if hold == "wait":
        time.sleep(0.01)
        continue
    ledger.charge_later(hold, Decimal("0.01"))
    paid += 1
    print(paid, flush=True)
"""


@contextmanager
def budget_server(
    folder: Path, port: int = 0, token: str = "", host: str = "127.0.0.1"
) -> Iterator[tuple[commands.Command, str]]:
    """The process, and its address."""
    process = commands.start(
        "swe_infer.budget", str(folder), "--host", host, "--port", str(port),
        cwd=ROOT, env={**os.environ, "SWE_INFER_BUDGET_TOKEN": token},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        found = re.match(r"(http://\S+) ", line)
        assert found is not None, line
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def test_workers_keep_one_cap_while_the_server_is_killed(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (server, address):
        port = int(address.rpartition(":")[2])
        code = ("-c", SPENDER, f"{address}/sweep")
        workers = [commands.start(*code, f"run{n}", cwd=ROOT, env=os.environ) for n in range(5)]
        for worker in workers:
            worker.stdout.readline()
        server.kill()
        server.wait()
    with budget_server(tmp_path, port):
        paid = [int(worker.communicate(timeout=120)[0].split()[-1]) for worker in workers]
        total = sum(paid) * Decimal("0.01")
        looker = RemoteLedger(f"{address}/sweep", Decimal(3), "looker", "budget.ledger")
        assert Decimal("2.8") <= total <= looker.spent_usd <= 3
        looker.close()


def test_a_call_that_is_repeated_counts_once(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (_, address):
        client = BudgetClient(BudgetAddress.parse(f"{address}/one", "budget.ledger"), "budget.ledger")
        caller = {"owner": "0" * 32, "host": "here", "run": "run", "cap_usd": "10"}
        numbers = itertools.count(1)

        def call(method: str, **arguments: object) -> object:
            return client.call(
                "ledgers", method, {**caller, "number": next(numbers), **arguments}, lambda result: result
            )

        assert call("reserve", id=7, usd="4") is True
        for _ in range(2):
            call("beat", charged=[(7, "3")])
        for _ in range(2):
            assert call("reserve_batch", label="a batch", usd=["2", "6"]) == [0]
            call("charge_batch", label="a batch", held="2", usd="1.5", change="c1")
            call("beat", refunded=[("c2", "1")])
        assert call("remaining") == ["4.5", "6.5"]
        with pytest.raises(StoreError, match="later call"):  # a server that was stopped gets it late
            call("reserve", id=8, usd="1", number=3)
        assert call("remaining") == ["4.5", "6.5"]
        client.close()


def test_reservations_of_a_silent_worker_are_charged(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (_, address):
        silent, living = (RemoteLedger(f"{address}/one", Decimal(10), run, "budget.ledger") for run in "ab")
        entry = silent.reserve(Decimal(6))
        assert isinstance(entry, LedgerEntry)
        assert living.reserve(Decimal(5)) == "wait"
        with sqlite3.connect(tmp_path / "one.ledger.sqlite") as database:
            database.execute("UPDATE owners SET beat = beat - 1000")
        assert living.reserve(Decimal(5)) == "cannot_fit"
        silent.charge(entry, Decimal(1))  # it was charged already
        assert living.spent_usd == 6
        silent.close()
        living.close()


def test_runs_without_a_shared_folder_keep_one_cap_and_one_rate(tmp_path: Path) -> None:
    cap = Decimal("0.03")
    token = {"SWE_INFER_BUDGET_TOKEN": "a-token-for-budgets"}
    with (
        budget_server(tmp_path / "budgets", token=token["SWE_INFER_BUDGET_TOKEN"]) as (_, address),
        ApiServer(latency_s=0.05) as server,
    ):

        def run(name: str, *arguments: str, **environment: str) -> commands.Command:
            home = tmp_path / name
            home.mkdir()
            data = write_instances(home / "instances.jsonl", 60)
            return commands.start(
                "swe_infer", "tracker=none", "model=gpt-4o", "dataset=jsonl", f"dataset.path={data}",
                f"provider.base_url={server.openai_url}", "decoding.max_new_tokens=64", f"budget.sweep_max_usd={cap}",
                f"budget.ledger={address}/sweep", f"runner.limits.shared={address}/key", *arguments, cwd=home,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test", **environment},
            )  # fmt: skip

        refused = run("refused")
        _, errors = refused.communicate(timeout=120)
        assert (refused.returncode, "SWE_INFER_BUDGET_TOKEN" in errors) == (2, True), errors
        assert server.log.asked() == []
        workers = [run(f"machine{n}", **token) for n in range(2)]
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 3, errors
        assert cap / 2 < server.log.cost_usd() <= cap
        assert all("a-token-for-budgets" not in path.read_text(errors="replace") for path in tmp_path.rglob("*.yaml"))


def test_a_resumed_run_does_not_begin_its_cap_again_in_another_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    def bound(**budget: Any) -> ApiRunner:
        provider = OpenAIChat(base_url=server.openai_url)
        api = ApiRunner(
            model=ApiModel(name="gpt-4o"), provider=provider, decoding=Decoding(max_new_tokens=64),
            budget=Budget(**budget),
        )  # fmt: skip
        api.bind(context(run))
        return api

    run = tmp_path / "run"
    run.mkdir()
    cap = Decimal("0.01")
    with budget_server(tmp_path / "budgets") as (_, address), ApiServer() as server:
        named = f"{address}/sweep"
        with pytest.raises(BudgetExceeded):
            bound(sweep_max_usd=cap, ledger=named).generate(requests(100), Outcomes(), threading.Event())
        with pytest.raises(ConfigError, match=f"add budget.ledger={re.escape(named)}"):
            bound(sweep_max_usd=cap)
        with pytest.raises(BudgetExceeded):
            bound(sweep_max_usd=cap, ledger=named).generate(requests(200)[100:], Outcomes(), threading.Event())
        assert cap / 2 < server.log.cost_usd() <= cap
        assert not caplog.records
        bound(max_usd=Decimal(1))
        assert f"budget.ledger={named}" in caplog.text
        asked = len(server.log.exchanges)
        strange = ["http://h;id/x", "http://$(id)/x", "http://\x1bc/x", "http://h/x\n", f"http://{'h' * 999}/x"]
        (run / "sweep_ledgers.json").write_text(
            json.dumps(["http://h:1/a/b", "ftp://h/x", "ray://", "https://u:p@h/x", *strange])
        )
        bound(sweep_max_usd=cap)  # no address of a ledger is in the file
        assert len(server.log.exchanges) == asked


def test_a_rate_is_shared(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (_, address):
        limiters = [RemoteRateLimiter(f"{address}/key", "runner.limits.shared") for _ in range(2)]
        waits = [limiters[n % 2].acquire((1, 0, 0), (1.0, None, None)) for n in range(4)]
        assert waits[0] == 0
        assert waits[2] > 0
        assert waits[3] > 0
        limiters[0].pause(1000)
        assert limiters[1].acquire((1, 0, 0), (1.0, None, None)) > 900
        for limiter in limiters:
            limiter.close()


def test_a_run_that_is_resumed_counts_once(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (_, address):
        first = RemoteLedger(f"{address}/one", Decimal(10), "run", "budget.ledger")
        paid, in_flight = first.reserve(Decimal(3)), first.reserve(Decimal(2))
        assert isinstance(paid, LedgerEntry)
        assert isinstance(in_flight, LedgerEntry)
        assert first.reserve_batch("batch", [Decimal("0.5")]) == [0]
        first.charge_later(paid, Decimal(1))  # its record is written, and the process is killed
        again = RemoteLedger(f"{address}/one", Decimal(10), "run", "budget.ledger")
        assert again.record_earlier_spending(Decimal(1)) == Decimal(5), "what was reserved is charged"
        assert again.remaining() == Remaining(Decimal("4.5"), Decimal(5))
        with closing(RemoteLedger(f"{address}/one", Decimal(10), "other", "budget.ledger")) as other:
            assert other.other_runs_with_batches() == ["run"]
            assert again.other_runs_with_batches() == []
        first.close()
        again.close()


def test_clients_of_a_server_that_was_stopped_are_alive(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (_, address):
        living = RemoteLedger(f"{address}/one", Decimal(10), "living", "budget.ledger")
        entry = living.reserve(Decimal(4))
        assert isinstance(entry, LedgerEntry)
        port = int(address.rpartition(":")[2])
    with sqlite3.connect(tmp_path / "one.ledger.sqlite") as database:
        database.execute("UPDATE owners SET beat = beat - 1000")
    with budget_server(tmp_path, port):
        other = RemoteLedger(f"{address}/one", Decimal(10), "other", "budget.ledger")
        assert other.remaining() == Remaining(Decimal(6), Decimal(10))
        for ledger in (living, other):
            ledger.close()


def test_a_server_that_is_stopped_delays_the_event_loop_by_one_call_a_second(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (server, address), ExitStack() as clients_closed:

        def ledger(run: str) -> RemoteLedger:
            made = RemoteLedger(f"{address}/one", Decimal(10), run, "budget.ledger")
            return clients_closed.enter_context(closing(made))

        ledgers = [ledger(f"run{n}") for n in range(3)]
        limiter = RemoteRateLimiter(f"{address}/key", "runner.limits.shared")
        clients_closed.enter_context(closing(limiter))
        commands.pause(server.pid)
        clients_closed.callback(server.send_signal, signal.SIGCONT)
        clients = [limiter._client, *(ledger._client for ledger in ledgers)]
        before = sum(client.calls for client in clients)
        for _ in range(100):
            for each in ledgers:
                with pytest.raises(Unreachable, match="no reply"):
                    each.reserve(Decimal(1))
            assert limiter.acquire((1, 0, 0), (1.0, None, None)) > 0
        assert 1 <= sum(client.calls for client in clients) - before < 100
        server.send_signal(signal.SIGCONT)
        while limiter.acquire((1, 0, 0), (None, None, None)) != 0:
            time.sleep(0.1)
        assert ledgers[0].remaining() == Remaining(Decimal(10), Decimal(10))  # all are released, late ones too


@pytest.mark.parametrize(
    "result", ["null", "[1]", '["NaN", "NaN"]', "1e999", '"wait"', '"swe-infer-budget"', "endless"]
)
def test_other_servers_are_refused(result: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"result": ')
            with suppress(OSError):
                while result == "endless":
                    self.wfile.write(b" ")
                    time.sleep(0.1)
                self.wfile.write(result.encode() + b"}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/one"

        def ledger() -> RemoteLedger:
            return RemoteLedger(address, Decimal(1), "run", "budget.ledger")

        uses: list[Callable[[], object]] = [
            lambda: ledger().remaining(),
            lambda: ledger().reserve_batch("batch", [Decimal(1)]),
            lambda: RemoteRateLimiter(address, "runner.limits.shared").acquire((1, 0, 0), (1.0, None, None)),
        ]
        if result != '"swe-infer-budget"':
            uses.append(lambda: check_budget_server(address, "budget.ledger"))
        for use in uses:
            with pytest.raises(StoreError, match=r"not a swe-infer-budget server|no complete reply"):
                use()
        server.shutdown()


@pytest.mark.parametrize("token", ["pässwörd-pässwörd", "two words of a token", "line\nbreak-of-a-token", "short"])
def test_a_token_that_is_short_or_that_no_header_can_contain_is_refused(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWE_INFER_BUDGET_TOKEN", token)
    with pytest.raises(ConfigError, match="SWE_INFER_BUDGET_TOKEN") as raised:
        check_budget_server("http://127.0.0.1:1/one", "budget.ledger")
    assert token not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://h:99999/a", "http://h:x/a", "http://[h/a", "ftp://h/a", "http://h:1", "http://h:1/a/b",
        "http://u:secret@h/a", "http:///a", "http://h/.a", "ray://h:10001", "ray://", "ray://u:secret@h",
    ],
)  # fmt: skip
def test_addresses_name_a_server_and_a_ledger(address: str) -> None:
    with pytest.raises(ConfigError, match=r"http://HOST:8787/NAME") as raised:
        Limits(shared=address)
    assert "secret" not in str(raised.value)


def test_all_interfaces_are_shown_as_the_name_of_this_machine(tmp_path: Path) -> None:
    with budget_server(tmp_path, token="a-token-for-budgets", host="0.0.0.0") as (_, address):
        assert address.startswith(f"http://{socket.gethostname()}:")


def test_what_others_send_is_refused(tmp_path: Path) -> None:
    with budget_server(tmp_path) as (_, address):
        client = BudgetClient(BudgetAddress.parse(f"{address}/one", "budget.ledger"), "budget.ledger")
        caller = {"owner": "0" * 32, "host": "here", "run": "run", "cap_usd": "10", "number": 1}
        for arguments in ({"usd": "-1"}, {"usd": "NaN"}, {"usd": "1", "id": -1}, {"usd": "1", "id": 1, "more": 1}):
            with pytest.raises(StoreError, match=r"usd|id|more"):
                client.call("ledgers", "reserve", {**caller, **arguments}, str)
        with pytest.raises(StoreError, match="no call"):
            client.call("ledgers", "drop", caller, str)
        for headers in ({"Host": "elsewhere.example"}, {"Content-Type": "text/plain"}):  # as of a page in a browser
            sent = {"Content-Type": "application/json", **headers}
            with pytest.raises(HTTPError) as refused:
                urlopen(UrlRequest(f"{address}/limits/one/pause", b'{"seconds": 9}', sent), timeout=60)
            refused.value.close()
            assert refused.value.code == 400
        assert not (tmp_path / "one.limits.sqlite").exists()
        assert Ledger(tmp_path / "one.ledger.sqlite", Decimal(1), "look").spent_usd == 0
        client.close()
    with pytest.raises(StoreError, match="no reply"):
        RemoteLedger("http://127.0.0.1:1/one", Decimal(1), "run", "budget.ledger")
