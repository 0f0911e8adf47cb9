"""``python -m swe_infer.view [FOLDER]``, and ``swe-infer-view``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """The console script."""
    run_command("swe_infer.cli.view")


if __name__ == "__main__":
    main()
