"""The same torture for SWE-bench's ``run_api`` and for Inspect: killed, interrupted, out of disk, then started again.

    python -m benchmarks.torture peers --path SOURCE:OLD_SDKS --kills 10
    python -m benchmarks.torture peers --inspect PYTHON --kills 10

``--path`` is the PYTHONPATH under which ``swebench.inference.run_api`` can be imported: a checkout of SWE-bench, and
the SDKs of its time (openai 1.x, anthropic below 0.40), without which it does not start. The dated model name of the
server's answers is added to its price table first: with any other it pays three times for the first instance, keeps
nothing and ends. ``--inspect`` is the python of an environment that holds Inspect and openai.

Answers that no file holds are lost, but for as many as were in flight at a kill and are asked again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.torture.checks import Findings, table
from benchmarks.torture.shortages import enlarge, mounted
from tests.support.api_server import ApiServer
from tests.support.instances import prompt_text, write_instances

__all__ = ["main"]

_INSTANCES = 40
_AT_ONCE = 8
_PATIENCE_S = 120.0
_DISK_KB = {"run_api": 120, "Inspect": 40}
"""A disk of this size is full half way."""
_MODEL = "gpt-4-1106-preview"
_START = f"""
import swebench.inference.run_api as run, sys
for prices in (run.MODEL_COST_PER_INPUT, run.MODEL_COST_PER_OUTPUT):
    prices["{_MODEL}-2026-01-01"] = prices["{_MODEL}"]
run.main(sys.argv[1], "test", "{_MODEL}", None, None, sys.argv[2], None, None)
"""


class _Peer(Protocol):
    """One output folder of a peer, and the processes that work on it."""

    at_once: int

    def start(self) -> subprocess.Popen[str]: ...

    def recorded(self) -> tuple[list[str], int]:
        """The ids that its files hold an answer for, and how much of them cannot be read."""
        ...


class _RunApi:
    """SWE-bench's ``run_api``."""

    at_once = 1

    def __init__(self, scratch: Path, output: Path, server: ApiServer, path: str) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        rows = {
            "instance_id": [f"example__pkg-{n}" for n in range(_INSTANCES)],
            "text": [prompt_text(n) for n in range(_INSTANCES)],
        }
        self._data = scratch / "data"
        if not self._data.exists():
            datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(str(self._data))
        self._environment = {
            **os.environ, "PYTHONPATH": path, "OPENAI_API_KEY": "sk-loopback", "OPENAI_BASE_URL": server.openai_url,
        }  # fmt: skip

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _START, str(self._data), str(self.output)]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=_hears_ctrl_c,
        )  # fmt: skip

    def recorded(self) -> tuple[list[str], int]:
        ids, torn = [], 0
        for path in self.output.glob("*.jsonl"):
            for line in path.read_bytes().splitlines():
                try:
                    ids.append(json.loads(line)["instance_id"])
                except ValueError:
                    torn += 1
        return ids, torn


class _Inspect:
    """Inspect's ``eval_set``."""

    at_once = _AT_ONCE

    def __init__(self, scratch: Path, output: Path, server: ApiServer, python: str) -> None:
        self._python, self._logs, self._url = python, output, server.openai_url
        self._data = write_instances(scratch / "instances.jsonl", _INSTANCES)
        home = scratch / "home"  # its buffers lie in the home directory
        home.mkdir(exist_ok=True)
        self._environment = {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home), "PYTHONPATH": ""}

    def _command(self, *arguments: str) -> list[str]:
        return [self._python, str(Path(__file__).with_name("peer_inspect.py")), *arguments]

    def start(self) -> subprocess.Popen[str]:
        command = self._command("run", self._url, str(self._data), str(self._logs), str(self.at_once))
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=_hears_ctrl_c,
        )  # fmt: skip

    def recorded(self) -> tuple[list[str], int]:
        command = self._command("recorded", str(self._logs))
        told = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True)
        found = json.loads(told.stdout.splitlines()[-1])
        return found["ids"], found["unreadable"]


def _hears_ctrl_c() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


Maker = Callable[[Path, Path, ApiServer], _Peer]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", help="where run_api can be imported from")
    parser.add_argument("--inspect", metavar="PYTHON", help="of an environment that holds Inspect")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args(arguments)
    peers: dict[str, Maker] = {}
    if options.path:
        peers["run_api"] = lambda scratch, output, server: _RunApi(scratch, output, server, options.path)
    if options.inspect:
        peers["Inspect"] = lambda scratch, output, server: _Inspect(scratch, output, server, options.inspect)
    if not peers:
        parser.error("name a peer: --path or --inspect")
    found = []
    for name, maker in peers.items():
        with tempfile.TemporaryDirectory(prefix="peers-", dir=options.scratch, ignore_cleanup_errors=True) as scratch:
            place = Path(scratch)
            found.append(_stopped(place, maker, name, "SIGKILL", options.kills, options.seed))
            found.append(_stopped(place, maker, name, "SIGINT", 1, options.seed))
            found.append(_full_disk(place, maker, name))
    print(table(found))
    for one in found:
        for line in one.wrong:
            print(f"{one.name}: {line}")
    return 0


def _stopped(scratch: Path, maker: Maker, peer: str, how: str, times: int, seed: int) -> Findings:
    """Stopped at random moments of its work, then run to its end."""
    findings, chance = Findings(f"{peer}, {how}"), random.Random(seed)
    with ApiServer(latency_s=(0.05, 0.25), strict=False, seed=seed) as server:
        run = maker(scratch, scratch / how, server)
        for _ in range(times):
            process, asked = run.start(), len(server.log.asked())
            while len(server.log.asked()) < asked + 2 and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.4))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if how == "SIGKILL" else signal.SIGINT)
                findings.kills += how == "SIGKILL"
                findings.faults += how != "SIGKILL"
            _ended(process, findings)
            # Inspect handles Ctrl-C itself, and the status is that of the few lines that call it.
            expected = process.returncode == 130 or how == "SIGKILL" or peer == "Inspect"
            findings.expect(expected, f"ended with {process.returncode}")
            findings.tries += 1
        _to_the_end(run, server, findings)
    return findings


def _full_disk(scratch: Path, maker: Maker, peer: str) -> Findings:
    """The disk is full half way; then there is room again."""
    findings = Findings(f"{peer}, full disk", faults=1, tries=1)
    disk = scratch / "disk"
    # Letters at random: a log that is compressed would never fill the disk otherwise.
    chance = random.Random(0)
    long = "The fix follows. " + "".join(chance.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(6000))
    with (
        mounted(disk, _DISK_KB[peer]) as there,
        ApiServer(latency_s=0.02, strict=False, answer=lambda _: long) as server,
    ):
        if not there:
            findings.skipped = "mounting a tmpfs is not permitted"
            return findings
        run = maker(scratch, disk / "out", server)
        process = run.start()
        findings.said = _ended(process, findings)
        told = process.returncode != 0 and "No space" in findings.said
        findings.expect(told, f"a full disk ends it with {process.returncode}: {findings.said.splitlines()[-1:]}")
        enlarge(disk)
        _to_the_end(run, server, findings)
    return findings


def _ended(process: subprocess.Popen[str], findings: Findings) -> str:
    """What a process said until its end, which is brought about where it does not come."""
    try:
        return process.communicate(timeout=_PATIENCE_S)[1]
    except subprocess.TimeoutExpired:
        findings.wrong.append(f"does not end within {_PATIENCE_S:.0f} s")
        process.kill()
        return process.communicate()[1]


def _to_the_end(run: _Peer, server: ApiServer, findings: Findings) -> None:
    process = run.start()
    errors = _ended(process, findings)
    findings.tries += 1
    ids, unreadable = run.recorded()
    answers = server.log.answers()
    findings.answers = len(answers)
    again = sum(max(0, n - 1) for n in server.log.answers_by_prompt().values())
    findings.in_flight = min(again, findings.kills * run.at_once)
    findings.paid_twice = again - findings.in_flight
    findings.lost = max(0, len(answers) - len(ids) - findings.in_flight)
    findings.expect(
        process.returncode == 0, f"the resume ended with {process.returncode}: {errors.splitlines()[-1:]}"
    )
    findings.expect(not unreadable, f"{unreadable} lines or files cannot be read")
    findings.expect(len(set(ids)) == _INSTANCES, f"{_INSTANCES - len(set(ids))} instances are missing")
