"""Several processes of one sweep, as a launcher starts them: one cap for all, one cache for all."""

from __future__ import annotations

import os
import random
import signal
import time
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.api_server import ApiServer

POINT = """
import sys, threading
from decimal import Decimal
from pathlib import Path
from swe_infer.errors import BudgetExceeded
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding
from tests.api.scripted import context, requests
url, directory, name, cap, concurrency = sys.argv[1:]
decoding = Decoding(max_new_tokens=64, temperature=float(name) / 10)
provider = OpenAIChat(base_url=url, max_concurrency=int(concurrency))
budget = Budget(sweep_max_usd=Decimal(cap))
api = ApiRunner(model=ApiModel(name="gpt-4o"), provider=provider, decoding=decoding, budget=budget)
api.check()
api.bind(context(Path(directory), run_id=name))
print("ready", flush=True)
spent = []
def keep(request, outcome):
    assert isinstance(outcome, Completion), outcome
    spent.append(outcome.cost_usd)
try:
    api.generate(requests(800, text="word " * 400, decoding=decoding), keep, threading.Event())
except BudgetExceeded as error:
    print(error)
print(sum(spent, Decimal(0)))
"""


def point(server: ApiServer, directory: Path, name: int, cap: str, concurrency: int = 32) -> commands.Command:
    arguments = [server.openai_url, str(directory), str(name), cap, str(concurrency)]
    return commands.start("-c", POINT, *arguments, cwd=Path.cwd(), env=os.environ)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback")


def test_four_processes_under_one_cap_never_pass_it_and_use_it_up(tmp_path: Path) -> None:
    cap = "0.2"
    with ApiServer(latency_s=(0.02, 0.1)) as server:
        points = [point(server, tmp_path, n, cap, concurrency=8) for n in range(4)]
        said = [p.communicate(timeout=90)[0].split("\n") for p in points]
        assert all("budget.sweep_max_usd" in lines[1] for lines in said)
        bill = server.log.cost_usd()
        assert sum(Decimal(lines[2]) for lines in said) == bill
        assert Decimal("0.95") * Decimal(cap) <= bill <= Decimal(cap)


@pytest.mark.full
def test_the_cap_holds_when_processes_are_killed_and_started_again(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cap, chance = "0.5", random.Random(3)
    with ApiServer(latency_s=(0.02, 0.1)) as server:
        for _ in range(3 if request.config.getoption("full") else 2):
            points = [point(server, tmp_path, n, cap, concurrency=8) for n in range(2)]
            for process in points:
                assert process.stdout.readline() == "ready\n"
            answered = len(server.log.answers()) + chance.randint(20, 40)
            while len(server.log.answers()) < answered and any(process.poll() is None for process in points):
                time.sleep(0.01)
            for process in points:
                process.send_signal(signal.SIGKILL)
                process.communicate()
        process = point(server, tmp_path, 0, cap)
        assert "budget.sweep_max_usd" in process.communicate(timeout=90)[0]
        # What was reserved at a kill counts at its worst price, a third of a cent for some 20 requests at each kill,
        # also where no request was sent or answered.
        assert Decimal("0.4") * Decimal(cap) <= server.log.cost_usd() <= Decimal(cap)
