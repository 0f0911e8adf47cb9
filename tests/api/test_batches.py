"""Provider batches through the real SDKs: kills at any point, results in any order, items that go back, caps."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest

from benchmarks.torture.shortages import mounted
from swe_infer.api.batch import BatchSettings
from swe_infer.api.batch_journal import Batch, Item, Journal, open_batches
from swe_infer.api.ledger import Ledger
from swe_infer.api.pricing import price_table_for
from swe_infer.api.retry import Retry
from swe_infer.errors import BudgetExceeded, ConfigError, ModelNotFound, ProviderFatal, StoreError
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import Provider
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Failure, Outcome, Prompt, Request, Skip
from tests.api.scripted import context, request, requests
from tests.api.test_runner import Outcomes, wait_for
from tests.providers.conftest import build
from tests.support import commands
from tests.support.api_server import ApiServer, Fault

VENDORS = ("openai", "anthropic")
OTHERS = {"mistral": "mistral-large-4", "together": "openai/gpt-oss-120b", "gemini": "gemini-3.8-flash"}
"""A model of each vendor whose batches have a form of their own."""
EVERY = (*VENDORS, "openai_responses", *OTHERS)


def some_of(vendors: Iterable[str]) -> list[Any]:
    """Those of the main vendors and of one other form run without ``--all``; tests/providers tries every form."""
    return [
        pytest.param(vendor, marks=[pytest.mark.full] * (vendor not in (*VENDORS, "gemini"))) for vendor in vendors
    ]


QUICK = BatchSettings(first_poll_s=0.05, max_poll_s=0.1, settle_s=0.3)
FAST = Retry(backoff_s=0.02, max_backoff_s=0.05)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "ANTHROPIC", *map(str.upper, OTHERS)):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-loopback-0123456789")


def runner(
    url: str,
    vendor: str,
    directory: Path,
    *,
    cap: str | None = None,
    batches: BatchSettings = QUICK,
    retry: Retry = FAST,
) -> ApiRunner:
    provider: Provider
    if vendor == "openai":
        provider, model = OpenAIChat(base_url=f"{url}/v1", mode="batch"), ApiModel(name="gpt-4o")
    elif vendor == "openai_responses":
        provider, model = OpenAIResponses(base_url=f"{url}/v1", mode="batch"), ApiModel(name="gpt-5-pro")
    elif vendor in OTHERS:
        version = "v1beta/openai/" if vendor == "gemini" else "v1"
        provider = build(vendor, base_url=f"{url}/{version}", mode="batch")
        model = ApiModel(name=OTHERS[vendor])
    else:
        provider, model = AnthropicMessages(base_url=url, mode="batch"), ApiModel(name="claude-sonnet-4-5")
    budget = Budget(max_usd=Decimal(cap) if cap else None)
    api = ApiRunner(
        model=model,
        provider=provider,
        decoding=Decoding(temperature=None, max_new_tokens=64),
        budget=budget,
        retry=retry,
        batches=batches,
    )
    api.check()
    api.bind(context(directory))
    return api


def run(api: ApiRunner, wanted: list[Request]) -> dict[tuple[str, int], Outcome]:
    outcomes = Outcomes()
    api.generate(wanted, outcomes, threading.Event())
    return outcomes.by_key


@pytest.mark.parametrize("vendor", some_of(EVERY))
def test_every_request_is_answered_once_at_half_the_price(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        api = runner(
            server.url,
            vendor,
            tmp_path,
            batches=BatchSettings(max_requests=15, first_poll_s=0.05, max_poll_s=0.1, settle_s=0.3),
        )
        outcomes = run(api, requests(40, samples=2))
        completions = [o for o in outcomes.values() if isinstance(o, Completion)]
        assert len(completions) == 80
        assert set(server.log.answers_by_prompt().values()) == {2}
        assert len(server.batches.submitted()) == 6
        assert isinstance(api.model, ApiModel)
        live = price_table_for(api.model, api.provider.pricing_id)
        assert live is not None
        share = 1 if vendor == "together" else 2  # Together's discount is not for all models
        assert all(o.cost_usd is not None and share * o.cost_usd == live.price(o.usage) for o in completions)
        assert sum(o.cost_usd or Decimal(0) for o in completions) == server.log.cost_usd()
        assert all(o.details["batch_id"] in server.batches.submitted() for o in completions)
        assert open_batches(tmp_path) == []
        assert not (tmp_path / "batch_prompts.jsonl").exists()


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_expired_missing_and_unknown_results_are_submitted_again(vendor: str, tmp_path: Path) -> None:
    faults = [
        Fault(kind, fraction=0.15) for kind in ("batch_expired", "batch_lost", "batch_wrong_id", "server_error")
    ]
    with ApiServer(faults=faults) as server:
        outcomes = run(runner(server.url, vendor, tmp_path), requests(60))
        assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
        assert len(outcomes) == 60
        assert set(server.log.answers_by_prompt().values()) == {1}
        assert max(o.attempts for o in outcomes.values() if isinstance(o, Completion)) > 1


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_items_that_cannot_succeed_fail_or_are_skipped_individually(vendor: str, tmp_path: Path) -> None:
    faults = [Fault("bad_request", contains="fix it 3"), Fault("context_overflow", contains="fix it 5")]
    with ApiServer(faults=faults) as server:
        outcomes = run(runner(server.url, vendor, tmp_path), requests(10))
        assert isinstance(outcomes["i3", 0], Failure)
        assert isinstance(outcomes["i5", 0], Skip)
        assert sum(isinstance(o, Completion) for o in outcomes.values()) == 8


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_a_submission_whose_response_is_lost_is_found_and_not_repeated(
    vendor: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ApiServer(batch_delay_s=0.3) as server:
        server.batches.miscounted = 1
        server.batches.drop_next_submissions = 1
        outcomes = run(runner(server.url, vendor, tmp_path), requests(20))
        assert sum(isinstance(o, Completion) for o in outcomes.values()) == 20
        assert len(server.batches.submitted()) == 1
        assert caplog.text.count("may be one of 1 at the provider (msgbatch_") == (vendor == "anthropic")
        assert set(server.log.answers_by_prompt().values()) == {1}


def stopped_once_submitted(api: ApiRunner, directory: Path, wanted: list[Request]) -> Outcomes:
    stop, outcomes = threading.Event(), Outcomes()

    def stop_once_submitted() -> None:
        while not any(batch.id for batch in open_batches(directory)):
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=stop_once_submitted, daemon=True).start()
    api.generate(wanted, outcomes, stop)
    return outcomes


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_stop_returns_at_once_and_the_next_try_collects(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.held = True
        outcomes = stopped_once_submitted(runner(server.url, vendor, tmp_path), tmp_path, requests(30))
        assert outcomes == []
        assert len(open_batches(tmp_path)) == 1
        server.batches.held = False
        assert len(run(runner(server.url, vendor, tmp_path), requests(30))) == 30
        assert len(server.batches.submitted()) == 1


def hand_in(
    url: str, directory: Path, wanted: list[Request], *, vendor: str = "openai", ahead_s: float = 0.0
) -> None:
    """Submits an open batch, ``swe-x``, as an earlier process whose clock was ahead."""
    journal = Journal(directory)
    items = {f"swe-x-{n}": Item(r.instance_id, r.sample, journal.add_prompt(r.prompt)) for n, r in enumerate(wanted)}
    journal.record_planned(Batch("swe-x", time.time() + ahead_s, items))
    journal.close()
    first = runner(url, vendor, directory)
    provider, model = first.provider.deferred(), first.model
    assert isinstance(model, ApiModel)
    lines = {key: provider.batch_item(key, r, model) for key, r in zip(items, wanted, strict=True)}

    async def submit() -> None:
        await first.provider.open()
        await provider.submit(lines, model, label="swe-x", timeout_s=10.0)
        await first.provider.close()

    asyncio.run(submit())


@pytest.mark.parametrize("recorded", [0, 1])
def test_all_answers_of_an_open_batch_are_kept_if_the_command_selects_fewer(recorded: int, tmp_path: Path) -> None:
    with ApiServer() as server:
        hand_in(server.url, tmp_path, requests(6))
        done = [r.key for r in requests(6)[:recorded]]
        again = runner(server.url, "openai", tmp_path)
        if done:
            again.bind(replace(context(tmp_path), is_recorded=lambda key, turn, auxiliary: key in done))
        assert run(again, requests(6)[1:3]).keys() == {r.key for r in requests(6)[recorded:]}
        assert len(server.batches.submitted()) == 1


def test_a_request_is_not_submitted_again_if_its_open_batch_is_collected_before_it_is_read(tmp_path: Path) -> None:
    with ApiServer() as server:
        hand_in(server.url, tmp_path, requests(6))

        def late() -> Iterator[Request]:
            """New requests until the open batch is collected, then those that were in it."""
            for number in itertools.count():
                if all(batch.label != "swe-x" for batch in open_batches(tmp_path)):
                    break
                yield request(f"new{number}", text=f"new {number}")
            yield from requests(6)

        outcomes = Outcomes()
        again = runner(server.url, "openai", tmp_path, batches=replace(QUICK, max_requests=1))
        again.generate(late(), outcomes, threading.Event())
        assert outcomes.by_key.keys() >= {r.key for r in requests(6)}
        assert all(isinstance(outcome, Completion) for _, outcome in outcomes)
        assert set(server.log.answers_by_prompt().values()) == {1}


@pytest.mark.parametrize(("vendor", "ahead_s"), [("openai", 3600.0), ("openai", 1e300), ("anthropic", 3600.0)])
def test_a_batch_of_a_process_whose_clock_was_ahead_is_found(vendor: str, ahead_s: float, tmp_path: Path) -> None:
    with ApiServer() as server:
        hand_in(server.url, tmp_path, requests(2), vendor=vendor, ahead_s=ahead_s)
        outcomes = run(runner(server.url, vendor, tmp_path), requests(2))
        assert [o.latency_s >= 0 for o in outcomes.values() if isinstance(o, Completion)] == [True, True]
        assert len(server.batches.submitted()) == 1


def test_a_request_in_an_open_batch_is_not_answered_from_the_response_cache_too(tmp_path: Path) -> None:
    decoding = Decoding(temperature=0.0)
    wanted = [replace(each, decoding=decoding) for each in requests(2)]
    with ApiServer() as server:

        def sharing(name: str) -> ApiRunner:
            api = runner(server.url, "openai", tmp_path / name)
            api = replace(api, decoding=decoding, response_cache=str(tmp_path / "cache"))
            api.bind(context(tmp_path / name))
            return api

        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        server.batches.held = True
        stopped_once_submitted(sharing("first"), tmp_path / "first", wanted)
        server.batches.held = False
        run(sharing("second"), wanted)
        outcomes = Outcomes()
        sharing("first").generate(wanted, outcomes, threading.Event())
        assert len(outcomes) == 2
        assert sum(o.cost_usd or 0 for _, o in outcomes if isinstance(o, Completion)) == server.log.cost_usd() / 2


def test_unreadable_journal_lines_do_not_affect_others(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.held = True
        stopped_once_submitted(runner(server.url, "openai", tmp_path), tmp_path, requests(4))
        server.batches.held = False
        journal = tmp_path / "batches.jsonl"
        damaged = b'{"event": "planned", "label": "swe-\n\0\0\n[]\n{"event": "closed"}\n'
        journal.write_bytes(damaged + journal.read_bytes() + damaged)
        outcomes = run(runner(server.url, "openai", tmp_path), requests(4))
        assert sum(isinstance(outcome, Completion) for outcome in outcomes.values()) == 4
        assert len(server.batches.submitted()) == 1
        assert open_batches(tmp_path) == []


def test_a_live_run_is_refused_while_its_batches_are_at_the_provider(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record_planned(
        Batch("swe-1", time.time(), {"swe-1-0": Item("a", 0, journal.add_prompt(Prompt(None, "x")))})
    )
    journal.close()
    api = ApiRunner(model=ApiModel(name="gpt-4o"), provider=OpenAIChat(), decoding=Decoding())
    with pytest.raises(ConfigError, match=r"provider\.mode=batch first"):
        api.bind(context(tmp_path))


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_unknown_model_stops_the_run_and_leaves_no_batch_open(vendor: str, tmp_path: Path) -> None:
    with ApiServer(faults=[Fault("model_not_found", contains="fix it 2")]) as server:
        outcomes = Outcomes()
        with pytest.raises(ModelNotFound):
            runner(server.url, vendor, tmp_path).generate(requests(5), outcomes, threading.Event())
        assert len(outcomes) == 4
        assert open_batches(tmp_path) == []


@pytest.mark.parametrize("vendor", ["openai", pytest.param("anthropic", marks=pytest.mark.full)])
def test_a_cap_holds_over_batches_and_is_used_up(vendor: str, tmp_path: Path) -> None:
    with ApiServer(batch_delay_s=0.01) as server:
        cap = "0.01" if vendor == "openai" else "0.02"
        outcomes = Outcomes()
        with pytest.raises(BudgetExceeded, match=r"budget\.max_usd"):
            runner(server.url, vendor, tmp_path, cap=cap).generate(requests(800), outcomes, threading.Event())
        paid = sum(o.cost_usd or Decimal(0) for _, o in outcomes if isinstance(o, Completion))
        assert Decimal("0.9") * Decimal(cap) <= paid == server.log.cost_usd() <= Decimal(cap)


@pytest.mark.parametrize("mode", ["batch", "live"])
def test_a_wait_for_a_cap_that_batches_of_another_run_hold_is_logged(
    mode: Literal["batch", "live"], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, cap = context(tmp_path), Decimal("0.5")
    with ApiServer() as server, closing(Ledger(place.sweep_ledger, cap, "stopped_run")) as other:
        other.reserve_batch("swe-1", [cap])
        api = replace(runner(server.url, "openai", tmp_path), budget=Budget(sweep_max_usd=cap))
        assert isinstance(api.provider, OpenAIChat)
        api.provider.mode = mode
        api.bind(place)
        outcomes = Outcomes()
        working = threading.Thread(target=api.generate, args=(requests(2), outcomes, threading.Event()), daemon=True)
        working.start()
        line = "requests wait for what is reserved for open batches of other runs (stopped_run)"
        wait_for(lambda: f"budget.sweep_max_usd=0.5: {line}" in caplog.text)
        other.release_other_batches([])
        working.join(60)
        assert [type(outcome) for outcome in outcomes.by_key.values()] == [Completion] * 2
        assert caplog.text.count(line) == 1


def test_the_journal_survives_a_torn_last_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    prompt = Prompt("system", "line\nline \u00e9 \ud800")
    batch = Batch("swe-1", 1.0, {"swe-1-0": Item("a", 3, journal.add_prompt(prompt), 2)})
    journal.record_planned(batch)
    journal.close()
    with (tmp_path / "batches.jsonl").open("a") as file:
        file.write('{"event": "submitted", "label": "swe-1", "i')
    again = Journal(tmp_path)
    kept = again.open["swe-1"]
    assert kept.id is None
    assert kept.items["swe-1-0"] == Item("a", 3, 0, 2)
    assert again.prompt(0) == prompt
    again.record_submitted(kept, "batch_1")
    assert [b.id for b in open_batches(tmp_path)] == ["batch_1"]
    again.record_closed(kept, "collected")
    again.close()
    assert open_batches(tmp_path) == []


def test_a_full_disk_is_named_and_costs_no_later_event(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 100) as is_mounted:
        if not is_mounted:
            pytest.skip("may not mount a file system")
        folder = tmp_path / "disk"
        journal = Journal(folder)
        offset = journal.add_prompt(Prompt(None, "x"))
        items = {f"swe-0-{number}": Item(f"i{number}", 0, offset) for number in range(200)}
        journal.record_planned(Batch("swe-first", 1.0))
        with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(512))
        with pytest.raises(StoreError, match=r"batches\.jsonl: cannot be written \(No space left on device\)"):
            journal.record_planned(Batch("swe-0", 1.0, items))
        (folder / "filler").unlink()
        journal.record_planned(Batch("swe-last", 1.0, items))
        assert [batch.label for batch in open_batches(folder)] == ["swe-first", "swe-last"]
        journal.close()


CHILD = """
import json, os, sys, threading
from dataclasses import replace
from pathlib import Path
from tests.api.test_batches import runner
from tests.api.scripted import context, requests
from swe_infer.types import Completion
url, vendor, directory = sys.argv[1:]
records = Path(directory) / "records"
done = {tuple(json.loads(line)) for line in records.read_text().splitlines()} if records.exists() else set()
def keep(request, outcome):
    assert isinstance(outcome, Completion), outcome
    with records.open("a") as file:
        file.write(json.dumps(request.key) + "\\n")
wanted = [r for r in requests(60, samples=2) if r.key not in done]
from benchmarks.torture.shortages import mounted
from swe_infer.api.batch import BatchSettings
batches = BatchSettings(max_requests=25, first_poll_s=0.02, max_poll_s=0.05, settle_s=0.3)
api = runner(url, vendor, Path(directory), cap="1", batches=batches)
api.bind(replace(context(Path(directory)), is_recorded=lambda key, turn, auxiliary: key in done))
api.generate(wanted, keep, threading.Event())
"""


def child_of(code: str, url: str, vendor: str, directory: Path) -> commands.Command:
    return commands.start("-c", code, url, vendor, str(directory), cwd=Path.cwd(), env=os.environ)


@pytest.mark.parametrize("vendor", some_of(OTHERS))
def test_a_batch_whose_id_is_lost_in_a_kill_is_collected_and_not_repeated(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.response_delay_s = 5.0
        child = child_of(CHILD.replace("requests(60, samples=2)", "requests(4)"), server.url, vendor, tmp_path)
        while not server.batches.submitted() and child.poll() is None:
            time.sleep(0.002)
        child.kill()
        _, errors = child.communicate()
        assert [batch.id for batch in open_batches(tmp_path)] == [None], errors
        server.batches.response_delay_s = 0.0
        outcomes = run(runner(server.url, vendor, tmp_path, cap="1"), requests(6))
        assert len(outcomes) == 6
        assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
        assert set(server.log.answers_by_prompt().values()) == {1}
        assert len(server.batches.submitted()) == 2  # the killed process's batch, and one of the other two requests


@pytest.mark.parametrize("vendor", some_of(OTHERS))
def test_a_submission_that_fails_after_its_upload_is_repeated(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.script_elsewhere(*[None] * (2 if vendor == "gemini" else 1), "server_error")
        outcomes = run(runner(server.url, vendor, tmp_path, cap="1"), requests(2))
        assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
        assert len(server.batches.submitted()) == 1


@pytest.mark.parametrize("vendor", some_of(OTHERS))
def test_batches_that_expire_or_fail_cost_their_unanswered_requests_alone(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.expire_next_after = 3
        outcomes = run(runner(server.url, vendor, tmp_path / "a", cap="1"), requests(8))
        assert Counter(o.attempts for o in outcomes.values() if isinstance(o, Completion)) == {1: 3, 2: 5}
        assert set(server.log.answers_by_prompt().values()) == {1}
        server.batches.fail_next = "an internal error"
        outcomes = run(runner(server.url, vendor, tmp_path / "b", cap="1"), requests(2, text="mend"))
        assert [o.attempts for o in outcomes.values() if isinstance(o, Completion)] == [2, 2]
        server.batches.fail_next = "Invalid file: line 1 has no body"
        outcomes = run(runner(server.url, vendor, tmp_path / "c", cap="1"), requests(2, text="solve"))
        assert {type(outcome) for outcome in outcomes.values()} == {Failure}
        assert all("line 1 has no body" in o.message for o in outcomes.values() if isinstance(o, Failure))
        assert set(server.log.answers_by_prompt().values()) == {1}


@pytest.mark.parametrize(("vendor", "most"), [("openai", None), ("openai", 4), ("anthropic", 4)])
def test_a_limit_of_requests_in_batches_costs_no_request(vendor: str, most: int | None, tmp_path: Path) -> None:
    # openai/openai-python #2084 (the words of OpenAI's failed batch); BerriAI/litellm #37539 and Anthropic
    # (docs.claude.com/en/api/rate-limits, Message Batches) refuse the submission
    with ApiServer(batch_delay_s=0.8) as server:  # longer than the tries of one submission
        server.batches.max_running = 10
        batches = replace(QUICK, max_requests=most)
        outcomes = run(runner(server.url, vendor, tmp_path, cap="1", batches=batches), requests(40))
        assert Counter(type(outcome) for outcome in outcomes.values()) == {Completion: 40}
        assert {o.attempts for o in outcomes.values() if isinstance(o, Completion)} == {1}
        assert set(server.log.answers_by_prompt().values()) == {1}
        assert open_batches(tmp_path) == []


def test_batches_grow_again_after_a_limit_that_others_had_used_up(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.max_running = 0

        def lift_once_alone() -> None:
            while not any(len(batch.items) == 1 for batch in open_batches(tmp_path)):
                time.sleep(0.002)
            server.batches.max_running = 4

        threading.Thread(target=lift_once_alone, daemon=True).start()
        outcomes = run(runner(server.url, "openai", tmp_path), requests(40))
        sizes = Counter(o.details["batch_id"] for o in outcomes.values() if isinstance(o, Completion))
        assert sizes.total() == 40
        assert max(sizes.values()) == 4


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_refused_batch_waits_beyond_its_tries_while_no_other_runs(
    vendor: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ApiServer() as server:
        server.batches.max_running = 0

        def lift_after_refusals() -> None:
            orders = 0
            while orders < 20:
                orders = sum(e.method == "POST" and e.path.endswith("/batches") for e in server.log.exchanges)
                time.sleep(0.002)
            server.batches.max_running = None

        threading.Thread(target=lift_after_refusals, daemon=True).start()
        retry = replace(FAST, tries=2)
        outcomes = run(runner(server.url, vendor, tmp_path, cap="1", retry=retry), requests(4))
        assert [o.attempts for o in outcomes.values() if isinstance(o, Completion)] == [1] * 4
        assert caplog.text.count("takes no further batch for now") == 1
        assert open_batches(tmp_path) == []


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("tries", [1, 12])
def test_a_stop_while_a_refused_batch_waits_leaves_none_to_look_for(
    vendor: str, tries: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ApiServer() as server:
        server.batches.max_running = 0
        stop, outcomes = threading.Event(), Outcomes()
        waiting = Retry(tries=tries, backoff_s=600, max_backoff_s=600)
        api = runner(server.url, vendor, tmp_path, cap="1", retry=waiting)
        working = threading.Thread(target=api.generate, args=(requests(2), outcomes, stop), daemon=True)
        working.start()
        wait_for(lambda: "takes no further batch" in caplog.text)
        stop.set()
        working.join(60)
        assert outcomes == []
        assert open_batches(tmp_path) == []


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_limit_that_lets_no_batch_run_for_too_long_ends_the_run(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.max_running = 0
        outcomes = Outcomes()
        with pytest.raises(ProviderFatal, match=r"no batch could run for runner\.retry\.total_s=0.2 s: "):
            runner(server.url, vendor, tmp_path, cap="1", retry=replace(FAST, total_s=0.2)).generate(
                requests(3), outcomes, threading.Event()
            )
        assert outcomes == []
        server.batches.max_running = None
        assert {type(outcome) for outcome in run(runner(server.url, vendor, tmp_path), requests(3)).values()} == {
            Completion
        }
        assert server.log.cost_usd() > 0


@pytest.mark.parametrize(
    "vendor", ["openai", *(pytest.param(vendor, marks=pytest.mark.full) for vendor in EVERY if vendor != "openai")]
)
def test_kills_at_any_moment_lose_nothing_and_submit_nothing_twice(vendor: str, tmp_path: Path) -> None:
    chance = random.Random(vendor)
    with ApiServer(batch_delay_s=0.3) as server:
        for attempt in range(5):
            child = child_of(CHILD, server.url, vendor, tmp_path)
            if attempt < 4:  # killed around a request that it has just sent
                seen, more = len(server.log.exchanges), chance.randint(1, 8)
                while len(server.log.exchanges) < seen + more and child.poll() is None:
                    time.sleep(0.002)
                time.sleep(chance.uniform(0.0, 0.02))
                child.send_signal(signal.SIGKILL)
            _, errors = child.communicate()
            if (status := child.wait()) == 0:
                break
            assert status == -signal.SIGKILL, errors
        assert status == 0
        kept = Counter((tmp_path / "records").read_text().splitlines())
        assert len(kept) == 120
        assert set(kept.values()) == {1}
        assert set(server.log.answers_by_prompt().values()) == {2}
        spent = json.loads(json.dumps(str(server.log.cost_usd())))
        assert Decimal(spent) < 1


@pytest.mark.parametrize(
    ("vendor", "status"),
    [pytest.param("openai", 405, marks=pytest.mark.full), ("anthropic", 403), ("anthropic", 500)],
)
def test_without_a_batch_list_known_batches_are_collected_and_nothing_is_paid_twice(
    vendor: str, status: int, tmp_path: Path
) -> None:
    """A process is killed after a batch was taken and before its id was written down; from then on the list fails."""
    with ApiServer() as server:
        server.batches.held = True
        stopped_once_submitted(runner(server.url, vendor, tmp_path), tmp_path, requests(4))
        server.batches.drop_next_submissions = 1
        server.batches.listing_status = status
        code = CHILD.replace("requests(60, samples=2)", "requests(10)")
        child = child_of(code, server.url, vendor, tmp_path)
        while len(server.batches.submitted()) < 2 and child.poll() is None:
            time.sleep(0.002)
        child.kill()
        child.communicate()
        assert [batch.id is None for batch in open_batches(tmp_path)] == [False, True]
        server.batches.held = False
        done: set[tuple[str, int]] = set()

        def launch(**changes: Any) -> str:
            """What the run ends with; its answers are recorded."""
            again = runner(server.url, vendor, tmp_path, cap="1", batches=replace(QUICK, **changes))
            again.bind(replace(context(tmp_path), is_recorded=lambda key, turn, auxiliary: key in done))
            outcomes = Outcomes()
            try:
                again.generate([r for r in requests(10) if r.key not in done], outcomes, threading.Event())
            except ProviderFatal as error:
                return str(error)
            finally:
                assert all(isinstance(outcome, Completion) for _, outcome in outcomes)
                done.update(outcomes.by_key)
            return ""

        for _ in range(2):
            told = launch()
            assert len(done) == 4
            assert "1 batches with 6 requests may be billed" in told
            assert "runner.batches.unknown=again" in told
            assert "no list here" in told
            assert len(server.batches.submitted()) == 2
        if status == 500:
            assert launch(unknown="again") == ""
            assert len(server.batches.submitted()) == 3
        else:
            server.batches.listing_status = None
            assert launch() == ""
            assert len(server.batches.submitted()) == 2
            assert set(server.log.answers_by_prompt().values()) == {1}
        assert len(done) == 10
        assert open_batches(tmp_path) == []


def collect_the_last_of_five(server: ApiServer, vendor: str, directory: Path, recorded: Outcomes) -> None:
    """A second command gets the answer that is not in ``recorded`` from the batch of the first, without a new one."""
    server.batches.rewrite = bytes
    again = runner(server.url, vendor, directory)
    again.bind(replace(context(directory), is_recorded=lambda key, turn, auxiliary: key in recorded.by_key))
    assert len(run(again, requests(5))) == 1
    assert len(server.batches.submitted()) == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_truncated_results_cause_no_second_batch(vendor: str, tmp_path: Path) -> None:
    """What can be read of them is kept; what cannot may be paid for, and stays with its batch."""
    with ApiServer() as server:
        server.batches.rewrite = lambda content: content[content.index(b"\n") // 2 :]
        outcomes = Outcomes()
        with pytest.raises(ProviderFatal, match=r"may be billed .* lines of the results cannot be read"):
            runner(server.url, vendor, tmp_path).generate(requests(5), outcomes, threading.Event())
        assert len(outcomes) == 4
        assert len(server.batches.submitted()) == 1
        collect_the_last_of_five(server, vendor, tmp_path, outcomes)


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_an_unreadable_line_beside_every_answer_leaves_no_batch_open(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.rewrite = lambda content: content + b"<html>no answer</html>\n"
        outcomes = run(runner(server.url, vendor, tmp_path), requests(4))
        assert [type(outcome) for outcome in outcomes.values()] == [Completion] * 4
    assert open_batches(tmp_path) == []


def errors_around(content: bytes) -> bytes:
    """An error before and after each result, with the same id."""
    lines = []
    for line in content.splitlines():
        entry = json.loads(line)
        ids = {key: entry[key] for key in ("custom_id", "key") if key in entry}
        error = {"code": 500, "message": "an internal error", "type": "api_error"}
        failed = {**ids, "error": error, "result": {"type": "errored", "error": {"error": error}}}
        lines += [json.dumps(failed).encode(), line, json.dumps(failed).encode()]
    return b"\n".join(lines)


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_an_answer_counts_beside_errors_with_the_same_id(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.rewrite = errors_around
        outcomes = run(runner(server.url, vendor, tmp_path), requests(4))
        assert [type(outcome) for outcome in outcomes.values()] == [Completion] * 4
        assert len(server.batches.submitted()) == 1


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_results_that_are_fewer_than_the_vendor_counts_cause_no_second_batch(vendor: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.rewrite = lambda content: content[: content.rindex(b"\n", 0, -1) + 1]
        outcomes = Outcomes()
        with pytest.raises(ProviderFatal, match=r"has 5 results, and 4 can be read"):
            runner(server.url, vendor, tmp_path).generate(requests(5), outcomes, threading.Event())
        assert len(outcomes) == 4
        collect_the_last_of_five(server, vendor, tmp_path, outcomes)


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_errors_do_not_stand_for_answers_that_are_missing(vendor: str, tmp_path: Path) -> None:
    def without_an_answer(content: bytes) -> bytes:
        lines = content.splitlines()
        answers = [line for line in lines if b"oken" in line]  # in usage
        return b"\n".join(line for line in lines if line not in answers[:1])

    with ApiServer(faults=[Fault("server_error", contains="fix it 3")]) as server:
        server.batches.rewrite = without_an_answer
        outcomes = Outcomes()
        with pytest.raises(ProviderFatal, match=r"has 5 results, and 4 can be read"):
            runner(server.url, vendor, tmp_path, cap="1").generate(requests(5), outcomes, threading.Event())
        assert [type(outcome) for _, outcome in outcomes] == [Completion] * 3
        assert set(server.log.answers_by_prompt().values()) == {1}
        assert len(server.batches.submitted()) == 1


def test_requests_of_unknown_batches_are_submitted_again_once_for_each_command(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.batches.rewrite = lambda content: b"<html>"
        for batches in (1, 2):
            again = runner(server.url, "openai", tmp_path, batches=replace(QUICK, unknown="again"))
            with pytest.raises(ProviderFatal, match="may be billed"):
                again.generate(requests(2), Outcomes(), threading.Event())
            assert len(server.batches.submitted()) == batches
        server.batches.rewrite = bytes
        assert len(run(runner(server.url, "openai", tmp_path), requests(2))) == 2
        assert len(server.batches.submitted()) == 2


@pytest.mark.parametrize("status", [None, "200"])
@pytest.mark.parametrize("vendor", ["openai", "mistral", "together"])
def test_an_answer_without_a_readable_status_is_one(vendor: str, status: object, tmp_path: Path) -> None:
    def changed(content: bytes) -> bytes:
        entries = [json.loads(line) for line in content.splitlines()]
        for entry in entries:
            entry["response"]["status_code"] = status
        entries[0]["response"]["body"] = {"error": {"message": "The server had an error", "type": "server_error"}}
        server.batches.rewrite = bytes
        return b"\n".join(json.dumps(entry).encode() for entry in entries)

    with ApiServer() as server:
        server.batches.rewrite = changed
        outcomes = run(runner(server.url, vendor, tmp_path), requests(4))
        attempts = [outcome.attempts for outcome in outcomes.values() if isinstance(outcome, Completion)]
        assert sorted(attempts) == [1, 1, 1, 2]


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_answers_that_cannot_be_used_count_as_possibly_billed(vendor: str, tmp_path: Path) -> None:
    """The first batch has an answer with an unknown id, and a line without a response and an error."""

    def spoilt(content: bytes) -> bytes:
        first, second, *rest = content.splitlines()
        server.batches.rewrite = bytes
        empty = {key: value for key, value in json.loads(second).items() if key in ("custom_id", "key")}
        result = {"type": "succeeded", "message": None}
        return b"\n".join([first.replace(b"swe-", b"ews-"), json.dumps({**empty, "result": result}).encode(), *rest])

    with ApiServer() as server:
        server.batches.rewrite = spoilt
        outcomes = run(runner(server.url, vendor, tmp_path, cap="1"), requests(4))
        answers = [outcome for outcome in outcomes.values() if isinstance(outcome, Completion)]
        assert sorted(answer.attempts for answer in answers) == [1, 1, 2, 2]
        assert all(("possibly_billed_usd" in answer.details) == (answer.attempts == 2) for answer in answers)


@pytest.mark.parametrize("vendor", some_of((*VENDORS, *OTHERS)))
def test_counts_that_the_prompt_contradicts_are_estimated(vendor: str, tmp_path: Path) -> None:
    with ApiServer(faults=[Fault("absurd_usage", contains="fix it 1")]) as server:
        outcomes = run(runner(server.url, vendor, tmp_path, cap="1"), requests(3))
        answers = [outcome for outcome in outcomes.values() if isinstance(outcome, Completion)]
        estimated = [answer for answer in answers if "usage_estimated" in answer.details]
        assert (len(answers), len(estimated)) == (3, 1)
        assert estimated[0].usage.output_tokens < 1000
        assert Decimal(estimated[0].details["possibly_billed_usd"]) > 0


def test_a_batch_that_a_moved_server_does_not_know_ends_a_run_whose_cap_it_holds(tmp_path: Path) -> None:
    with ApiServer() as server, ApiServer() as moved:
        server.batches.held = True
        stopped_once_submitted(runner(server.url, "openai", tmp_path, cap="0.002"), tmp_path, requests(10))
        (left,) = open_batches(tmp_path)
        assert 0 < len(left.items) < 10
        with pytest.raises(ProviderFatal, match="What is left of the cap is reserved for them"):
            runner(moved.url, "openai", tmp_path, cap="0.002").generate(requests(10), Outcomes(), threading.Event())
        assert moved.batches.submitted() == []
        larger = runner(moved.url, "openai", tmp_path, cap="1")
        outcomes = Outcomes()
        with pytest.raises(ProviderFatal, match="They are not submitted again"):
            larger.generate(requests(10), outcomes, threading.Event())
        assert len(outcomes) == 10 - len(left.items)


def test_a_batch_that_a_moved_server_does_not_list_is_not_submitted_again(tmp_path: Path) -> None:
    """The response to its submission was lost, and the list of its own server could not be read."""
    with ApiServer() as server, ApiServer() as moved:
        server.batches.drop_next_submissions = 1
        server.batches.listing_status = 500
        for address, reason in (
            (server.url, "no list here"),
            (moved.url, f"submitted at {server.url}/v1, and is not"),
        ):
            with pytest.raises(ProviderFatal, match=re.escape(reason)):
                runner(address, "openai", tmp_path, cap="1").generate(requests(2), Outcomes(), threading.Event())
        assert moved.batches.submitted() == []
        server.batches.listing_status = None
        assert len(run(runner(server.url, "openai", tmp_path, cap="1"), requests(2))) == 2
        assert set(server.log.answers_by_prompt().values()) == {1}
