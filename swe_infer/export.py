"""``python -m swe_infer.export``, and ``swe-infer-export``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Write recorded answers as rows for fine-tuning."""
    run_command("swe_infer.cli.export")


if __name__ == "__main__":
    main()
