"""``python -m tests``: every check of the project, in the order of their cost. Exits with the first failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest", "-q", "-n", "3", "--dist", "worksteal", "--durations=10"),  # many wait for processes and servers
)


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    for tool, *arguments in CHECKS:
        print(f"== {tool} {' '.join(arguments)}", flush=True)
        status = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=root, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
