"""Processes that are killed and interrupted at random moments, and go on afterwards."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

from benchmarks.torture.checks import Findings, check_files, check_finished, unrecorded
from benchmarks.torture.place import Place, Process, wait_until
from tests.support.api_server import ApiServer

__all__ = ["SIGNALS", "Moment", "interrupted", "kills_of_local_runs", "kills_of_runs"]

_MARGIN_S = 1.0
"""An answer that the server finished so long before a kill had reached the process and should be in the store."""

Moment = Literal["SIGINT", "SIGINT twice", "SIGTERM"]
SIGNALS: Sequence[Moment] = ("SIGINT", "SIGINT twice", "SIGTERM")


def kills_of_runs(scratch: Path, kills: int, seed: int, *, tracked_share: float = 0.1) -> Findings:
    """SIGKILL at random moments, start and resume included, under a budget that is used up on the way."""
    findings = Findings("SIGKILL, runs through an API")
    chance = random.Random(seed)
    number = 0
    while findings.kills < kills:
        number += 1
        with ApiServer(latency_s=(0.05, 0.25), seed=seed + number) as server:
            samples, tracked = chance.choice((1, 2)), chance.random() < tracked_share
            place = Place(scratch / f"killed-{number}", server, samples=samples, tracked=tracked)
            _kill_until_done(place, server, findings, chance, kills)
    return findings


def _kill_until_done(place: Place, server: ApiServer, findings: Findings, chance: random.Random, kills: int) -> None:
    cap, before = Decimal("0.012"), findings.kills
    while True:
        findings.tries += 1
        known = {exchange.number for exchange in unrecorded(place)}
        process = place.start(f"budget.max_usd={cap}")
        killed_at = _killed_at_random(place, server, process, chance) if findings.kills < kills else None
        findings.caps_passed += server.log.cost_usd() > cap
        if killed_at is not None:
            findings.kills += 1
            check_files(place, findings)
            late = [e for e in unrecorded(place) if e.number not in known and e.answered_at is not None]
            findings.lost += sum(e.answered_at < killed_at - _MARGIN_S for e in late if e.answered_at is not None)
            continue
        ended = place.finish(process)
        if ended.status != 3:
            break
        cap *= 4  # the first cap is too small on purpose
    findings.caps_passed += server.log.cost_usd() > cap
    findings.expect(ended.status == 0, f"a resume ended with {ended.status}: {ended.errors[-300:]}")
    check_finished(place, findings)
    findings.answers += sum(len(answer.texts) for answer in server.log.answers())
    again, allowed = len(unrecorded(place)), (findings.kills - before) * place.in_flight
    findings.in_flight += min(again, allowed)
    findings.paid_twice += max(0, again - allowed)


def _killed_at_random(place: Place, server: ApiServer, process: Process, chance: random.Random) -> float | None:
    """Kill a try, one in five while it starts, the others while it is at work; when. None if it ended before."""
    asked = len(server.log.asked())
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0.0, 2.5))
    elif wait_until(lambda: len(server.log.asked()) > asked, process):
        time.sleep(chance.uniform(0.0, 1.0))
    if process.poll() is not None:
        return None
    killed_at = time.time()
    place.killed(process)
    return killed_at


def kills_of_local_runs(scratch: Path, kills: int, seed: int) -> Findings:
    """SIGKILL at random moments of runs of the bundled model."""
    findings = Findings("SIGKILL, runs on the local engine")
    chance = random.Random(seed)
    number = 0
    while findings.kills < kills:
        number += 1
        place = Place(scratch / f"local-{number}", None, instances=16, overrides=("decoding.max_new_tokens=64",))
        while True:
            findings.tries += 1
            process = place.start()
            if findings.kills < kills and _local_killed_at_random(place, process, chance):
                findings.kills += 1
                check_files(place, findings)
                continue
            ended = place.finish(process)
            break
        findings.expect(ended.status == 0, f"a resume ended with {ended.status}: {ended.errors[-300:]}")
        check_finished(place, findings)
        findings.answers += place.instances
    return findings


def _local_killed_at_random(place: Place, process: Process, chance: random.Random) -> bool:
    size = place.records_size()
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0.0, 4.0))
    else:
        wait_until(lambda: place.records_size() > size, process)
        time.sleep(chance.uniform(0.0, 0.5))
    if process.poll() is not None:
        return False
    place.killed(process)
    return True


def interrupted(scratch: Path, moment: Moment, seed: int, *, tracked: bool = False) -> Findings:
    """The first signal lets what is in flight finish, the second one stops at once; both end with 130."""
    findings = Findings(moment)
    chance = random.Random(f"{moment}{seed}")
    with ApiServer(latency_s=(0.3, 0.6), seed=seed) as server:
        place = Place(scratch / moment.replace(" ", "-"), server, instances=60, tracked=tracked)
        process = place.start()
        wait_until(lambda: len(server.log.answers()) > 1, process)
        time.sleep(chance.uniform(0.0, 0.3))
        signalled = time.monotonic()
        process.send_signal(signal.SIGTERM if moment == "SIGTERM" else signal.SIGINT)
        if moment == "SIGINT twice":
            server.latency_s = 30.0
            time.sleep(chance.uniform(0.1, 0.25))
            process.send_signal(signal.SIGINT)
        ended = place.finish(process)
        findings.faults = 1
        findings.expect(ended.status == 130, f"ended with {ended.status}: {ended.errors[-300:]}")
        findings.expect(not ended.has_trace, f"shows a trace: {ended.errors[-1000:]}")
        if moment == "SIGINT twice":
            findings.expect(time.monotonic() - signalled < 10, "did not stop at once")
        else:
            findings.lost = len(unrecorded(place))
        check_files(place, findings)
        server.latency_s = 0.02
        in_flight = len(unrecorded(place))
        ended = place.go()
        findings.tries = 2
        findings.expect(ended.status == 0, f"the resume ended with {ended.status}: {ended.errors[-300:]}")
        check_finished(place, findings)
        findings.answers = len(server.log.answers())
        findings.in_flight = in_flight
        findings.paid_twice = len(unrecorded(place)) - in_flight
    return findings
