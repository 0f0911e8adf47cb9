"""``python -m swe_infer.runs``, and ``swe-infer-runs``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """List, show, remove, sync or move runs."""
    run_command("swe_infer.cli.runs")


if __name__ == "__main__":
    main()
