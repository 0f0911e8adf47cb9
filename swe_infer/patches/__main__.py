"""``python -m swe_infer.patches``, and ``swe-infer-patches``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Compute the patches of finished runs again."""
    run_command("swe_infer.cli.patches")


if __name__ == "__main__":
    main()
