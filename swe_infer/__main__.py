"""``python -m swe_infer``."""

from swe_infer.cli.run import main

if __name__ == "__main__":
    main()
