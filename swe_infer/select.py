"""``python -m swe_infer.select``, and ``swe-infer-select``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Select one answer of each instance from the samples of runs."""
    run_command("swe_infer.cli.select")


if __name__ == "__main__":
    main()
