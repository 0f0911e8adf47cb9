"""``python -m swe_infer.prompts``, and ``swe-infer-prompts``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """Make and freeze the prompts that the command line asks for."""
    run_command("swe_infer.cli.prompts")


if __name__ == "__main__":
    main()
