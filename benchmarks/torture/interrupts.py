"""Ctrl-C at moments spread over the whole life of every kind of command, by the account of the server that is paid.

    python -m benchmarks.torture interrupts                     # 40 moments of each kind
    python -m benchmarks.torture interrupts --only sweep batch --moments 10 --twice

An undisturbed run gives the length of a kind's life. Then each moment gets a fresh directory: the command is
started, interrupted, and started again without a disturbance. The first must end with one line, without a trace, with
status 130; the second with status 0; and together they may pay for each answer once. With ``--twice`` a second signal
follows the first one, and what was in flight then may be paid for again.

The interpreter's own start, before it reads a line of this program, is left out: a moment counts from the time at
which the process has its signal handlers.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture import place
from benchmarks.torture.checks import Findings
from benchmarks.torture.place import Ended, Process, wait_until
from tests.evaluate.runs import SAMPLE, make_run, sample_rows
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

__all__ = ["KINDS", "Kind", "Trial", "handles_signals", "main"]

_IN_FLIGHT = 3
_MODEL = ("model=gpt-4o", f"provider.max_concurrency={_IN_FLIGHT}", "tracker=none", "decoding.max_new_tokens=64")
_ON_ITS_WAY_S = 0.5
"""A request that the server sees so long after the signal was begun after it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of command.

    Args:
        command: after ``python -m``.
        answers: how many a whole run of it pays for.
        instances: in its dataset.
        asks: whether the loopback server is asked.
        runs: how many finished runs it needs.
    """

    command: Sequence[str]
    answers: int = 0
    instances: int = 12
    asks: bool = True
    runs: int = 0


KINDS = {
    "run": Kind(("swe_infer", *_MODEL, "output_dir=run"), 12),
    "sweep": Kind(("swe_infer", "-m", *_MODEL, "output_dir=sweep", "decoding.temperature=0.2,0.6,1.0"), 36),
    "batch": Kind(
        (
            "swe_infer", *_MODEL, "output_dir=run", "provider.mode=batch", "runner.batches.max_requests=5",
            "runner.batches.first_poll_s=0.1", "runner.batches.settle_s=1",
        ),
        12,
    ),
    "dry-run": Kind(("swe_infer", *_MODEL, "output_dir=run", "dry_run=true"), 0, instances=3000),
    "local": Kind(
        ("swe_infer", "tracker=none", "output_dir=run", "dataset.limit=8", "model.device=cpu"), 0, asks=False
    ),
    "compare": Kind(
        ("swe_infer.compare", "run0", "run1", "--html", "page.html", "--json", "page.json"), asks=False, runs=2
    ),
    "evaluate": Kind(("swe_infer.evaluate", "run0", "run1"), asks=False, runs=2),
}  # fmt: skip


class Trial:
    """One directory in which a command is interrupted and run again.

    Args:
        latency_s: of the server's answers.
    """

    def __init__(self, kind: Kind, directory: Path, server: ApiServer) -> None:
        self.kind = kind
        self.directory = directory
        self.server = server
        directory.mkdir(parents=True)
        self._arguments = list(kind.command)
        if kind.asks:
            data = write_instances(directory / "instances.jsonl", kind.instances)
            address = f"provider.base_url={server.openai_url}"
            self._arguments += [address, "dataset=jsonl", f"dataset.path={data}"]
        for number in range(kind.runs):
            rows = sample_rows()[: 20 + number]
            make_run(directory / f"run{number}", {row["instance_id"]: row["patch"] for row in rows}, SAMPLE)

    def start(self, *more: str) -> Process:
        """The command, in a session of its own."""
        return place.start([*self._arguments, *more], self.directory, self.directory, own_session=True)

    @property
    def paid(self) -> int:
        """Answers that the server has billed."""
        return sum(len(exchange.texts) for exchange in self.server.log.billed())

    def interrupt(
        self,
        findings: Findings,
        when: Callable[[Process], object],
        *,
        twice: bool = False,
        more: Sequence[str] = (),
    ) -> Ended:
        """Start the command, interrupt it after ``when``, and see how it ends."""
        process = self.start(*more)
        when(process)
        findings.tries += 1
        signalled = time.time()
        over = process.poll() is not None
        process.send_signal(signal.SIGINT)
        if twice:
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        ended = place.finish(process)
        if over:
            findings.expect(ended.status == 0, f"ended with {ended.status} before the signal: {ended.errors[-300:]}")
            return ended
        findings.faults += 1
        lines = [line for line in ended.errors.splitlines() if "interrupted" in line]
        done = ended.status == 0 and not lines and self.paid >= self.kind.answers
        findings.expect(done or ended.status == 130, f"ended with {ended.status}: {ended.errors[-600:]}")
        findings.expect(done or len(lines) == 1, f"says {len(lines)} lines of the signal: {ended.errors[-600:]}")
        findings.expect("Traceback" not in ended.errors, f"shows a trace: {ended.errors[-1500:]}")
        late = [e for e in self.server.log.asked() if e.received_at > signalled + _ON_ITS_WAY_S and not e.batch_id]
        findings.expect(not late, f"{len(late)} requests were begun after the signal")
        return ended

    def go_on(self, findings: Findings, *, allowed: int = 0) -> None:
        """Run the command to its end.

        Args:
            allowed: answers that may have been paid for in vain.
        """
        ended = place.finish(self.start())
        findings.tries += 1
        findings.expect(ended.status == 0, f"the same command ended with {ended.status}: {ended.errors[-600:]}")
        again = self.paid - self.kind.answers
        findings.answers += self.paid
        findings.in_flight += min(max(0, again), allowed)
        findings.paid_twice += max(0, again - allowed)
        findings.expect(again >= 0, f"{-again} answers are missing")


def handles_signals(process: Process) -> bool:
    """Whether the process catches SIGTERM, which the interpreter itself does not; waits for it."""
    mask = 1 << (signal.SIGTERM - 1)

    def caught() -> bool:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return False
        return any(int(line.split()[1], 16) & mask for line in status.splitlines() if line.startswith("SigCgt:"))

    return wait_until(caught, process)


def sweep_over(name: str, scratch: Path, moments: int, *, twice: bool = False) -> tuple[Findings, float]:
    """Interrupt commands of one kind at ``moments`` moments; what was found, and the length of the kind's life in
    seconds."""
    kind, findings = KINDS[name], Findings(name)
    with ApiServer(latency_s=0.1) as server:
        whole = Trial(kind, scratch / "whole", server)
        process = whole.start()
        handles_signals(process)
        begun = time.monotonic()
        ended = place.finish(process)
        life_s = time.monotonic() - begun
        findings.expect(ended.status == 0, f"undisturbed it ended with {ended.status}: {ended.errors[-600:]}")
    for number in range(moments):
        wait_s = life_s * number / moments
        with ApiServer(latency_s=0.1) as server:
            trial, before = Trial(kind, scratch / str(number), server), len(findings.wrong)

            def at_its_moment(process: Process, wait_s: float = wait_s) -> None:
                handles_signals(process)
                time.sleep(wait_s)

            trial.interrupt(findings, at_its_moment, twice=twice)
            trial.go_on(findings, allowed=_IN_FLIGHT if twice else 0)
            findings.wrong[before:] = [f"moment {number} ({wait_s:.2f} s): {w}" for w in findings.wrong[before:]]
    return findings, life_s


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--twice", action="store_true", help="a second signal follows the first one")
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args(arguments)
    ok = True
    print(f"{'kind':10}  life s  interrupted  answers  paid twice  in flight  wrong")
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="interrupts-") as scratch:
        for name in options.only or KINDS:
            found, life_s = sweep_over(name, Path(scratch) / name, options.moments, twice=options.twice)
            ok &= found.ok
            print(
                f"{name:10}  {life_s:6.1f}  {found.faults:11}  {found.answers:7}  {found.paid_twice:10}  "
                f"{found.in_flight:9}  {len(found.wrong):5}",
                flush=True,
            )
            for line in found.wrong:
                print(f"  {line}", file=sys.stderr, flush=True)
    return 0 if ok else 1
