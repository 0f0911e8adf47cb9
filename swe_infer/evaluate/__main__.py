"""``python -m swe_infer.evaluate RUN_DIR …``, and ``swe-infer-evaluate``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Evaluate the runs that the command line names."""
    run_command("swe_infer.evaluate.command", "run")


if __name__ == "__main__":
    main()
