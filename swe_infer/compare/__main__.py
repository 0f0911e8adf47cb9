"""``python -m swe_infer.compare RUN_DIR …``, and ``swe-infer-compare``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """The console script."""
    run_command("swe_infer.compare.command", "run")


if __name__ == "__main__":
    main()
