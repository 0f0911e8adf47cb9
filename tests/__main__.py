"""``python -m tests``: every check of the project, in the order of their cost. Exits with the first failure."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RUFF = [("ruff", "check", "."), ("ruff", "format", "--check", ".")]
MYPY = ("mypy",)
PYTEST = ("pytest", "-q", "--dist", "worksteal", "--durations=10")
FAST = ("-n", "2", "--fast")
FULL = ("-n", "3")  # many wait for processes and servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description="ruff, mypy and pytest, in this order.")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--fast", action="store_true", help="for use while editing: no mypy, and no test with processes or torch"
    )
    chosen.add_argument("--all", action="store_true", help="also what needs a cluster, a browser or the docs site")
    arguments = parser.parse_args()
    if arguments.fast:
        checks = [*RUFF, (*PYTEST, *FAST)]
    else:
        checks = [*RUFF, MYPY, (*PYTEST, *FULL, *["--all"] * arguments.all)]
    root = Path(__file__).resolve().parent.parent
    for tool, *words in checks:
        print(f"== {tool} {' '.join(words)}", flush=True)
        status = subprocess.run([sys.executable, "-m", tool, *words], cwd=root, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
