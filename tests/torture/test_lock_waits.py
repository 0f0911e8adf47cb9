"""Ctrl-C while a run waits for a lock of another process: it ends, and nothing is lost or paid for twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.run_directory.records import read_records
from tests.support import commands
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent
_PATIENCE_S = 45
"""Seconds to wait for the process. A run that ignores Ctrl-C waits 60 s for a lock."""


def started(server: ApiServer, directory: Path, *arguments: str) -> commands.Command:
    keys = (f"provider.base_url={server.openai_url}", "tracker=none", "dataset.run_tests=false")
    return commands.start(
        "swe_infer", "model=gpt-4o", "output_dir=run", *keys, *arguments, cwd=directory,
        env={**os.environ, "OPENAI_API_KEY": "sk-planted-secret", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def until(fact: Callable[[], object], process: commands.Command) -> None:
    deadline = time.monotonic() + 120
    while not fact():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def has_open(process: commands.Command, path: Path) -> bool:
    links = Path(f"/proc/{process.pid}/fd")
    return any(os.path.realpath(link) == str(path) for link in links.iterdir())  # it may be closed meanwhile


def interrupted(process: commands.Command) -> None:
    """Sends Ctrl-C once: the process ends with one line and no traceback."""
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 130, told
    assert len([line for line in told.splitlines() if "interrupted" in line]) == 1, told
    assert "Traceback" not in told
    assert not any(word in told for word in ("locked", "StoreError", "cannot be")), told


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


def test_a_paid_answer_is_recorded_though_its_ledger_is_locked(tmp_path: Path) -> None:
    with ApiServer(latency_s=2.0) as server:
        process = started(server, tmp_path, "budget.max_usd=5", "dataset.limit=6")
        until(lambda: server.in_flight, process)
        with locked(tmp_path / "run" / "ledger.sqlite"):
            until(lambda: server.log.answers(), process)
            time.sleep(0.5)  # it waits for the batch to appear
            interrupted(process)
        paid = server.log.answers_by_prompt()
        records = list(read_records(tmp_path / "run" / "records.jsonl"))
        assert sum(paid.values()) == len(records) > 0
        assert sum(Decimal(str(record["cost_usd"])) for record in records) == server.log.cost_usd()
        server.latency_s = 0.0
        again = started(server, tmp_path, "budget.max_usd=5", "dataset.limit=8")
        _, told = again.communicate(timeout=400)
        assert again.returncode == 0, told
        assert set(server.log.answers_by_prompt().values()) == {1}
        assert len(server.log.answers_by_prompt()) == 8
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert Decimal(str(summary["cost_usd"])) == server.log.cost_usd()
        with closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as db:
            (spent,) = db.execute("SELECT sum(amount) FROM spent").fetchone()
        assert Decimal(spent) / 10**12 >= server.log.cost_usd()


@pytest.mark.parametrize("what", ["ledger", "cache", "pace"])
def test_ctrl_c_ends_the_wait_for_a_lock(what: str, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    held, key = {
        "ledger": (tmp_path / "run" / "ledger.sqlite", "budget.max_usd=5"),
        "cache": (tmp_path / "cache" / "answers.sqlite", "runner.response_cache=cache"),
        "pace": (tmp_path / "pace", "runner.limits.shared=pace"),
    }[what]
    held.parent.mkdir(exist_ok=True)
    with ApiServer() as server, locked(held):
        process = started(server, tmp_path, key)
        until(lambda: has_open(process, held), process)
        time.sleep(0.5)  # it waits for the lock
        interrupted(process)
        assert server.log.exchanges == []
