"""``python -m swe_infer``, and ``swe-infer``."""

from swe_infer.interrupts import run_command


def main() -> None:
    """One run, or a sweep."""
    run_command("swe_infer.cli.start", stoppable=False)


if __name__ == "__main__":
    main()
