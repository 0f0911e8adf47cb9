"""Background responses through the real SDK: polls, kills at any point, lost ids, caps."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.api.batch_journal import Journal, open_batches
from swe_infer.api.ledger import Ledger
from swe_infer.api.retry import Retry
from swe_infer.errors import BudgetExceeded, ConfigError, ProviderFatal
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Failure, Outcome, Skip
from tests.api.scripted import context, requests
from tests.api.test_batches import FAST, QUICK, child_of, run, stopped_once_submitted
from tests.api.test_runner import Outcomes
from tests.support.api_hostile import hostile_server
from tests.support.api_http import HttpRequest
from tests.support.api_server import ApiServer, Fault
from tests.support.steps import calls_of


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-0123456789")


def runner(
    url: str, directory: Path, *, cap: str | None = None, spent_usd: Decimal = Decimal(0), **settings: Any
) -> ApiRunner:
    api = ApiRunner(
        model=ApiModel(name="gpt-5.4"),
        provider=OpenAIResponses(base_url=f"{url}/v1", **{"background": True, **settings}),
        decoding=Decoding(temperature=None, max_new_tokens=256),
        budget=Budget(max_usd=Decimal(cap) if cap else None),
        retry=FAST,
        batches=QUICK,
    )
    api.check()
    api.bind(context(directory, spent_usd=spent_usd))
    return api


def test_each_request_is_one_polled_response_priced_by_its_own_tier(tmp_path: Path) -> None:
    faults = [Fault("bad_request", contains="fix it 3"), Fault("context_overflow", contains="fix it 5")]
    with ApiServer(faults=[*faults, Fault("server_error", per_prompt=1, fraction=0.3)], batch_delay_s=0.2) as server:
        server.maker.project_tier = "priority"
        api = runner(server.url, tmp_path, max_concurrency=5)
        outcomes = run(api, requests(7, samples=2))
        completions = [o for o in outcomes.values() if isinstance(o, Completion)]
        assert len(completions) == 10
        assert {type(outcomes["i3", 0]), type(outcomes["i5", 0])} == {Failure, Skip}
        assert set(server.log.answers_by_prompt().values()) == {2}
        assert server.batches.peak_running <= 5
        ids = {o.details["response_id"] for o in completions}
        assert len(ids) == 10
        assert ids <= set(server.batches.submitted())
        assert {o.details["service_tier"] for o in completions} == {"priority"}
        assert sum(o.cost_usd or Decimal(0) for o in completions) == server.log.cost_usd()
        sent = [e.body or {} for e in server.log.exchanges if e.method == "POST"]
        assert all(body["background"] and body["store"] and "stream" not in body for body in sent)
        assert open_batches(tmp_path) == []


def test_a_response_that_is_lost_counts_as_possibly_billed_and_is_submitted_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ApiServer() as server:
        server.batches.held = True
        assert stopped_once_submitted(runner(server.url, tmp_path, cap="1"), tmp_path, requests(2)) == []
        count = len(server.batches.submitted())
        server.batches.forget_responses()
        server.batches.held = False
        server.batches.drop_next_submissions = 1  # and one whose id never arrives
        outcomes = run(runner(server.url, tmp_path, cap="1"), requests(3))
        completions = [o for o in outcomes.values() if isinstance(o, Completion)]
        assert len(completions) == 3
        lost = len(server.batches.submitted()) - 3
        assert lost == count + 1
        possibly = [Decimal(o.details.get("possibly_billed_usd", 0)) for o in completions]
        assert sum(usd > 0 for usd in possibly) in (lost, lost - 1)  # one request may have lost both
        assert caplog.text.count("may be billed and cannot be collected") == lost
        assert "not found" in caplog.text
        paid = sum(o.cost_usd or Decimal(0) for o in completions)
        with closing(Ledger(tmp_path / "ledger.sqlite", Decimal(1), "run")) as ledger:
            assert ledger.spent_usd == paid + sum(possibly)
            assert ledger.remaining().available == ledger.remaining().unspent


def test_what_lost_responses_may_have_cost_is_reported_by_a_later_process(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.held = True
        assert stopped_once_submitted(runner(server.url, tmp_path, cap="1"), tmp_path, requests(1)) == []
        server.batches.forget_responses()
        stop, stopped = threading.Event(), Outcomes()

        def stop_once_submitted_again() -> None:
            while not any(batch.id in server.batches.submitted()[1:] for batch in open_batches(tmp_path)):
                time.sleep(0.01)
            stop.set()

        threading.Thread(target=stop_once_submitted_again, daemon=True).start()
        runner(server.url, tmp_path, cap="1").generate(requests(1), stopped, stop)
        assert stopped == []
        server.batches.held = False
        reported = list(run(runner(server.url, tmp_path, cap="1"), requests(1)).values())
        assert possibly_billed(reported) > 0
        with closing(Journal(tmp_path)) as journal:
            assert journal.possibly_billed == {}
        with closing(Ledger(tmp_path / "ledger.sqlite", Decimal(1), "run")) as ledger:
            paid = sum(o.cost_usd or Decimal(0) for o in reported if isinstance(o, Completion))
            assert ledger.spent_usd == paid + possibly_billed(reported)

            # A request that is not submitted again, because the cap is used up.
            server.batches.drop_next_submissions = 1
            outcomes = Outcomes()
            cap = str(ledger.spent_usd + Decimal("0.005"))
            again = runner(server.url, tmp_path, cap=cap, spent_usd=ledger.spent_usd)
            with pytest.raises(BudgetExceeded):
                again.generate(requests(2)[1:], outcomes, threading.Event())
            ((_, failure),) = outcomes
            assert isinstance(failure, Failure)
            assert ledger.spent_usd == paid + possibly_billed([*reported, failure])


def possibly_billed(outcomes: Iterable[Outcome]) -> Decimal:
    details = [o.details for o in outcomes if isinstance(o, Completion | Failure)]
    return sum((Decimal(each.get("possibly_billed_usd", 0)) for each in details), Decimal(0))


def test_counts_that_the_prompt_contradicts_are_estimated(tmp_path: Path) -> None:
    with ApiServer(faults=[Fault("absurd_usage", contains="fix it 1")]) as server:
        outcomes = run(runner(server.url, tmp_path, cap="1"), requests(3))
        answers = [outcome for outcome in outcomes.values() if isinstance(outcome, Completion)]
        estimated = [answer for answer in answers if "usage_estimated" in answer.details]
        assert (len(answers), len(estimated)) == (3, 1)
        assert estimated[0].usage.output_tokens < 1000


def test_a_stop_waits_for_ids_on_their_way_and_the_next_try_collects(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.held = True
        server.batches.response_delay_s = 0.3
        stop, outcomes = threading.Event(), Outcomes()

        def stop_once_accepted() -> None:
            while not server.batches.submitted():
                time.sleep(0.005)
            stop.set()

        threading.Thread(target=stop_once_accepted, daemon=True).start()
        runner(server.url, tmp_path, cap="1").generate(requests(30), outcomes, stop)
        assert outcomes == []
        assert {batch.id for batch in open_batches(tmp_path)} == set(server.batches.submitted())
        server.batches.held = False
        server.batches.response_delay_s = 0.0
        assert len(run(runner(server.url, tmp_path, cap="1"), requests(30))) == 30
        assert set(server.log.answers_by_prompt().values()) == {1}


def test_a_stop_does_not_wait_for_the_next_try_of_a_refused_submission(tmp_path: Path) -> None:
    with ApiServer(batch_delay_s=0.02) as server:
        server.batches.refuse_once = "fix it 1"
        stop, outcomes = threading.Event(), Outcomes()
        api = replace(runner(server.url, tmp_path), retry=Retry(backoff_s=600, max_backoff_s=600))
        api.bind(context(tmp_path))
        running = threading.Thread(target=api.generate, args=(requests(2), outcomes, stop), daemon=True)
        running.start()
        while server.batches.refuse_once:
            time.sleep(0.005)
        stop.set()
        running.join(20)
        assert not running.is_alive()
        assert ("i1", 0) not in outcomes.by_key


def test_a_cap_holds_and_is_used_up(tmp_path: Path) -> None:
    with ApiServer(batch_delay_s=0.02) as server:
        outcomes = Outcomes()

        def generate() -> None:
            with pytest.raises(BudgetExceeded, match=r"budget\.max_usd"):
                runner(server.url, tmp_path, cap="0.05").generate(requests(60), outcomes, threading.Event())

        attempts = calls_of(Ledger.reserve_batch.__code__, generate)
        assert attempts < 3 * len(server.batches.submitted())
        paid = sum(o.cost_usd or Decimal(0) for _, o in outcomes if isinstance(o, Completion))
        assert Decimal("0.045") <= paid == server.log.cost_usd() <= Decimal("0.05")


def test_a_refusal_of_what_fits_beside_an_unknown_response_does_not_end_a_run(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.held = True
        stopped_once_submitted(runner(server.url, tmp_path, cap="1"), tmp_path, requests(1))
        (left,) = open_batches(tmp_path)
        (item,) = left.items.values()
        server.batches.held = False
        server.batches.refused |= {left.id or ""}
        server.batches.refuse_once = "fix it 2"
        cap = str(Decimal(item.usd or 0) * Decimal("2.9"))
        outcomes = Outcomes()
        with pytest.raises(ProviderFatal, match="cannot be collected"):
            runner(server.url, tmp_path, cap=cap, max_concurrency=2).generate(
                requests(4), outcomes, threading.Event()
            )
        assert outcomes.by_key.keys() == {("i1", 0), ("i2", 0), ("i3", 0)}
        assert {type(outcome) for _, outcome in outcomes} == {Completion}


CHILD = """
import json, sys, threading
from dataclasses import replace
from pathlib import Path
from tests.api.test_background import runner
from tests.api.scripted import context, requests
from swe_infer.types import Completion
url, _, directory = sys.argv[1:]
records = Path(directory) / "records"
done = {tuple(json.loads(line)) for line in records.read_text().splitlines()} if records.exists() else set()
def keep(request, outcome):
    assert isinstance(outcome, Completion), outcome
    with records.open("a") as file:
        file.write(json.dumps(request.key) + "\\n")
api = runner(url, Path(directory), cap="20", max_concurrency=12)
api.bind(replace(context(Path(directory)), is_recorded=lambda key, turn, auxiliary: key in done))
api.generate([r for r in requests(20, samples=2) if r.key not in done], keep, threading.Event())
"""


def test_kills_at_any_moment_lose_nothing_and_pay_for_nothing_twice(tmp_path: Path) -> None:
    chance = random.Random(7)
    with ApiServer(batch_delay_s=0.2) as server:
        for attempt in range(3):
            child = child_of(CHILD, server.url, "openai", tmp_path)
            if attempt < 2:
                # A moment at which no id is under way: the server has sent all ids, and they are in the journal.
                more = len(server.batches.submitted()) + chance.randint(2, 10)
                while child.poll() is None:
                    journaled = {batch.id for batch in open_batches(tmp_path)}
                    if len(server.batches.submitted()) >= more and None not in journaled:
                        break
                    time.sleep(0.01)
                child.send_signal(signal.SIGKILL)
            _, errors = child.communicate()
            if (status := child.wait()) == 0:
                break
            assert status == -signal.SIGKILL, errors
        assert status == 0, errors
        kept = Counter((tmp_path / "records").read_text().splitlines())
        assert len(kept) == 40
        assert set(kept.values()) == {1}
        lost = errors.count("may be billed and cannot be collected")
        assert sum(server.log.answers_by_prompt().values()) <= 40 + lost
        assert open_batches(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "batch"}, r"provider\.background=true: a batch is computed in the background"),
        ({"stream": "always"}, r"provider\.background=true: .* not streamed"),
        ({"store": False}, r"provider\.background=true: OpenAI deletes"),
        ({"background": "8h", "service_tier": "flex"}, r"provider\.service_tier=flex: .*standard tier"),
    ],
)
def test_what_background_excludes_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        runner("http://127.0.0.1:9", tmp_path, **settings)


def test_open_responses_are_collected_in_background_mode_alone(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.held = True
        stopped_once_submitted(runner(server.url, tmp_path, background="2h"), tmp_path, requests(1))
        assert (server.log.exchanges[0].body or {})["background_options"] == {"completion_window": "2h"}
        for mode in ("live", "batch"):
            with pytest.raises(ConfigError, match=r"collect them with provider\.background=true first"):
                runner(server.url, tmp_path, background=False, mode=mode)
        server.batches.held = False
        again = runner(server.url, tmp_path)
        again.bind(replace(context(tmp_path), is_recorded=lambda key, turn, auxiliary: False))
        assert run(again, []).keys() == {("i0", 0)}


def test_refusals_and_broken_responses_are_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only a submission that may have been accepted counts as possibly billed."""
    with ApiServer() as server:
        server.script_elsewhere("rate_limit_bare", "rate_limit_bare", "cut", "server_error", None, "broken_json")
        outcomes = run(runner(server.url, tmp_path, cap="1", max_concurrency=1), requests(3))
        completions = [o for o in outcomes.values() if isinstance(o, Completion)]
        assert len(completions) == 3
        assert caplog.text.count("may be billed and cannot be collected") == 2  # cut, server_error
        assert sum("possibly_billed_usd" in o.details for o in completions) == 1
        assert len(server.batches.submitted()) == 4  # an error status means that nothing was accepted
        assert open_batches(tmp_path) == []


def test_bodies_that_are_no_ended_response_lose_no_answer(tmp_path: Path) -> None:
    running = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "gpt-5.4", "output": []}
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "the answer"}]}
    usage = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}
    ended = {**running, "status": "completed", "output": [message], "usage": usage}
    bodies = iter([{}, running, {"detail": "a gateway's words"}, ended, {}, running, ended])
    methods: list[str] = []

    def body(request: HttpRequest) -> tuple[int, bytes]:
        methods.append(request.method)
        return 200, json.dumps(running if request.method == "POST" else next(bodies)).encode()

    with hostile_server() as server:
        server.bodies["gateway"] = body
        (outcome,) = run(runner(f"{server.url}/gateway", tmp_path, cap="1"), requests(1)).values()
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.attempts) == ("the answer", 1)
    assert methods.count("POST") == 1
