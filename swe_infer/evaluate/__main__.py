"""``python -m swe_infer.evaluate RUN_DIR …``, and ``swe-infer-evaluate``."""

from __future__ import annotations

import sys

from swe_infer.evaluate.command import run

__all__ = ["main"]


def main() -> None:
    """Evaluate the runs that the command line names."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
