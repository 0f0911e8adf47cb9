"""``python -m tests``: every check of the project. Exits with the first failure.

ruff comes first. mypy, which keeps one core busy, runs beside pytest, whose tests also wait.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUFF = [("ruff", "check", "."), ("ruff", "format", "--check", ".")]
MYPY = ("mypy",)
PYTEST = ("pytest", "-q", "--dist", "worksteal", "--durations=10")
FAST = ("-n", "2", "--fast")
FULL = ("-n", "4")  # some wait for processes and servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description="ruff, mypy and pytest.")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--fast", action="store_true", help="for use while editing: no mypy, and no test with processes or torch"
    )
    chosen.add_argument(
        "--all", action="store_true", help="also what takes long, or needs a cluster, a browser or the docs site"
    )
    arguments = parser.parse_args()
    tests = (*PYTEST, *FAST) if arguments.fast else (*PYTEST, *FULL, *["--all"] * arguments.all)
    for check in (*RUFF, tests) if arguments.fast else RUFF:
        with started(check) as process:
            if status := process.wait():
                return status
    if arguments.fast:
        return 0
    with started(MYPY, stdout=subprocess.PIPE) as mypy, started(tests) as pytest:
        reader = threading.Thread(target=watch, args=(mypy, pytest))
        reader.start()
        status = pytest.wait()
        reader.join()
    return mypy.returncode or status


def started(check: Sequence[str], stdout: int | None = None) -> subprocess.Popen[str]:
    print(f"== {' '.join(check)}", flush=True)
    return subprocess.Popen([sys.executable, "-m", *check], cwd=ROOT, stdout=stdout, text=True)


def watch(mypy: subprocess.Popen[str], pytest: subprocess.Popen[str]) -> None:
    """Print what mypy found once it has ended; with an error in it, pytest is not waited for."""
    assert mypy.stdout is not None
    found = mypy.stdout.read()
    print(f"\n== mypy ended\n{found}", end="", flush=True)
    if mypy.wait():
        pytest.send_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
