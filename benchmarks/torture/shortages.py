"""What a machine runs out of: disk, permission, file size, file handles, memory, and a clock that holds still."""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from benchmarks.torture.checks import Findings, check_files, check_finished, unrecorded
from benchmarks.torture.place import Ended, Place, wait_until
from swe_infer.run_directory.fallback import fallback_lines
from tests.support.api_server import ApiServer

__all__ = [
    "clock_jumps",
    "failing_disk",
    "few_file_handles",
    "file_size_limit",
    "full_disk",
    "full_disk_then_killed",
    "little_memory",
    "mounted",
    "read_only_directory",
    "room_comes_back",
]

_ANSWER = "The fix follows. " + "x" * 6000
_LONG = ("decoding.max_new_tokens=4096",)
_LATENCY_S = (0.05, 0.25)


@contextmanager
def mounted(place: Path, size_kb: int) -> Iterator[bool]:
    """A small tmpfs at ``place``; False where this user may not mount."""
    place.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={size_kb}k", "none", str(place)):
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def enlarge(place: Path) -> None:
    """Make room on a tmpfs that :func:`mounted` made."""
    _mount("-o", "remount,size=64m", str(place))


def full_disk(scratch: Path, seed: int, *, tracked: bool = False, kill: bool = False) -> Findings:
    """The disk is full half way. No further request is made, nothing that came is lost, and with room it goes on."""
    findings = Findings("full disk, then killed" if kill else "full disk")
    disk = scratch / f"disk{kill:d}"
    with mounted(disk, 450 if tracked else 250) as there, _server(seed) as server:
        if not there:
            findings.skipped = "mounting a tmpfs is not permitted"
            return findings
        place = Place(scratch / f"full{kill:d}", server, 80, tracked=tracked, run=disk / "run", overrides=_LONG)
        process = place.start()
        if kill:
            wait_until(lambda: _kept_elsewhere(place), process)
            ended = place.killed(process)
            findings.kills = 1
        else:
            ended = place.finish(process)
            findings.expect(ended.status == 1, f"ended with {ended.status}: {ended.errors[-300:]}")
            findings.expect(
                any("No space left" in line and "kept in" in _after(ended, line) for line in ended.error_lines),
                f"does not say where answers are kept: {ended.error_lines}",
            )
        _no_more_than_in_flight(place, server, findings, ended)
        _nothing_is_lost(place, server, findings, lambda: enlarge(disk))
    return findings


def full_disk_then_killed(scratch: Path, seed: int) -> Findings:
    return full_disk(scratch, seed, kill=True)


def room_comes_back(scratch: Path, seed: int) -> Findings:
    """There is room again while the run still waits: it takes in what it held, and leaves no file elsewhere."""
    findings = Findings("full disk, room comes back")
    disk = scratch / "disk-back"
    with mounted(disk, 250) as there, _server(seed) as server:
        if not there:
            findings.skipped = "mounting a tmpfs is not permitted"
            return findings
        place = Place(scratch / "back", server, 80, run=disk / "run", overrides=_LONG)
        process = place.start()
        wait_until(lambda: _kept_elsewhere(place), process)
        enlarge(disk)
        ended = place.finish(process)
        findings.expect(ended.status == 1, f"ended with {ended.status}: {ended.errors[-300:]}")
        findings.expect(not _kept_elsewhere(place), "a file is left elsewhere")
        findings.lost = len(unrecorded(place))
        _nothing_is_lost(place, server, findings, lambda: None)
    return findings


def read_only_directory(scratch: Path, seed: int) -> Findings:
    """Nothing is asked for a directory that cannot be written: one line, exit 2."""
    findings = Findings("read-only directory")
    target = scratch / "read-only"
    target.mkdir()
    if not _mount("--bind", str(target), str(target)):
        findings.skipped = "mounting is not permitted"
        return findings
    try:
        _mount("-o", "remount,ro,bind", str(target))
        with _server(seed) as server:
            ended = Place(scratch / "ro", server, 4, run=target / "run").go()
            findings.tries = findings.faults = 1
            _refused_in_one_line(ended, findings)
            findings.expect(not server.log.asked(), "a request was made")
    finally:
        subprocess.run(["umount", "-l", str(target)], check=False, capture_output=True)
    return findings


def file_size_limit(scratch: Path, seed: int, *, tracked: bool = False) -> Findings:
    """``ulimit -f``: as a full disk, but for each file by itself."""
    return _limited(scratch, seed, "file-size limit", resource.RLIMIT_FSIZE, 150_000, tracked=tracked)


def few_file_handles(scratch: Path, seed: int) -> Findings:
    """``ulimit -n``: fewer handles than requests that want a connection."""
    return _limited(scratch, seed, "few file handles", resource.RLIMIT_NOFILE, 40, in_flight=64)


def little_memory(scratch: Path, seed: int, megabytes: int = 210) -> Findings:
    """``ulimit -v``: whatever that breaks, nothing that came is lost."""
    return _limited(scratch, seed, f"{megabytes} MB of memory", resource.RLIMIT_AS, megabytes << 20, in_flight=64)


def clock_jumps(scratch: Path, seed: int, library: Path | None) -> Findings:
    """The wall clock jumps by hours, back and forth, while the run is at work (libfaketime)."""
    findings = Findings("clock jumps")
    if library is None:
        findings.skipped = "libfaketime is not installed"
        return findings
    clock = scratch / "clock"
    clock.write_text("+0")
    with _server(seed) as server:
        place = Place(
            scratch / "clock-run", server, 40,
            environment={
                "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
            },
            overrides=("budget.max_usd=1",),
        )  # fmt: skip
        process = place.start()
        for offset in ("-3h", "+2d", "-400d", "+0"):
            wait_until(lambda: len(server.log.answers()) > 3, process)
            clock.write_text(offset)
            findings.faults += 1
            time.sleep(0.2)
        ended = place.finish(process)
        findings.tries = 1
        findings.expect(ended.status == 0, f"ended with {ended.status}: {ended.errors[-300:]}")
        place.environment.clear()
        check_finished(place, findings)
        findings.answers = len(server.log.answers())
        findings.lost = len(unrecorded(place))
    return findings


def failing_disk(scratch: Path, seed: int, call: Literal["write", "sync"]) -> Findings:
    """The disk of the run directory answers EIO from some moment on: to every write, or only where data is to be
    brought to it. No further request is made, nothing that came is lost, and once the disk works the run goes on."""
    findings = Findings(f"failing disk, {call}")
    library = _compiled(Path(__file__).with_name("failing_disk.c"), scratch / "failing_disk.so")
    if library is None:
        findings.skipped = "there is no C compiler"
        return findings
    trigger = scratch / "the-disk-fails"
    with _server(seed) as server:
        place = Place(scratch / f"failing-{call}", server, 80, overrides=(*_LONG, "budget.max_usd=10"))
        place.environment |= {
            "LD_PRELOAD": str(library), "FAIL_WHEN": str(trigger), "FAIL_BELOW": str(place.run), "FAIL_CALLS": call,
        }  # fmt: skip
        process = place.start()
        wait_until(lambda: len(server.log.answers()) > 20, process)
        trigger.touch()
        ended = place.finish(process)
        findings.expect(ended.status == 1, f"ended with {ended.status}: {ended.errors[-300:]}")
        findings.expect(not ended.has_trace, f"shows a trace: {ended.errors[-1500:]}")
        findings.expect(
            any("Input/output error" in line for line in ended.error_lines), f"does not say why: {ended.error_lines}"
        )
        findings.expect(len(server.log.asked()) < place.instances, "everything was asked, although the disk failed")
        findings.said = ended.errors
        _nothing_is_lost(place, server, findings, trigger.unlink)
    return findings


def _compiled(source: Path, library: Path) -> Path | None:
    """A shared library made of one C file; None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def _limited(
    scratch: Path, seed: int, name: str, kind: int, limit: int, *, in_flight: int = 8, tracked: bool = False
) -> Findings:
    findings = Findings(name)
    with _server(seed) as server:
        place = Place(
            scratch / name.replace(" ", "-"), server, 80, in_flight=in_flight, tracked=tracked, overrides=_LONG
        )
        ended = place.finish(place.start(prepare=lambda: resource.setrlimit(kind, (limit, limit))))
        findings.said = ended.errors
        findings.expect(ended.status in (0, 1, 2) or kind == resource.RLIMIT_AS, f"ended with {ended.status}")
        findings.expect(not ended.has_trace or kind == resource.RLIMIT_AS, f"shows a trace: {ended.errors[-1500:]}")
        _nothing_is_lost(place, server, findings, lambda: None)
    return findings


def _nothing_is_lost(place: Place, server: ApiServer, findings: Findings, mend: Callable[[], None]) -> None:
    """Mend what was wrong, go on, and compare with the server's account."""
    findings.faults += 1
    check_files(place, findings)
    mend()
    ended = place.go()
    findings.tries += 2
    findings.expect(ended.status == 0, f"the resume ended with {ended.status}: {ended.errors[-500:]}")
    if (place.run / "summary.json").exists():
        check_finished(place, findings)
    findings.lost += len(unrecorded(place))
    findings.answers = len(server.log.answers())
    findings.paid_twice = sum(max(0, n - place.samples) for n in server.log.answers_by_prompt().values())
    if findings.kills:  # what was in flight at the kill may be asked again
        findings.in_flight = min(findings.lost, place.in_flight)
        findings.lost -= findings.in_flight
        findings.paid_twice = max(0, findings.paid_twice - place.in_flight)
    findings.expect(not _kept_elsewhere(place), "a file is left elsewhere")


def _kept_elsewhere(place: Place) -> bool:
    """Whether answers lie in the reserve of the run directory or in the state directory."""
    return any(fallback_lines(place.run).values()) or any(
        (place.home / ".local" / "state" / "swe_infer").glob("unsaved-*")
    )


def _no_more_than_in_flight(place: Place, server: ApiServer, findings: Findings, ended: Ended) -> None:
    """Once the disk was full, at most what was in flight came to an end."""
    held = len(unrecorded(place))
    findings.expect(
        held <= place.in_flight + 1, f"{held} answers came after the disk was full: {ended.errors[-300:]}"
    )
    findings.expect(len(server.log.asked()) < place.instances, "everything was asked, although the disk was full")


def _refused_in_one_line(ended: Ended, findings: Findings) -> None:
    findings.expect(ended.status == 2, f"ended with {ended.status}")
    findings.expect(not ended.has_trace, f"shows a trace: {ended.errors[-1000:]}")
    findings.expect(len(ended.error_lines) == 1, f"says {len(ended.error_lines)} lines: {ended.errors[-500:]}")


def _after(ended: Ended, line: str) -> str:
    """What was said from ``line`` on."""
    return ended.errors[ended.errors.index(line) :]


def _server(seed: int) -> ApiServer:
    return ApiServer(latency_s=_LATENCY_S, seed=seed, answer=lambda _: _ANSWER)


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
