"""``python -m swe_infer.evaluate RUN_DIR …``, and ``swe-infer-evaluate``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """The console script."""
    run_command("swe_infer.evaluate.command", "run")


if __name__ == "__main__":
    main()
