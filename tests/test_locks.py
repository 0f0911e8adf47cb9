"""File systems without file locks, simulated by a preloaded C library, and ``locks=single_writer``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from swe_infer.errors import StoreError
from swe_infer.locks import OwnerFile, refuse_owned
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path_factory.mktemp("library") / "no_locks.so"
    source = ROOT / "tests" / "support" / "no_locks.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


def without_locks(library: Path, place: Path) -> dict[str, str]:
    """The environment of a process in which ``place`` has no file locks."""
    ours = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test", "LD_PRELOAD": str(library)}
    return {**os.environ, **ours, "NO_LOCKS_BELOW": str(place), "NO_LOCKS_ERRNO": "37"}


ALL_KINDS = """
import errno, os, sys
from decimal import Decimal
from pathlib import Path
from swe_infer.api.cache import ResponseCache
from swe_infer.api.ledger import Ledger
from swe_infer.api.rate_limits import SharedRateLimiter
from swe_infer.errors import StoreError
from swe_infer.run_directory.store import RunStore

place = Path(sys.argv[1])
kinds = (
    lambda locks: RunStore(place / "run", "model", locks),
    lambda locks: Ledger(place / "ledger.sqlite", Decimal(1), "run", locks),
    lambda locks: ResponseCache(place / "cache", locks),
    lambda locks: SharedRateLimiter(place / "pace"),
)
for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
    os.environ["NO_LOCKS_ERRNO"] = str(number)
    for kind in kinds:
        try:
            kind("os")
        except StoreError as error:
            assert "no file locks" in str(error), error
            assert "locks=single_writer" in str(error) or "shared" in str(error), error
        else:
            raise AssertionError(f"{number}: opened")
for kind in kinds[:3]:
    opened = kind("single_writer")
    try:
        kind("single_writer")
    except StoreError as error:
        assert f"in use by process {os.getpid()}" in str(error), error
    else:
        raise AssertionError("opened twice")
    opened.close()
ledger = kinds[1]("single_writer")
ledger.charge(ledger.reserve(Decimal("0.2")), Decimal("0.1"))
ledger.close()
again = kinds[1]("single_writer")
assert again.spent_usd == Decimal("0.1")
again.close()
assert not list(place.rglob("*.owner"))
"""


def test_everything_that_locks_names_the_remedy_and_works_with_it(library: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", ALL_KINDS, str(tmp_path)],
        env=without_locks(library, tmp_path),
        check=True,
        timeout=300,
    )


def test_a_killed_run_goes_on_and_pays_nothing_twice(library: Path, tmp_path: Path) -> None:
    """Without locks it is refused. With ``single_writer`` it is killed and resumed, and excludes a second process."""
    with ApiServer() as server:
        arguments = [
            *("model=gpt-4o", f"provider.base_url={server.openai_url}", "tracker=none", "dataset.limit=6"),
            *("dataset.run_tests=false", "output_dir=run", "budget.max_usd=1", "runner.response_cache=cache"),
            *("provider.max_concurrency=2",),
        ]
        command = [sys.executable, "-m", "swe_infer", *arguments]
        settings: dict[str, Any] = {"cwd": tmp_path, "env": without_locks(library, tmp_path)}

        refused = subprocess.run(command, **settings, capture_output=True, text=True, check=False, timeout=300)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert "locks=single_writer" in refused.stderr
        assert not server.log.exchanges

        command.append("locks=single_writer")
        server.latency_s = 1.0
        first = subprocess.Popen(command, **settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        records = tmp_path / "run" / "records.jsonl"
        while first.poll() is None and not (records.exists() and records.stat().st_size):
            time.sleep(0.02)
        server.latency_s = 600.0  # the rest waits until the process is killed
        second = subprocess.run(command, **settings, capture_output=True, text=True, check=False, timeout=300)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert second.returncode == 2
        assert f"in use by process {first.pid}" in second.stderr

        server.latency_s = 0.0
        kept = {json.loads(line)["instance_id"] for line in records.read_text().splitlines()}
        paid = len(server.log.exchanges)
        assert (tmp_path / "run" / ".lock.owner").exists()
        third = subprocess.run(command, **settings, capture_output=True, text=True, check=False, timeout=300)
        assert third.returncode == 0, third.stderr
        assert len(server.log.exchanges) - paid == 6 - len(kept)
        assert not list(tmp_path.rglob("*.owner"))


def test_a_lock_file_of_a_process_that_may_live_is_respected(tmp_path: Path) -> None:
    """That of a process that has certainly ended is replaced."""
    guarded, lock = tmp_path / "file", tmp_path / "file.owner"
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with OwnerFile(guarded, "file"):
        ours = json.loads(lock.read_text())
    theirs = {**ours, "pid": child.pid}
    cases = {
        "another machine": {**ours, "host": "elsewhere", "pid": 1},
        "another boot": {**ours, "born": "another-boot pid:[1] 1", "pid": 2**22 - 1},
        "no process": {"what": 1},
        "this process": ours,
    }
    for case, owner in cases.items():
        lock.write_text(json.dumps(owner))
        with pytest.raises(StoreError, match=r"in use by|names no process"):
            OwnerFile(guarded, "file")
        with pytest.raises(StoreError):
            refuse_owned(guarded, "file")
        assert lock.exists(), case
    lock.write_text("")
    with pytest.raises(StoreError, match="remove it"):
        OwnerFile(guarded, "file")

    assert socket.gethostname() == theirs["host"]
    stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    theirs["born"] = f"{ours['born'].rpartition(' ')[0]} {stat}"
    lock.write_text(json.dumps(theirs))
    with pytest.raises(StoreError, match=f"process {child.pid}"):
        OwnerFile(guarded, "file")
    lock.write_text(json.dumps({**theirs, "born": theirs["born"] + "0"}))  # its number now belongs to another one
    OwnerFile(guarded, "file").close()
    lock.write_text(json.dumps(theirs))
    child.kill()  # not waited for: it stays as a zombie
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    OwnerFile(guarded, "file").close()
    assert not lock.exists()
    child.communicate()
