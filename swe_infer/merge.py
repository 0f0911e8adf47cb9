"""``python -m swe_infer.merge``, and ``swe-infer-merge``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Join the shards that the command line names."""
    run_command("swe_infer.cli.merge")


if __name__ == "__main__":
    main()
