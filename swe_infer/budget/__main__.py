"""``python -m swe_infer.budget``, and ``swe-infer-budget``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Keep caps and rate limits for runs on several machines."""
    run_command("swe_infer.cli.budget", stoppable=True)


if __name__ == "__main__":
    main()
