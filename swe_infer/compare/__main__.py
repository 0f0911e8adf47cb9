"""``python -m swe_infer.compare RUN_DIR …``, and ``swe-infer-compare``."""

from __future__ import annotations

import sys

from swe_infer.compare.command import run

__all__ = ["main"]


def main() -> None:
    """Compare the runs that the command line names."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
