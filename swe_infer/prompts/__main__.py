"""``python -m swe_infer.prompts``, and ``swe-infer-prompts``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Render the prompts of a run and write them to a file."""
    run_command("swe_infer.cli.prompts")


if __name__ == "__main__":
    main()
